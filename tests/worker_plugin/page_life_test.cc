// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A page's life through one or two workers and the evictor, step by step; and the four faults of the project's
// origin (DESIGN: allocation evicts what was matched, releasing frees another's duplicate, a full hit is not
// protected, an interior node is evicted under its children).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <numeric>
#include <ostream>
#include <string>
#include <string_view>

#include "shm/mutant.h"
#include "shm/recovery.h"
#include "shm/stripe_index.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;
using test::path;

constexpr char kMutantVariable[] = "KVTRIE_TEST_MUTANT";  // takes a protection out, see OriginTest

class PageLifeTest : public ::testing::Test {
 protected:
  void SetUp() override {
#ifdef KVTRIE_DEV
    if (const char* name = std::getenv(kMutantVariable)) {
      const auto* found = std::ranges::find(kMutantNames, std::string_view(name));
      ASSERT_NE(found, std::end(kMutantNames)) << name;
      active_mutant.store(static_cast<Mutant>(found - std::begin(kMutantNames)));
    }
#endif
  }
  // Begins, allocates and publishes all pages of `pages`.
  Sequence cached(Worker& worker, const std::vector<std::uint32_t>& pages) {
    cache_.set_tick(++tick_);
    Sequence sequence;
    BeginReport report;
    const std::vector<std::uint32_t> tokens = path(4, pages);
    EXPECT_TRUE(worker.begin(LocalCache::name_space(), tokens, {}, sequence, report));
    EXPECT_TRUE(worker.allocate(sequence, tokens.size(), 0));
    PublishReport published;
    EXPECT_TRUE(worker.publish(sequence, tokens.size(), published));
    return sequence;
  }
  std::uint32_t hits(Worker& worker, const std::vector<std::uint32_t>& pages) {
    Sequence sequence;
    BeginReport report;
    EXPECT_TRUE(worker.begin(LocalCache::name_space(), path(4, pages), {}, sequence, report));
    worker.release(sequence);
    return report.cached_pages;
  }

  LocalCache cache_{LocalCacheOptions{}};
  std::uint32_t tick_ = 0;
};

TEST_F(PageLifeTest, PublishedPagesAreFoundByAnotherWorker) {
  auto a = cache_.worker(1);
  auto b = cache_.worker(2);
  Sequence sequence = cached(*a, {1, 2, 3});
  EXPECT_EQ(hits(*b, {1, 2, 3, 4}), 3U);
  a->release(sequence);
  EXPECT_EQ(hits(*b, {1, 2, 9}), 2U);
  EXPECT_EQ(hits(*b, {9, 2, 3}), 0U);
  EXPECT_EQ(cache_.count_state(PageState::kLive), 3U);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 61U);
}

TEST_F(PageLifeTest, PendingPagesAreReportedAndNotMatched) {
  auto a = cache_.worker(1);
  auto b = cache_.worker(2);
  Sequence mine;
  BeginReport report;
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, {1, 2}), {}, mine, report));
  ASSERT_TRUE(a->allocate(mine, 8, 0));
  Sequence theirs;
  ASSERT_TRUE(b->begin(LocalCache::name_space(), path(4, {1, 2}), {}, theirs, report));
  EXPECT_EQ(report.cached_pages, 0U);
  EXPECT_FALSE(report.pending.none());
  b->release(theirs);
  a->release(mine);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 64U);
  EXPECT_EQ(hits(*b, {1, 2}), 0U);
}

// Its announcer died after the Pending store and before the index entry, so the key was another's to announce.
TEST_F(PageLifeTest, APendingPageThatIsNotCanonicalHidesNothing) {
  auto a = cache_.worker(1);
  auto b = cache_.worker(2);
  const Segment& segment = cache_.segment();
  Sequence dead;
  BeginReport report;
  PublishReport published;
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, {1, 2}), {}, dead, report));
  ASSERT_TRUE(a->allocate(dead, 8, 0));
  ASSERT_TRUE(a->publish(dead, 4, published));
  const PageIndex lost = dead.page_at(1);
  ASSERT_EQ(lost.value, dead.page_at(0).value + 1) << "where a walk looks first";
  ASSERT_TRUE(StripeIndex(segment).remove(segment.descriptor(lost).prefix_hash.load(), lost));

  Sequence found = cached(*b, {1, 2, 3});
  b->release(found);
  Sequence other = cached(*b, {1, 9});  // the child hint names another child now
  b->release(other);
  Sequence again;
  ASSERT_TRUE(b->begin(LocalCache::name_space(), path(4, {1, 2, 3}), {}, again, report));
  EXPECT_EQ(report.cached_pages, 3U);
  EXPECT_TRUE(report.pending.none()) << "all of it was found";
  b->release(again);
  (void)reap_worker(segment, {1});
  EXPECT_EQ(hits(*b, {1, 2, 3}), 3U);
}

