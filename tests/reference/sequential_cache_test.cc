// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Cases small enough to be computed by hand. One token a page, so a prompt's tokens are its pages.
#include "tests/reference/sequential_cache.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <utility>

#include "tools/replay/random.h"

namespace kvtrie::reference {
namespace {

// Evicts exactly what is asked for: no watermarks.
CacheOptions exact_pool(std::uint32_t pages) {
  return {.pages = pages, .tokens_per_page = 1, .low_percent = 0, .high_percent = 0};
}

// A request from begin to release. Returns the pages that it found cached.
std::uint32_t serve(SequentialCache& cache, const Tokens& prompt, std::uint32_t name_space = 0,
                    std::uint32_t output_pages = 0) {
  const BeginResult begun = cache.begin(name_space, prompt);
  const auto total = static_cast<std::uint32_t>(prompt.size()) + output_pages;
  EXPECT_EQ(cache.allocate(begun.request, total), AllocateResult::kOk);
  cache.publish(begun.request, prompt.size());
  cache.release(begun.request);
  EXPECT_EQ(cache.find_violation(), "");
  return begun.matched_pages;
}

std::set<Tokens> cached(const SequentialCache& cache, std::uint32_t name_space = 0) {
  std::set<Tokens> paths;
  for (const CachedPath& path : cache.cached_paths()) {
    if (path.name_space == name_space) paths.insert(path.tokens);
  }
  return paths;
}

using Paths = std::set<Tokens>;

TEST(SequentialCacheTest, MatchesTheLongestPublishedPrefix) {
  SequentialCache cache(exact_pool(16));
  EXPECT_EQ(serve(cache, {1, 2, 3}), 0U);
  EXPECT_EQ(serve(cache, {1, 2, 3}), 3U);
  EXPECT_EQ(serve(cache, {1, 2, 4}), 2U);
  EXPECT_EQ(serve(cache, {2, 3}), 0U);
  EXPECT_EQ(serve(cache, {}), 0U);
  EXPECT_EQ(cached(cache), (Paths{{1}, {1, 2}, {1, 2, 3}, {1, 2, 4}, {2}, {2, 3}}));
  EXPECT_EQ(cache.cached_pages(), 6U);
  EXPECT_EQ(cache.free_pages(), 10U);
}

TEST(SequentialCacheTest, OnlyFullPagesAreMatchedAndPublished) {
  SequentialCache cache({.pages = 16, .tokens_per_page = 4, .low_percent = 0, .high_percent = 0});
  const Tokens prompt = {1, 2, 3, 4, 5, 6};
  const BeginResult begun = cache.begin(0, prompt);
  ASSERT_EQ(cache.allocate(begun.request, 2), AllocateResult::kOk);
  EXPECT_EQ(cache.publish(begun.request, 3).published_pages, 0U);
  EXPECT_EQ(cache.publish(begun.request, 6).published_pages, 1U);
  cache.release(begun.request);
  EXPECT_EQ(cached(cache), (Paths{{1, 2, 3, 4}}));
  EXPECT_EQ(cache.free_pages(), 15U);
}

TEST(SequentialCacheTest, NamespacesShareNothing) {
  SequentialCache cache(exact_pool(16));
  serve(cache, {1, 2}, 0);
  EXPECT_EQ(serve(cache, {1, 2}, 1), 0U);
  EXPECT_EQ(cache.cached_pages(), 4U);
  EXPECT_EQ(cached(cache, 1), (Paths{{1}, {1, 2}}));
}

TEST(SequentialCacheTest, EvictsTheLeastRecentlyUsedLeaf) {
  SequentialCache cache(exact_pool(4));
  for (const Token token : {1U, 2U, 3U, 4U})
    serve(cache, {token});
  EXPECT_EQ(serve(cache, {1}), 1U);
  serve(cache, {5});
  EXPECT_EQ(cached(cache), (Paths{{1}, {3}, {4}, {5}}));
  serve(cache, {6});
  EXPECT_EQ(cached(cache), (Paths{{1}, {4}, {5}, {6}}));
  EXPECT_EQ(cache.counters().evictions, 2U);
}

TEST(SequentialCacheTest, EvictsLeavesBeforeTheirParents) {
  SequentialCache cache(exact_pool(3));
  serve(cache, {1, 2, 3});
  serve(cache, {4});
  EXPECT_EQ(cached(cache), (Paths{{1}, {1, 2}, {4}}));
  serve(cache, {5});
  EXPECT_EQ(cached(cache), (Paths{{1}, {4}, {5}}));
}

TEST(SequentialCacheTest, InteriorPageKeepsItsOwnLaterTouch) {
  SequentialCache cache(exact_pool(4));
  serve(cache, {1, 2, 3});
  serve(cache, {9});
  serve(cache, {1});  // touches page 1 only, after 9
  serve(cache, {5, 6, 7});
  EXPECT_EQ(cached(cache), (Paths{{1}, {5}, {5, 6}, {5, 6, 7}}));
}

TEST(SequentialCacheTest, ParentInheritsTheStampOfItsEvictedChild) {
  SequentialCache cache(exact_pool(8));
  serve(cache, {1, 2});
  serve(cache, {9});
  const BeginResult nine = cache.begin(0, Tokens{9});
  serve(cache, {1, 2});  // touches page 2 only, after 9
  ASSERT_EQ(cache.evict(6), 1U);
  ASSERT_EQ(cached(cache), (Paths{{1}, {9}}));  // 9 is leased, so 2 went
  cache.release(nine.request);
  ASSERT_EQ(cache.evict(7), 1U);
  EXPECT_EQ(cached(cache), (Paths{{1}}));  // page 1 is as young as 2 was
}

TEST(SequentialCacheTest, WatermarksAreRoundedUp) {
  const SequentialCache cache({.pages = 150, .low_percent = 1, .high_percent = 3});
  EXPECT_EQ(cache.low_pages(), 2U);
  EXPECT_EQ(cache.high_pages(), 5U);
}

TEST(SequentialCacheTest, FallingBelowLowEvictsUpToHigh) {
  SequentialCache cache({.pages = 100, .tokens_per_page = 1, .low_percent = 5, .high_percent = 10});
  for (Token token = 0; token < 95; ++token)
    serve(cache, {token});
  EXPECT_EQ(cache.free_pages(), 5U);  // at low, not below it
  EXPECT_EQ(cache.counters().evictions, 0U);
  serve(cache, {95});
  EXPECT_EQ(cache.free_pages(), 10U);
  EXPECT_EQ(cache.counters().evictions, 6U);
  const Paths paths = cached(cache);
  for (Token token = 0; token < 96; ++token)
    EXPECT_EQ(paths.contains({token}), token >= 6);
}

TEST(SequentialCacheTest, LargeAllocationEvictsWhatItNeedsAndThenUpToHigh) {
  SequentialCache cache({.pages = 100, .tokens_per_page = 1, .low_percent = 5, .high_percent = 10});
  for (Token token = 0; token < 95; ++token)
    serve(cache, {token});
  Tokens prompt(50);
  for (Token i = 0; i < 50; ++i)
    prompt[i] = 1000 + i;
  const BeginResult begun = cache.begin(0, prompt);
  ASSERT_EQ(cache.allocate(begun.request, 50), AllocateResult::kOk);
  // 45 to have 50 free, all of them taken, then 10 for the high watermark.
  EXPECT_EQ(cache.counters().evictions, 55U);
  EXPECT_EQ(cache.free_pages(), 10U);
  EXPECT_EQ(cache.held_pages(), 50U);
  EXPECT_EQ(cache.cached_pages(), 40U);
}

TEST(SequentialCacheTest, SmallAllocationThatDoesNotFitEvictsUpToHighFirst) {
  SequentialCache cache({.pages = 20, .tokens_per_page = 1, .low_percent = 5, .high_percent = 25});
  for (Token token = 0; token < 19; ++token)
    serve(cache, {token});
  EXPECT_EQ(cache.free_pages(), 1U);
  const BeginResult begun = cache.begin(0, Tokens{100, 101});
  ASSERT_EQ(cache.allocate(begun.request, 2), AllocateResult::kOk);
  EXPECT_EQ(cache.counters().evictions, 4U);  // to 5 free; 3 are left, which is above low
  EXPECT_EQ(cache.free_pages(), 3U);
}

TEST(SequentialCacheTest, AllocationNeverEvictsWhatTheRequestMatched) {
  SequentialCache cache(exact_pool(4));
  serve(cache, {1, 2});
  serve(cache, {7});
  const BeginResult begun = cache.begin(0, Tokens{1, 2, 3, 4});
  EXPECT_EQ(begun.matched_pages, 2U);
  ASSERT_EQ(cache.allocate(begun.request, 4), AllocateResult::kOk);
  EXPECT_EQ(cached(cache), (Paths{{1}, {1, 2}}));
  EXPECT_EQ(cache.publish(begun.request, 4).canonical_pages, 4U);
  EXPECT_EQ(cache.find_violation(), "");
}

TEST(SequentialCacheTest, FullHitProtectsItsPath) {
  SequentialCache cache(exact_pool(3));
  serve(cache, {1, 2});
  const BeginResult hit = cache.begin(0, Tokens{1, 2});
  const BeginResult other = cache.begin(0, Tokens{5, 6});
  EXPECT_EQ(cache.allocate(other.request, 2), AllocateResult::kNotNow);
  EXPECT_EQ(cached(cache), (Paths{{1}, {1, 2}}));
  cache.release(hit.request);
  EXPECT_EQ(cache.allocate(other.request, 2), AllocateResult::kOk);
  EXPECT_EQ(cached(cache), (Paths{{1}}));
}

TEST(SequentialCacheTest, PublishedPagesStayProtectedUntilRelease) {
  SequentialCache cache(exact_pool(2));
  const BeginResult begun = cache.begin(0, Tokens{1, 2});
  ASSERT_EQ(cache.allocate(begun.request, 2), AllocateResult::kOk);
  cache.publish(begun.request, 1);
  EXPECT_EQ(cache.evict(1), 0U);  // its child is Pending
  cache.publish(begun.request, 2);
  EXPECT_EQ(cache.evict(1), 0U);  // leased
  cache.release(begun.request);
  EXPECT_EQ(cache.evict(2), 2U);
}

TEST(SequentialCacheTest, PublishingTouches) {
  SequentialCache cache(exact_pool(4));
  const BeginResult begun = cache.begin(0, Tokens{1});
  ASSERT_EQ(cache.allocate(begun.request, 1), AllocateResult::kOk);
  serve(cache, {9});
  cache.publish(begun.request, 1);
  cache.release(begun.request);
  ASSERT_EQ(cache.evict(3), 1U);
  EXPECT_EQ(cached(cache), (Paths{{1}}));
}

TEST(SequentialCacheTest, NotNowEvictsAllThatItMayAndTakesNothing) {
  SequentialCache cache(exact_pool(4));
  serve(cache, {1});
  const BeginResult holder = cache.begin(0, Tokens{});
  ASSERT_EQ(cache.allocate(holder.request, 2), AllocateResult::kOk);
  const BeginResult begun = cache.begin(0, Tokens{5, 6, 7});
  EXPECT_EQ(cache.allocate(begun.request, 3), AllocateResult::kNotNow);
  EXPECT_EQ(cache.free_pages(), 2U);
  EXPECT_EQ(cache.held_pages(), 2U);
  EXPECT_EQ(cached(cache), Paths{});
  cache.release(holder.request);
  EXPECT_EQ(cache.allocate(begun.request, 3), AllocateResult::kOk);
  EXPECT_EQ(cache.counters().not_now, 1U);
}

TEST(SequentialCacheTest, MoreThanThePoolIsNever) {
  SequentialCache cache(exact_pool(4));
  serve(cache, {1});
  const BeginResult begun = cache.begin(0, Tokens{1, 2, 3, 4, 5});
  EXPECT_EQ(cache.allocate(begun.request, 5), AllocateResult::kNever);
  EXPECT_EQ(cache.counters().evictions, 0U);
  EXPECT_EQ(cache.allocate(begun.request, 4), AllocateResult::kOk);
  EXPECT_EQ(cache.counters().never, 1U);
}

TEST(SequentialCacheTest, AllocateCountsFromTheStartOfThePrompt) {
  SequentialCache cache(exact_pool(16));
  serve(cache, {1, 2});
  const BeginResult begun = cache.begin(0, Tokens{1, 2, 3});
  ASSERT_EQ(cache.allocate(begun.request, 2), AllocateResult::kOk);
  EXPECT_EQ(cache.held_pages(), 0U);
  ASSERT_EQ(cache.allocate(begun.request, 5), AllocateResult::kOk);
  EXPECT_EQ(cache.held_pages(), 3U);
  ASSERT_EQ(cache.allocate(begun.request, 6), AllocateResult::kOk);
  EXPECT_EQ(cache.held_pages(), 4U);
  cache.release(begun.request);
  EXPECT_EQ(cache.free_pages(), 14U);
}

TEST(SequentialCacheTest, ReleaseKeepsWhatIsPublishedAndFreesTheRest) {
  SequentialCache cache(exact_pool(8));
  const BeginResult begun = cache.begin(0, Tokens{1, 2, 3, 4});
  ASSERT_EQ(cache.allocate(begun.request, 6), AllocateResult::kOk);
  EXPECT_EQ(cache.publish(begun.request, 2).published_pages, 2U);
  EXPECT_EQ(cache.held_pages(), 4U);
  cache.release(begun.request);
  EXPECT_EQ(cached(cache), (Paths{{1}, {1, 2}}));
  EXPECT_EQ(cache.free_pages(), 6U);
  EXPECT_EQ(cache.open_requests(), 0U);
}

TEST(SequentialCacheTest, AnswerIsPublishedWhenItsTokensAreKnown) {
  SequentialCache cache(exact_pool(8));
  const BeginResult begun = cache.begin(0, Tokens{1, 2});
  ASSERT_EQ(cache.allocate(begun.request, 4), AllocateResult::kOk);
  EXPECT_EQ(cache.publish(begun.request, 4).published_pages, 2U);
  cache.append(begun.request, Tokens{3, 4});
  EXPECT_EQ(cache.publish(begun.request, 3).published_pages, 1U);
  cache.release(begun.request);
  EXPECT_EQ(cached(cache), (Paths{{1}, {1, 2}, {1, 2, 3}}));
  EXPECT_EQ(cache.find_violation(), "");
}

TEST(SequentialCacheTest, BeginStopsAtPendingPages) {
  SequentialCache cache(exact_pool(8));
  serve(cache, {1});
  const BeginResult first = cache.begin(0, Tokens{1, 2});
  ASSERT_EQ(cache.allocate(first.request, 2), AllocateResult::kOk);
  const BeginResult second = cache.begin(0, Tokens{1, 2});
  EXPECT_EQ(second.matched_pages, 1U);
  EXPECT_TRUE(second.stopped_at_pending);
  cache.publish(first.request, 2);
  const BeginResult third = cache.begin(0, Tokens{1, 2});
  EXPECT_EQ(third.matched_pages, 2U);
  EXPECT_FALSE(third.stopped_at_pending);
}

// Two requests with one prompt, both begun before either has allocated.
class DuplicatesTest : public ::testing::Test {
 protected:
  void start(const Tokens& first, const Tokens& second) {
    first_ = cache_.begin(0, first).request;
    second_ = cache_.begin(0, second).request;
    ASSERT_EQ(cache_.allocate(first_, static_cast<std::uint32_t>(first.size())),
              AllocateResult::kOk);
    ASSERT_EQ(cache_.allocate(second_, static_cast<std::uint32_t>(second.size())),
              AllocateResult::kOk);
    ASSERT_EQ(cache_.counters().duplicates, 1U);
    ASSERT_EQ(cache_.find_violation(), "");
  }
  void TearDown() override { EXPECT_EQ(cache_.find_violation(), ""); }

