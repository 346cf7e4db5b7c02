// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The evictor on bytes that cannot be (C7): it leaves such pages alone or evicts them, and reads nothing outside.

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;
using test::path;

class EvictorCorruptTest : public ::testing::Test {
 protected:
  PageIndex cached(const std::vector<std::uint32_t>& pages) {
    Sequence sequence;
    BeginReport report;
    PublishReport published;
    const std::vector<std::uint32_t> tokens = path(4, pages);
    EXPECT_TRUE(worker_->begin(LocalCache::name_space(), tokens, {}, sequence, report));
    EXPECT_TRUE(worker_->allocate(sequence, tokens.size(), 0));
    EXPECT_TRUE(worker_->publish(sequence, tokens.size(), published));
    const PageIndex last = sequence.page_at(sequence.positions() - 1);
    worker_->release(sequence);
    return last;
  }

  LocalCache cache_{LocalCacheOptions{}};
  std::unique_ptr<Worker> worker_ = cache_.worker(1);
};

TEST_F(EvictorCorruptTest, ANamespaceThatIsNotThereIsNotRead) {
  const PageIndex page = cached({1});
  cache_.segment().descriptor(page).scope.store(0xFFFF'0001);
  EXPECT_EQ(cache_.evict(1), 1U);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 64U);
}

TEST_F(EvictorCorruptTest, AParentOutOfRangeOrInACircleEndsTheScan) {
  const PageIndex a = cached({1});
  const PageIndex b = cached({2});
  const PageIndex c = cached({3});
  const auto handle = [&](PageIndex page) {
    return Handle::page(page, StateWord{cache_.segment().descriptor(page).state.load()}).raw;
  };
  cache_.segment().descriptor(a).parent.store(handle(b));
  cache_.segment().descriptor(b).parent.store(handle(a));
  cache_.segment().descriptor(c).parent.store(Handle::page({kIndexMask}, StateWord{}).raw);
  EXPECT_EQ(cache_.evict(64), 1U) << "the circle has no leaf; the third page has no parent that counts";
}

}  // namespace
}  // namespace kvtrie
