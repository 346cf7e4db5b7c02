// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The evictor on bytes that cannot be (C7): it leaves such pages alone or evicts them, and reads nothing outside. And
// the scan that serves several calls.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
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

// Prompts of one page each, cached in order; a scan ranks 64 pages for later calls.
class EvictorReserveTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kPrompts = 200;

  void SetUp() override {
    for (std::uint32_t prompt = 1; prompt <= kPrompts; ++prompt) cache(path(4, {prompt}));
  }
  void cache(const std::vector<std::uint32_t>& tokens) {
    Sequence sequence;
    BeginReport report;
    PublishReport published;
    ASSERT_TRUE(worker_->begin(LocalCache::name_space(), tokens, {}, sequence, report));
    ASSERT_TRUE(worker_->allocate(sequence, tokens.size(), 0));
    ASSERT_TRUE(worker_->publish(sequence, tokens.size(), published));
    worker_->release(sequence);
  }
  void hit(std::uint32_t prompt) {
    Sequence sequence;
    BeginReport report;
    ASSERT_TRUE(worker_->begin(LocalCache::name_space(), path(4, {prompt}), {}, sequence, report));
    worker_->release(sequence);
  }
  std::uint64_t evict_on(std::uint64_t wanted) {
    return evictor_.evict_on(wanted, kNever, [](double) {}).evicted;
  }
  std::uint32_t cached_pages(const std::vector<std::uint32_t>& pages) const {
    BeginReport report;
    EXPECT_TRUE(worker_->probe(LocalCache::name_space(), path(4, pages), report));
    return report.cached_pages;
  }
  // Of the prompts up to `last`.
  std::vector<std::uint32_t> cached_up_to(std::uint32_t last) {
    std::vector<std::uint32_t> cached;
    for (std::uint32_t prompt = 1; prompt <= last; ++prompt) {
      if (cached_pages({prompt}) > 0) cached.push_back(prompt);
    }
    return cached;
  }
  // A prompt that the next scan finds leased, and nobody has after it: its turn comes with the scan after that.
  template <typename Scan>
  void leased_during(std::uint32_t prompt, Scan scan) {
    Sequence sequence;
    BeginReport report;
    ASSERT_TRUE(worker_->begin(LocalCache::name_space(), path(4, {prompt}), {}, sequence, report));
    scan();
    worker_->release(sequence);
  }

  static bool never() { return false; }
  const std::function<bool()> kNever = never;
  LocalCache cache_{{.pages = 2048}};
  std::unique_ptr<Worker> worker_ = cache_.worker(1);
  Evictor evictor_{cache_.segment()};
};

using Prompts = std::vector<std::uint32_t>;

TEST_F(EvictorReserveTest, LaterCallsGoOnInOrderWithoutAScan) {
  leased_during(13, [&] { EXPECT_EQ(evict_on(10), 10U); });
  EXPECT_EQ(cached_up_to(13), (Prompts{11, 12, 13}));
  cache_.set_tick(1);
  hit(12);
  cache(path(4, {1}));
  EXPECT_EQ(evict_on(3), 3U);
  EXPECT_EQ(cached_up_to(16), (Prompts{1, 12, 13, 16})) << "12 was used since; 13 shows that there was no scan";
  EXPECT_EQ(evict_on(62), 62U) << "more than the scan is good for: the next one";
  EXPECT_EQ(cached_up_to(78), (Prompts{1, 12, 77, 78}));
}

TEST_F(EvictorReserveTest, AChildThatCameSinceKeepsItsParent) {
  EXPECT_EQ(evict_on(10), 10U);
  cache(path(4, {11, 500}));  // in the tick of its parent, which is not touched again
  EXPECT_EQ(evict_on(3), 3U);
  EXPECT_EQ(cached_up_to(15), (Prompts{11, 15}));
  EXPECT_EQ(cached_pages({11, 500}), 2U);
}

TEST_F(EvictorReserveTest, EndsWithAReapAndWithAScanForSomethingElse) {
  leased_during(11, [&] { EXPECT_EQ(evict_on(10), 10U); });
  cache_.segment().superblock().reaps.fetch_add(1);
  EXPECT_EQ(evict_on(1), 1U);
  EXPECT_EQ(cached_up_to(12), (Prompts{12})) << "11 was leased when the scan before the reap saw it";
  leased_during(12, [&] { EXPECT_EQ(evict_on(1), 1U); });
  EXPECT_EQ(cached_up_to(13), (Prompts{12})) << "13 went by the scan after the reap, 12 was leased";
  leased_during(14, [&] {
    evictor_.evict(1, kNever, [](double) {}, {EvictChoice::Of::kFlushed});
    EXPECT_EQ(evict_on(1), 1U);
  });
  EXPECT_EQ(cached_up_to(14), (Prompts{14})) << "12 is found by a new scan";
}

}  // namespace
}  // namespace kvtrie
