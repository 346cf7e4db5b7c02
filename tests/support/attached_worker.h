// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker of a running coordinator, by the public C interface, that caches prompts for tests of others.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "shm/wire_client.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie::test {

class AttachedWorker {
 public:
  explicit AttachedWorker(const CoordinatorAddress& address) {
    kvtrie_attach_options where{};
    where.size = sizeof where;
    where.cache = address.cache.c_str();
    where.directory = address.directory.c_str();
    code_ = kvtrie_attach(&where, &worker_);
  }
  ~AttachedWorker() {
    if (code_ == KVTRIE_OK) (void)kvtrie_detach(worker_);
  }
  AttachedWorker(const AttachedWorker&) = delete;
  AttachedWorker& operator=(const AttachedWorker&) = delete;

  bool attached() const { return code_ == KVTRIE_OK; }
  kvtrie_worker worker() const { return worker_; }
  kvtrie_namespace open(const std::string& model) {
    const kvtrie_field field{"model", model.c_str()};
    kvtrie_namespace opened{};
    EXPECT_EQ(kvtrie_open_namespace(worker_, &field, 1, model.c_str(), &opened), KVTRIE_OK) << kvtrie_last_error();
    return opened;
  }
  // Tokens of `pages` pages of 16, counted up from `first`.
  static std::vector<std::uint32_t> prompt(std::uint32_t first, std::uint32_t pages) {
    std::vector<std::uint32_t> tokens;
    for (std::uint32_t i = 0; i < 16 * pages; ++i) tokens.push_back(first + i);
    return tokens;
  }
  // How many of its tokens are cached; the sequence holds a lease on them until it is released.
  std::uint64_t begin(kvtrie_namespace in, const std::vector<std::uint32_t>& tokens, kvtrie_sequence& sequence) {
    kvtrie_begin_result hit{};
    hit.size = sizeof hit;
    EXPECT_EQ(kvtrie_begin(worker_, in, tokens.data(), tokens.size(), nullptr, &hit, &sequence), KVTRIE_OK)
        << kvtrie_last_error();
    return hit.cached_tokens;
  }
  std::uint64_t cached(kvtrie_namespace in, const std::vector<std::uint32_t>& tokens) {
    kvtrie_sequence sequence{};
    const std::uint64_t found = begin(in, tokens, sequence);
    (void)kvtrie_release(sequence);
    return found;
  }
  void cache(kvtrie_namespace in, const std::vector<std::uint32_t>& tokens) {
    kvtrie_sequence sequence{};
    (void)begin(in, tokens, sequence);
    EXPECT_EQ(kvtrie_allocate(sequence, tokens.size(), nullptr), KVTRIE_OK) << kvtrie_last_error();
    EXPECT_EQ(kvtrie_publish(sequence, tokens.size(), nullptr), KVTRIE_OK) << kvtrie_last_error();
    (void)kvtrie_release(sequence);
  }

 private:
  kvtrie_worker worker_{};
  kvtrie_code code_ = KVTRIE_OK;
};

}  // namespace kvtrie::test