TEST_F(PageLifeTest, SecondOfAKeyStaysPrivateAndLinksToTheFirst) {
  auto a = cache_.worker(1);
  auto b = cache_.worker(2);
  Sequence first, second;
  BeginReport report;
  PublishReport published;
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, {1, 2}), {}, first, report));
  ASSERT_TRUE(b->begin(LocalCache::name_space(), path(4, {1, 2, 3}), {}, second, report));
  ASSERT_TRUE(a->allocate(first, 8, 0));
  ASSERT_TRUE(b->allocate(second, 12, 0));
  ASSERT_TRUE(b->publish(second, 12, published));  // the canonical pages are still Pending
  EXPECT_EQ(published.pages_published, 0U);
  ASSERT_TRUE(a->publish(first, 8, published));
  EXPECT_EQ(published.pages_published, 2U);
  ASSERT_TRUE(b->publish(second, 12, published));  // links to a's two pages, publishes its third below them
  EXPECT_EQ(published.pages_published, 1U);
  EXPECT_EQ(published.pages_private, 2U);
  a->release(first);
  EXPECT_EQ(cache_.evict(64), 0U) << "the second holds the whole path";
  b->release(second);
  EXPECT_EQ(hits(*a, {1, 2, 3}), 3U);
  EXPECT_EQ(cache_.count_state(PageState::kLive), 3U);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 61U);
}

TEST_F(PageLifeTest, EvictionTakesTheLeastRecentlyUsedLeafFirst) {
  auto a = cache_.worker(1);
  for (const auto& pages : {std::vector<std::uint32_t>{1, 2}, {1, 3}, {4}}) {
    Sequence sequence = cached(*a, pages);
    a->release(sequence);
  }
  cache_.set_tick(++tick_);
  EXPECT_EQ(hits(*a, {1, 2}), 2U);
  EXPECT_EQ(cache_.evict(1), 1U);
  EXPECT_EQ(hits(*a, {1, 3}), 1U);
  EXPECT_EQ(cache_.evict(1), 1U);
  EXPECT_EQ(hits(*a, {4}), 0U);
  EXPECT_EQ(cache_.evict(64), 2U);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 64U);
}

TEST_F(PageLifeTest, NothingUnderALeaseIsEvicted) {
  auto a = cache_.worker(1);
  Sequence sequence = cached(*a, {1, 2, 3});
  EXPECT_EQ(cache_.evict(64), 0U);
  a->release(sequence);
  EXPECT_EQ(cache_.evict(2), 2U);
  EXPECT_EQ(hits(*a, {1, 2, 3}), 1U);
}

TEST_F(PageLifeTest, DeadWorkerLeavesNothing) {
  auto a = cache_.worker(1);
  auto b = cache_.worker(2);
  Sequence sequence = cached(*a, {1, 2});
  Sequence more;
  BeginReport report;
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, {1, 2, 3, 4, 5}), {}, more, report));
  ASSERT_TRUE(a->allocate(more, 28, 0));
  const ReapReport reaped = reap_worker(cache_.segment(), {1});
  EXPECT_EQ(reaped.pages, 5U);
  EXPECT_EQ(reaped.leases, 2U);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 62U);
  EXPECT_EQ(FreePages(cache_.segment()).count(), 62U);
  EXPECT_EQ(hits(*b, {1, 2, 3}), 2U);
}

// --- the four faults of the origin ------------------------------------------------------------------------------

