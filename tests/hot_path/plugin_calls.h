// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The plugin as an engine calls it, for programs that are looked at from outside (valgrind,
// strace): loaded by dlopen, nothing between the call and the program. What goes wrong throws
// std::runtime_error.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "worker_plugin/kvtrie.h"

namespace kvtrie::test {

using Tokens = std::vector<std::uint32_t>;

inline constexpr std::uint32_t kTokensPerPage = 16;

// The library stays loaded.
class PluginLibrary {
 public:
  explicit PluginLibrary(const char* path) : handle_(::dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ == nullptr) throw std::runtime_error(::dlerror());
    api_ = find<decltype(kvtrie_get_api)>("kvtrie_get_api")(KVTRIE_API_VERSION);
    if (api_ == nullptr) throw std::runtime_error("no table of calls");
  }
  template <typename Function>
  Function* find(const char* name) const {
    auto* found = reinterpret_cast<Function*>(::dlsym(handle_, name));
    if (found == nullptr) throw std::runtime_error(std::string("no symbol ") + name);
    return found;
  }
  const kvtrie_api& api() const { return *api_; }

 private:
  void* handle_;
  const kvtrie_api* api_ = nullptr;
};

template <typename Struct>
Struct sized() {
  Struct made{};
  made.size = sizeof made;
  return made;
}

// One worker in one namespace.
class PluginCalls {
 public:
  PluginCalls(const kvtrie_api& api, kvtrie_worker worker) : api_(api), worker_(worker) {
    const kvtrie_field field{"model", "hot path"};
    must(api_.open_namespace(worker_, &field, 1, "hot path", &space_), "open_namespace");
  }
  PluginCalls(const PluginLibrary& library, const char* directory, const char* cache)
      : PluginCalls(library.api(), attached(library.api(), directory, cache)) {}

  // Prompts of different numbers have no page in common.
  static Tokens prompt(std::uint32_t number, std::uint32_t pages) {
    Tokens tokens(std::size_t{pages} * kTokensPerPage);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = number << 20 | static_cast<std::uint32_t>(i);
    return tokens;
  }

  // Pages that were cached.
  std::uint32_t begin(const Tokens& tokens, kvtrie_sequence& sequence) const {
    auto result = sized<kvtrie_begin_result>();
    must(api_.begin(worker_, space_, tokens.data(), tokens.size(), nullptr, &result, &sequence),
         "begin");
    return result.cached_pages;
  }
  void allocate(kvtrie_sequence sequence, std::size_t tokens) const {
    must(api_.allocate(sequence, tokens, nullptr), "allocate");
  }
  void publish(kvtrie_sequence sequence, std::size_t tokens) const {
    auto result = sized<kvtrie_publish_result>();
    must(api_.publish(sequence, tokens, &result), "publish");
    if (result.published_tokens != tokens) throw std::runtime_error("pages stay private");
  }
  void release(kvtrie_sequence sequence) const { must(api_.release(sequence), "release"); }

  // begin and release, of which `pages` must have been cached.
  void look_up(const Tokens& tokens, std::size_t pages) const {
    kvtrie_sequence sequence{};
    if (begin(tokens, sequence) != pages)
      throw std::runtime_error("begin: not the pages that are cached");
    release(sequence);
  }
  void hit(const Tokens& tokens) const { look_up(tokens, tokens.size() / kTokensPerPage); }
  // What an engine does with a prompt, but for the computing.
  void cache(const Tokens& tokens) const {
    kvtrie_sequence sequence{};
    (void)begin(tokens, sequence);
    allocate(sequence, tokens.size());
    publish(sequence, tokens.size());
    release(sequence);
  }
  void fork_and_release(kvtrie_sequence sequence) const {
    kvtrie_sequence child{};
    must(api_.fork_sequence(sequence, nullptr, &child), "fork");
    release(child);
  }
  void probe(const Tokens& tokens, std::size_t pages) const {
    auto result = sized<kvtrie_probe_result>();
    must(api_.probe(worker_, space_, tokens.data(), tokens.size(), &result), "probe");
    if (result.cached_pages != pages)
      throw std::runtime_error("probe: not the pages that are cached");
  }
  // Into `hashes`, which has room for them.
  void hash(const Tokens& tokens, std::vector<std::uint64_t>& hashes) const {
    std::size_t count = 0;
    must(api_.hash_tokens(worker_, space_, tokens.data(), tokens.size(), hashes.data(),
                          hashes.size(), &count),
         "hash_tokens");
    if (count != hashes.size())
      throw std::runtime_error("hash_tokens: not the hashes of the pages");
  }
  void probe_hashes(const std::vector<std::uint64_t>& hashes, std::size_t pages) const {
    auto result = sized<kvtrie_probe_result>();
    must(api_.probe_hashes(worker_, space_, hashes.data(), hashes.size(), &result), "probe_hashes");
    if (result.cached_pages != pages)
      throw std::runtime_error("probe_hashes: not the pages that are cached");
  }

  const kvtrie_api& api() const { return api_; }
  kvtrie_worker worker() const { return worker_; }
  void must(kvtrie_code code, const char* what) const { must(api_, code, what); }

 private:
  static void must(const kvtrie_api& api, kvtrie_code code, const char* what) {
    if (code == KVTRIE_OK) return;
    throw std::runtime_error(std::string(what) + ": " + api.code_name(code) + ": " +
                             api.last_error());
  }
  static kvtrie_worker attached(const kvtrie_api& api, const char* directory, const char* cache) {
    auto where = sized<kvtrie_attach_options>();
    where.directory = directory;
    where.cache = cache;
    where.name = "hot path";
    kvtrie_worker worker{};
    must(api, api.attach(&where, &worker), "attach");
    return worker;
  }

  const kvtrie_api& api_;
  kvtrie_worker worker_;
  kvtrie_namespace space_{};
};

}  // namespace kvtrie::test