  SequentialCache cache_{exact_pool(16)};
  RequestId first_{};
  RequestId second_{};
};

TEST_F(DuplicatesTest, FirstAnnouncerIsCanonical) {
  start({1, 2}, {1, 2});
  EXPECT_EQ(cache_.publish(second_, 2).published_pages, 0U);
  EXPECT_EQ(cached(cache_), Paths{});
  EXPECT_EQ(cache_.publish(first_, 2).published_pages, 2U);
  EXPECT_EQ(cache_.cached_pages(), 2U);
  EXPECT_EQ(cache_.held_pages(), 2U);
}

TEST_F(DuplicatesTest, ReleaseOfOneLeavesThePagesOfTheOther) {
  start({1, 2}, {1, 2});
  cache_.publish(first_, 2);
  cache_.release(second_);
  EXPECT_EQ(cached(cache_), (Paths{{1}, {1, 2}}));
  EXPECT_EQ(cache_.free_pages(), 14U);
  EXPECT_EQ(cache_.evict(16), 0U);  // the first still protects them
}

TEST_F(DuplicatesTest, SecondJoinsTheCanonicalPagesAndGoesOnBelow) {
  start({1, 2}, {1, 2, 3});
  cache_.publish(first_, 2);
  cache_.release(first_);
  const PublishResult published = cache_.publish(second_, 3);
  EXPECT_EQ(published.published_pages, 1U);
  EXPECT_EQ(published.canonical_pages, 3U);
  EXPECT_EQ(cache_.held_pages(), 2U);  // its copies of 1 and 2
  EXPECT_EQ(cache_.evict(16), 0U);
  cache_.release(second_);
  EXPECT_EQ(cached(cache_), (Paths{{1}, {1, 2}, {1, 2, 3}}));
  EXPECT_EQ(cache_.free_pages(), 13U);
}

TEST_F(DuplicatesTest, JoiningTouchesTheCanonicalPage) {
  start({1}, {1});
  cache_.publish(first_, 1);
  cache_.release(first_);
  serve(cache_, {5});
  EXPECT_EQ(cache_.publish(second_, 1).canonical_pages, 1U);
  cache_.release(second_);
  EXPECT_EQ(cache_.evict(15), 1U);
  EXPECT_EQ(cached(cache_), (Paths{{1}}));
}

TEST_F(DuplicatesTest, SecondStopsBeforeAPendingPageAndTriesAgain) {
  start({1, 2}, {1, 2, 3});
  cache_.publish(first_, 1);
  const PublishResult partly = cache_.publish(second_, 3);
  EXPECT_EQ(partly.published_pages, 0U);
  EXPECT_EQ(partly.canonical_pages, 1U);
  cache_.publish(first_, 2);
  EXPECT_EQ(cache_.publish(second_, 3).canonical_pages, 3U);
}

TEST_F(DuplicatesTest, SecondAnnouncesItsOwnWhenTheFirstGivesUp) {
  start({1, 2}, {1, 2, 3});
  cache_.release(first_);
  EXPECT_EQ(cache_.free_pages(), 13U);
  EXPECT_EQ(cache_.publish(second_, 3).published_pages, 3U);
  cache_.release(second_);
  EXPECT_EQ(cached(cache_), (Paths{{1}, {1, 2}, {1, 2, 3}}));
}

TEST_F(DuplicatesTest, AllBelowADuplicateIsPrivate) {
  start({1}, {1, 2, 3});
  const BeginResult third = cache_.begin(0, Tokens{1, 2, 3});
  EXPECT_TRUE(third.stopped_at_pending);
  ASSERT_EQ(cache_.allocate(third.request, 3), AllocateResult::kOk);
  cache_.publish(first_, 1);
  // Nobody has 2 in the trie yet: whoever publishes first gets it.
  EXPECT_EQ(cache_.publish(third.request, 3).published_pages, 2U);
  EXPECT_EQ(cache_.publish(second_, 3).published_pages, 0U);
}

TEST(SequentialCacheTest, TouchOnceATickSkipsALaterTouchInIt) {
  for (const bool once : {false, true}) {
    CacheOptions options = exact_pool(2);
    options.touch_once_a_tick = once;
    SequentialCache cache(options);
    cache.set_tick(1);
    serve(cache, {1});
    serve(cache, {2});
    serve(cache, {1});
    serve(cache, {3});
    EXPECT_EQ(cached(cache), once ? (Paths{{2}, {3}}) : (Paths{{1}, {3}}));
    cache.set_tick(2);
    EXPECT_EQ(serve(cache, {3}), 1U);
  }
}

TEST(SequentialCacheTest, EvictionByHandWhenAllocateDoesNotEvict) {
  CacheOptions options = exact_pool(2);
  options.evict_in_allocate = false;
  SequentialCache cache(options);
  serve(cache, {1});
  serve(cache, {2});
  const BeginResult begun = cache.begin(0, Tokens{3});
  EXPECT_EQ(cache.allocate(begun.request, 1), AllocateResult::kNotNow);
  EXPECT_EQ(cache.evict(1), 1U);
  EXPECT_EQ(cache.allocate(begun.request, 1), AllocateResult::kOk);
  EXPECT_EQ(cached(cache), (Paths{{2}}));
}

TEST(SequentialCacheTest, RequestThatIsNotOpenIsRefused) {
  SequentialCache cache(exact_pool(2));
  const BeginResult begun = cache.begin(0, Tokens{1});
  cache.release(begun.request);
  EXPECT_THROW(cache.release(begun.request), std::out_of_range);
  EXPECT_THROW(cache.publish(begun.request, 1), std::out_of_range);
}

// Few tokens and a small pool: prefixes, duplicates and evictions are frequent.
TEST(SequentialCacheTest, StaysConsistentUnderRandomOperations) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    replay::Random random(seed);
    SequentialCache cache(
        {.pages = 24, .tokens_per_page = 2, .low_percent = 10, .high_percent = 20});
    std::vector<std::pair<RequestId, std::size_t>> open;
    std::uint64_t published = 0;
    for (int step = 0; step < 2000; ++step) {
      const std::uint64_t choice = random.below(10);
      if (open.empty() || (choice < 3 && open.size() < 5)) {
        Tokens prompt(random.below(15));
        for (std::size_t i = 0; i < prompt.size(); ++i) {
          prompt[i] = i % 2 == 0 ? static_cast<Token>(random.below(2)) : 0;
        }
        open.emplace_back(cache.begin(static_cast<std::uint32_t>(random.below(2)), prompt).request,
                          prompt.size());
      } else {
        const std::size_t which = random.below(open.size());
        const auto [request, tokens] = open[which];
        if (choice < 6) {
          (void)cache.allocate(request, static_cast<std::uint32_t>(random.below(9)));
        } else if (choice < 9) {
          published += cache.publish(request, random.below(tokens + 1)).published_pages;
        } else {
          cache.release(request);
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
        }
      }
      ASSERT_EQ(cache.find_violation(), "") << "seed " << seed << " step " << step;
    }
    for (const auto& [request, tokens] : open)
      cache.release(request);
    EXPECT_EQ(cache.held_pages(), 0U);
    EXPECT_EQ(cache.cached_pages() + cache.counters().evictions, published);
    EXPECT_GT(cache.counters().duplicates, 0U);
    EXPECT_GT(cache.counters().evictions, 0U);
    cache.evict(24);
    EXPECT_EQ(cache.free_pages(), 24U);
  }
}

}  // namespace
}  // namespace kvtrie::reference
