// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One namespace record that changes hands while workers find it and begin in it: whoever asks for A gets a root, a
// generation and a seed that were A's together, or an error (C8, N2).

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "shm/namespace_table.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;

constexpr int kReuses = 60'000;
constexpr std::array<const char*, 2> kFields = {"model=a\n", "model=b\n"};

// The only record belongs to kFields[1] in even root generations and to kFields[0] in odd ones.
class NamespaceReuseTest : public ::testing::Test {
 protected:
  NamespaceReuseTest() {
    segment().name_space({0}).state.store(static_cast<std::uint32_t>(NamespaceState::kFree));
    segment().name_space({0}).root_generation.store(0);
    for (std::size_t i = 0; i < kFields.size(); ++i) opened_[i] = *table_.open(kFields[i], "");
  }

  const Segment& segment() const { return cache_.segment(); }

  template <typename Look>
  void while_reused(Look look) {
    std::atomic<bool> done{false};
    std::thread reader([&] {
      while (!done.load(std::memory_order_relaxed)) look();
    });
    for (int i = 0; i < kReuses; ++i) {
      const Result<OpenNamespace> made = table_.open(kFields[static_cast<std::size_t>(i % 2)], "");
      if (!made) break;
    }
    done.store(true);
    reader.join();
  }

  LocalCache cache_{LocalCacheOptions{.namespaces = 1}};
  NamespaceTable table_{cache_.segment()};
  std::array<OpenNamespace, 2> opened_;
};

TEST_F(NamespaceReuseTest, WhatIsFoundBelongsTogether) {
  std::uint64_t found = 0;
  std::uint64_t mixed = 0;
  while_reused([&] {
    for (std::size_t i = 0; i < kFields.size(); ++i) {
      const Result<OpenNamespace> answer = find_namespace(segment(), kFields[i]);
      if (!answer) continue;
      ++found;
      if (answer->root_generation % 2 != (i + 1) % 2 || answer->hash_seed != opened_[i].hash_seed) ++mixed;
    }
  });
  EXPECT_GT(found, 0U);
  EXPECT_EQ(mixed, 0U) << "of " << found;
}

TEST_F(NamespaceReuseTest, BeginNeverTakesTheRootOfAnother) {
  const auto worker = cache_.worker(1);
  std::uint64_t begun = 0;
  std::uint64_t mixed = 0;
  while_reused([&] {
    for (std::size_t i = 0; i < kFields.size(); ++i) {
      Sequence sequence;
      BeginReport report;
      if (!worker->begin({{0}, opened_[i].fields_hash}, {}, {}, sequence, report)) continue;
      ++begun;
      if (sequence.root_generation % 2 != (i + 1) % 2 || sequence.root_hash != opened_[i].hash_seed) ++mixed;
      worker->release(sequence);
    }
  });
  EXPECT_GT(begun, 0U);
  EXPECT_EQ(mixed, 0U) << "of " << begun;
}

}  // namespace
}  // namespace kvtrie
