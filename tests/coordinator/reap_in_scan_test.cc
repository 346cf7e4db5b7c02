// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Deaths in the midst of an eviction: they are reaped between its parts, and it goes on (evictor.h).

#include <gtest/gtest.h>

#include <vector>

#include "shm/free_pages.h"
#include "shm/recovery.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;
using test::path;

constexpr int kPartsMax = 50;

class ReapInScanTest : public ::testing::Test {
 protected:
  // Begins, allocates and publishes `published` of the pages.
  static Sequence open(Worker& worker, const std::vector<std::uint32_t>& pages, std::size_t published) {
    Sequence sequence;
    BeginReport report;
    PublishReport done;
    const std::vector<std::uint32_t> tokens = path(4, pages);
    EXPECT_TRUE(worker.begin(LocalCache::name_space(), tokens, {}, sequence, report));
    EXPECT_TRUE(worker.allocate(sequence, tokens.size(), 0));
    EXPECT_TRUE(worker.publish(sequence, published * 4, done));
    return sequence;
  }
};

TEST_F(ReapInScanTest, NothingIsLostWhereverTheReapComes) {
  int parts = kPartsMax;
  for (int reap_at = 0; reap_at < parts; ++reap_at) {
    LocalCache cache{LocalCacheOptions{}};
    auto lives = cache.worker(1);
    auto dies = cache.worker(2);
    Sequence old = open(*lives, {1, 2, 3}, 3);
    lives->release(old);
    Sequence held = open(*lives, {5, 6}, 2);
    const Sequence lost = open(*dies, {1, 2, 3, 4, 7}, 4);  // Live, Pending, and a lease
    const Sequence more = open(*dies, {8, 9}, 0);

    Evictor evictor(cache.segment());
    int part = 0;
    const auto between = [&] {
      if (part++ == reap_at) (void)reap_worker(cache.segment(), {2});
      return false;
    };
    const EvictReport report = evictor.evict(64, between, [](double) {});
    parts = part;
    EXPECT_FALSE(report.interrupted);
    EXPECT_EQ(cache.count_state(PageState::kWriting) + cache.count_state(PageState::kPending), 0U) << reap_at;
    EXPECT_EQ(cache.count_state(PageState::kCondemned) + cache.count_state(PageState::kRetiring), 0U) << reap_at;
    EXPECT_EQ(FreePages(cache.segment()).count(), cache.count_state(PageState::kFree)) << reap_at;
    Sequence again;
    BeginReport found;
    ASSERT_TRUE(lives->begin(LocalCache::name_space(), path(4, {5, 6}), {}, again, found));
    EXPECT_EQ(found.cached_pages, 2U) << "what is leased stays, reap at " << reap_at;
    lives->release(again);
    lives->release(held);
    const std::uint64_t live = cache.count_state(PageState::kLive);
    EXPECT_EQ(cache.evict(64), live) << reap_at;
    EXPECT_EQ(cache.count_state(PageState::kFree), 64U) << reap_at;
  }
  EXPECT_GT(parts, 4) << "it was asked in the midst of the scan";
  EXPECT_LT(parts, kPartsMax);
}

// A page of the dead is taken again, by who lives, and announced below a leaf that the scan has seen.
TEST_F(ReapInScanTest, APageTakenAgainKeepsItsNewParent) {
  LocalCacheOptions options;
  options.pages = 64;
  LocalCache cache{options};
  auto lives = cache.worker(1);
  auto dies = cache.worker(2);
  Sequence leaf = open(*lives, {1}, 1);
  lives->release(leaf);
  const Sequence all_else = open(*dies, std::vector<std::uint32_t>(63, 2), 0);

  Evictor evictor(cache.segment());
  int part = 0;
  Sequence below;
  const auto between = [&] {
    if (++part != 4) return false;  // the children were counted; next the leaves are ranked
    (void)reap_worker(cache.segment(), {2});
    below = open(*lives, {1, 9}, 2);
    lives->release(below);
    return false;
  };
  EXPECT_EQ(evictor.evict(1, between, [](double) {}).evicted, 0U);
  Sequence again;
  BeginReport found;
  ASSERT_TRUE(lives->begin(LocalCache::name_space(), path(4, {1, 9}), {}, again, found));
  EXPECT_EQ(found.cached_pages, 2U);
  lives->release(again);
}

}  // namespace
}  // namespace kvtrie
