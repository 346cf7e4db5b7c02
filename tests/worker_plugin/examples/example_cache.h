// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the examples of docs/plugin.md run in: a real kvtried, a worker attached to it, a prompt for each example.
//
// The lines between "// example: NAME" and "// end" are the example of the section NAME in docs/plugin.md, where
// `check` is whatever the program does about a code that it does not expect. documented_examples compares the two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/kvtried_process.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie::test {

inline constexpr std::uint32_t kPageTokens = 16;
inline constexpr std::uint32_t kPageBytes = 1024;

inline void check(kvtrie_code code) {
  EXPECT_EQ(code, KVTRIE_OK) << kvtrie_last_error();
}

class ExampleCache {
 public:
  // `device`: settings of kvtried that say on which one the planes are.
  explicit ExampleCache(const std::vector<std::string>& device = {}) : daemon_(cache_, settings(device)) {
    served_ = daemon_.ready();
    EXPECT_TRUE(served_) << daemon_.err();
  }
  ~ExampleCache() {
    if (!served_) return;
    EXPECT_EQ(daemon_.stop(), 0) << daemon_.err();
  }
  ExampleCache(const ExampleCache&) = delete;
  ExampleCache& operator=(const ExampleCache&) = delete;

  bool served() const { return served_; }
  const char* name() const { return cache_.name().c_str(); }
  const char* directory() const { return cache_.directory().c_str(); }
  KvtriedProcess& daemon() { return daemon_; }

  kvtrie_attach_options where() const {
    kvtrie_attach_options options{};
    options.size = sizeof options;
    options.cache = name();
    options.directory = directory();
    return options;
  }
  kvtrie_worker attach() const {
    const kvtrie_attach_options options = where();
    kvtrie_worker worker{0};
    check(kvtrie_attach(&options, &worker));
    return worker;
  }
  static kvtrie_namespace open(kvtrie_worker worker) {
    const kvtrie_field field{"model", "example"};
    kvtrie_namespace opened{0};
    check(kvtrie_open_namespace(worker, &field, 1, "example", &opened));
    return opened;
  }

 private:
  static std::vector<std::string> settings(const std::vector<std::string>& device) {
    std::vector<std::string> words = {"--pages",   "64", "--tokens-per-page", "16",  "--page-bytes", "1K",
                                      "--planes",  "2",  "--workers",         "4",   "--metrics",    "off",
                                      "--clock",   "driven"};
    words.insert(words.end(), device.begin(), device.end());
    return words;
  }

  TemporaryCache cache_{"plugin-examples"};
  KvtriedProcess daemon_;
  bool served_ = false;
};

// Two pages of tokens and a half, which no other prompt begins with.
inline std::vector<std::uint32_t> new_prompt() {
  static std::uint32_t last = 0;
  std::vector<std::uint32_t> tokens(2 * kPageTokens + kPageTokens / 2);
  for (std::uint32_t& token : tokens)
    token = ++last;
  return tokens;
}

inline kvtrie_sequence begin_example(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens,
                                     std::size_t count) {
  kvtrie_begin_result hit{};
  hit.size = sizeof hit;
  kvtrie_sequence sequence{0};
  check(kvtrie_begin(worker, ns, tokens, count, nullptr, &hit, &sequence));
  return sequence;
}

// Leaves the whole pages of the tokens in the cache.
inline void cache_tokens(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  check(kvtrie_publish(sequence, count, nullptr));
  check(kvtrie_release(sequence));
}

// Pages of the tokens that a begin finds.
inline std::uint32_t pages_found(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens,
                                 std::size_t count) {
  kvtrie_begin_result hit{};
  hit.size = sizeof hit;
  kvtrie_sequence sequence{0};
  check(kvtrie_begin(worker, ns, tokens, count, nullptr, &hit, &sequence));
  check(kvtrie_release(sequence));
  return hit.cached_pages;
}

// An example with the prompt that it works on.
using Example = void (*)(kvtrie_worker, kvtrie_namespace, const std::uint32_t* tokens, std::size_t count);

inline void run_examples(const std::vector<std::string>& device, const std::vector<Example>& examples) {
  const ExampleCache cache(device);
  if (!cache.served()) return;
  const kvtrie_worker worker = cache.attach();
  const kvtrie_namespace ns = ExampleCache::open(worker);
  for (std::size_t i = 0; i < examples.size(); ++i) {
    SCOPED_TRACE("example " + std::to_string(i));
    const std::vector<std::uint32_t> prompt = new_prompt();
    examples[i](worker, ns, prompt.data(), prompt.size());
  }
  // None of them has kept anything.
  std::uint64_t evicted = 0;
  check(kvtrie_evict(worker, {0}, 0, &evicted));
  if (device.empty()) {
    const std::vector<std::uint32_t> prompt = new_prompt();
    const kvtrie_sequence all = begin_example(worker, ns, prompt.data(), prompt.size());
    check(kvtrie_allocate(all, 64 * kPageTokens, nullptr));
    check(kvtrie_release(all));
  }
  check(kvtrie_detach(worker));
}

}  // namespace kvtrie::test
