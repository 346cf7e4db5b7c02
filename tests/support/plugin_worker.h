// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker of a running coordinator by the C calls, whose pages' bytes are a function of their path in every plane, so
// that a wrong page is always seen. For tests in several processes: what goes wrong throws Wrong, with what the plugin
// says.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/temporary_cache.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie::test {

class Wrong : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using Prompt = std::vector<std::uint32_t>;

class PluginWorker {
 public:
  static constexpr std::uint32_t kTokens = 16;  // of a page

  explicit PluginWorker(const TemporaryCache& cache, const char* name = "worker") {
    kvtrie_attach_options where{};
    where.size = sizeof where;
    where.cache = cache.name().c_str();
    where.directory = cache.directory().c_str();
    where.name = name;
    must(kvtrie_attach(&where, &worker), "attach");
    geometry_.size = sizeof geometry_;
    must(kvtrie_get_geometry(worker, &geometry_), "geometry");
    const kvtrie_field field{"model", "a"};
    must(kvtrie_open_namespace(worker, &field, 1, "a", &space), "namespace");
  }
  PluginWorker(const PluginWorker&) = delete;
  PluginWorker& operator=(const PluginWorker&) = delete;

  // `pages` pages of tokens; prompts of the same number begin alike.
  static Prompt prompt(std::uint32_t number, std::uint32_t pages) {
    Prompt tokens;
    for (std::uint32_t i = 0; i < pages * kTokens; ++i) tokens.push_back(number * 1000 + i);
    return tokens;
  }
  static void must(kvtrie_code code, const char* what) {
    if (code != KVTRIE_OK) throw Wrong(std::string(what) + ": " + kvtrie_last_error());
  }

  // Pages that were cached; their bytes are looked at.
  std::uint32_t begin(const Prompt& tokens, kvtrie_sequence& sequence) const {
    kvtrie_begin_result hit{};
    hit.size = sizeof hit;
    must(kvtrie_begin(worker, space, tokens.data(), tokens.size(), nullptr, &hit, &sequence), "begin");
    check_bytes(sequence, tokens, hit.cached_pages);
    return hit.cached_pages;
  }
  kvtrie_code allocate(kvtrie_sequence sequence, std::size_t tokens, std::uint32_t wait_ms) const {
    kvtrie_allocate_options options{};
    options.size = sizeof options;
    options.wait_ms = wait_ms;
    return kvtrie_allocate(sequence, tokens, &options);
  }
  // Of the pages that are the sequence's own to write.
  void compute(kvtrie_sequence sequence, const Prompt& tokens) const {
    std::array<kvtrie_own_page, 64> own{};
    std::uint32_t count = 0;
    must(kvtrie_own_pages(sequence, own.data(), own.size(), &count), "own pages");
    for (std::uint32_t i = 0; i < count; ++i) {
      const bool writable = own[i].state == KVTRIE_PAGE_PRIVATE || own[i].state == KVTRIE_PAGE_ANNOUNCED;
      if (!writable || (own[i].position + 1) * kTokens > tokens.size()) continue;
      for (std::uint32_t plane = 0; plane < geometry_.planes; ++plane) {
        for (std::uint64_t& word : words(own[i].page, plane)) word = bytes_of(tokens, own[i].position, plane);
      }
    }
  }
  void check_bytes(kvtrie_sequence sequence, const Prompt& tokens, std::uint32_t pages) const {
    std::vector<std::uint32_t> at(pages);
    must(kvtrie_get_pages(sequence, 0, pages, at.data()), "get pages");
    for (std::uint32_t i = 0; i < pages; ++i) {
      for (std::uint32_t plane = 0; plane < geometry_.planes; ++plane) {
        for (const std::uint64_t word : words(at[i], plane)) {
          if (word != bytes_of(tokens, i, plane)) throw Wrong("wrong bytes in page " + std::to_string(at[i]));
        }
      }
    }
  }
  // Whole pages of `tokens`; how many stayed private.
  std::uint32_t publish(kvtrie_sequence sequence, const Prompt& tokens) const {
    kvtrie_publish_result result{};
    result.size = sizeof result;
    must(kvtrie_publish(sequence, tokens.size(), &result), "publish");
    return result.pages_private;
  }
  // Tries again for what a lock that was busy kept private.
  void publish_all(kvtrie_sequence sequence, const Prompt& tokens) const {
    std::uint32_t left = 1;
    for (int i = 0; i < 1000 && left != 0; ++i) left = publish(sequence, tokens);
    if (left != 0) throw Wrong("pages stay private");
  }
  // Computed and published, the sequence still open.
  kvtrie_sequence cache(const Prompt& tokens) const {
    kvtrie_sequence sequence{};
    begin(tokens, sequence);
    must(allocate(sequence, tokens.size(), 5000), "allocate");
    compute(sequence, tokens);
    publish_all(sequence, tokens);
    return sequence;
  }
  static void release(kvtrie_sequence sequence) { must(kvtrie_release(sequence), "release"); }
  void detach() const { must(kvtrie_detach(worker), "detach"); }

  kvtrie_worker worker{};
  kvtrie_namespace space{};

 private:
  struct Words {
    std::uint64_t* first;
    std::size_t count;
    std::uint64_t* begin() const { return first; }
    std::uint64_t* end() const { return first + count; }
  };
  Words words(std::uint32_t page, std::uint32_t plane) const {
    void* address = nullptr;
    must(kvtrie_page_address(worker, page, plane, &address), "page address");
    return {static_cast<std::uint64_t*>(address), geometry_.page_bytes / sizeof(std::uint64_t)};
  }
  static std::uint64_t bytes_of(const Prompt& tokens, std::uint32_t position, std::uint32_t plane) {
    std::uint64_t hash = 0xcbf29ce484222325ULL + plane;
    for (std::size_t i = 0; i < (position + 1) * std::size_t{kTokens}; ++i) {
      hash = (hash ^ tokens[i]) * 0x100000001b3ULL;
    }
    return hash;
  }

  kvtrie_geometry geometry_{};
};

}  // namespace kvtrie::test