TEST_F(PageLifeTest, Origin1AllocationNeverEvictsWhatTheRequestMatched) {
  auto a = cache_.worker(1);
  std::vector<std::uint32_t> all(64);
  std::iota(all.begin(), all.end(), 1);
  Sequence old = cached(*a, all);  // the whole pool
  a->release(old);
  Sequence sequence;
  BeginReport report;
  std::vector<std::uint32_t> wanted(all.begin(), all.begin() + 40);
  for (std::uint32_t i = 0; i < 24; ++i) wanted.push_back(1000 + i);
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, wanted), {}, sequence, report));
  ASSERT_EQ(report.cached_pages, 40U);
  EXPECT_EQ(a->allocate(sequence, wanted.size() * 4, 0).code(), Code::kNotNow);
  cache_.keeper().pass([] { return false; });
  ASSERT_TRUE(a->allocate(sequence, wanted.size() * 4, 0));
  std::vector<bool> seen(64);
  for (std::uint32_t p = 0; p < sequence.positions(); ++p) {
    EXPECT_FALSE(seen[sequence.page_at(p).value]) << "page handed out twice";
    seen[sequence.page_at(p).value] = true;
  }
  a->release(sequence);

  // With some of the others in use there is no room, and what was matched is none.
  auto b = cache_.worker(2);
  Sequence in_use;
  ASSERT_TRUE(b->begin(LocalCache::name_space(), path(4, {2000}), {}, in_use, report));
  ASSERT_TRUE(b->allocate(in_use, 40, 0));
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, wanted), {}, sequence, report));
  ASSERT_EQ(report.cached_pages, 40U);
  EXPECT_EQ(a->allocate(sequence, wanted.size() * 4, 0).code(), Code::kNotNow);
  cache_.keeper().pass([] { return false; });
  EXPECT_EQ(a->allocate(sequence, wanted.size() * 4, 0).code(), Code::kNotNow);
  EXPECT_EQ(hits(*b, wanted), 40U);
}

TEST_F(PageLifeTest, Origin2ReleasingOneRequestLeavesAnothersDuplicatesAlone) {
  auto a = cache_.worker(1);
  auto b = cache_.worker(2);
  Sequence first, second;
  BeginReport report;
  PublishReport published;
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, {1, 2}), {}, first, report));
  ASSERT_TRUE(b->begin(LocalCache::name_space(), path(4, {1, 2}), {}, second, report));
  ASSERT_TRUE(a->allocate(first, 8, 0));
  ASSERT_TRUE(b->allocate(second, 8, 0));
  ASSERT_TRUE(a->publish(first, 8, published));
  ASSERT_TRUE(b->publish(second, 8, published));
  const PageIndex page = second.page_at(1);
  a->release(first);
  const StateWord word{cache_.segment().descriptor(page).state.load()};
  EXPECT_EQ(word.state(), PageState::kWriting);
  EXPECT_EQ(word.owner(), WorkerId{2});
  b->release(second);
  EXPECT_EQ(cache_.count_state(PageState::kFree), 62U);
}

TEST_F(PageLifeTest, Origin3AFullHitIsProtected) {
  auto a = cache_.worker(1);
  Sequence sequence = cached(*a, {1, 2, 3});
  a->release(sequence);
  BeginReport report;
  ASSERT_TRUE(a->begin(LocalCache::name_space(), path(4, {1, 2, 3}), {}, sequence, report));
  ASSERT_EQ(report.cached_pages, 3U);
  EXPECT_EQ(cache_.evict(64), 0U);
  a->release(sequence);
}

TEST_F(PageLifeTest, Origin4NoInteriorPageIsEvictedUnderItsChildren) {
  auto a = cache_.worker(1);
  Sequence parent = cached(*a, {1});
  Sequence child = cached(*a, {1, 2});
  a->release(parent);
  EXPECT_EQ(cache_.evict(64), 0U) << "the parent is older but has a child in use";
  a->release(child);
  EXPECT_EQ(cache_.evict(1), 1U);
  EXPECT_EQ(hits(*a, {1, 2}), 1U) << "the child went first";
}

#ifdef KVTRIE_DEV
// The protection whose absence is the fault.
struct OldBehaviour {
  const char* test;
  const char* mutant;
};
void PrintTo(const OldBehaviour& fault, std::ostream* out) { *out << fault.mutant; }

class OriginTest : public ::testing::TestWithParam<OldBehaviour> {};

TEST_P(OriginTest, FailsOnTheOldBehaviour) {
  const std::string itself = std::filesystem::read_symlink("/proc/self/exe");
  const auto run = [&](const std::string& environment) {
    return std::system(
        fmt::format("{} '{}' --gtest_filter='PageLifeTest.{}*' >/dev/null 2>&1", environment, itself, GetParam().test)
            .c_str());
  };
  EXPECT_EQ(run(""), 0);
  EXPECT_NE(run(fmt::format("{}={}", kMutantVariable, GetParam().mutant)), 0);
}

INSTANTIATE_TEST_SUITE_P(Each, OriginTest,
                         ::testing::Values(OldBehaviour{"Origin1", "evict_without_lease_scan"},
                                           OldBehaviour{"Origin2", "duplicate_supersedes"},
                                           OldBehaviour{"Origin3", "evict_without_lease_scan"},
                                           OldBehaviour{"Origin4", "evict_interior_pages"}),
                         [](const auto& fault) { return std::string(fault.param.test); });
#endif

}  // namespace
}  // namespace kvtrie
