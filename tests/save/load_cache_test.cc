// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/load_cache.h"

#include <algorithm>
#include <random>

#include "save/saved_time.h"
#include "tests/save/memory_cache.h"
#include "tests/save/temporary_file.h"

namespace kvtrie {
namespace {

using test::MemoryCache;
using test::MemoryCacheOptions;
using test::PageKey;

class LoadCacheTest : public testing::Test {
 protected:
  void save(const MemoryCache& cache) {
    const Result<SaveReport> report = save_cache(cache.segment(), cache.planes(), path_);
    ASSERT_TRUE(report) << report.error().what();
  }
  static std::vector<PageKey> keys(const MemoryCache& cache) {
    std::vector<PageKey> found;
    for (const auto& [key, page] : cache.contents())
      found.push_back(key);
    return found;
  }
  // Random paths in two namespaces, touched in random order.
  static void fill(MemoryCache& cache, std::uint32_t seed, std::uint32_t requests) {
    std::mt19937 random(seed);
    const NamespaceId ids[] = {cache.open_namespace("a"), cache.open_namespace("b")};
    for (std::uint32_t i = 0; i < requests; ++i) {
      test::Numbers path;
      for (std::uint32_t depth = 0; depth <= random() % 5; ++depth)
        path.push_back(static_cast<std::uint32_t>(random() % 4));
      if (FreePages(cache.segment()).count() < path.size()) return;
      cache.publish(ids[random() % 2], path);
    }
  }

  test::TemporaryFolder folder_;
  const std::string path_ = folder_.file("cache.save");
};

TEST_F(LoadCacheTest, HasTheSamePagesInAnotherSegment) {
  for (const std::uint32_t tokens_per_page : {1U, 4U, 5U}) {
    MemoryCache cache({.pages = 256, .tokens_per_page = tokens_per_page});
    fill(cache, tokens_per_page, 40);
    save(cache);
    MemoryCache loaded({.pages = 256, .tokens_per_page = tokens_per_page, .hash_secret = 8});
    const auto report = test::load_into(loaded, path_);
    ASSERT_TRUE(report);
    EXPECT_EQ(keys(loaded), keys(cache));
    EXPECT_EQ(report->pages, keys(cache).size());
    EXPECT_TRUE(report->whole);
    EXPECT_EQ(report->namespaces, 2U);
    EXPECT_EQ(loaded.findings(), "");
    EXPECT_EQ(FreePages(loaded.segment()).count(), loaded.segment().page_count() - report->pages);
  }
}

TEST_F(LoadCacheTest, KeepsWhatAPageSaysBesideItsTokens) {
  MemoryCache cache;
  const NamespaceId a = cache.open_namespace("a");
  PageNode extra;
  extra.priority = 5;
  extra.retain_until = 900;
  cache.publish(a, {1, 2}, 3, extra);
  cache.set_tick(500);
  save(cache);
  MemoryCache loaded;
  ASSERT_TRUE(test::load_into(loaded, path_));
  ASSERT_EQ(keys(loaded), keys(cache));
  EXPECT_EQ(loaded.segment().now_tick(), 500U) << "a driven clock goes on";
  const auto [key, page] = *loaded.contents().begin();
  const auto there = cache.contents().at(key);
  const Descriptor& was = cache.segment().descriptor(there);
  for (const auto& [each, is_at] : loaded.contents()) {
    const Descriptor& is = loaded.segment().descriptor(is_at);
    const Descriptor& source = cache.segment().descriptor(cache.contents().at(each));
    EXPECT_EQ(is.token_count.load(), source.token_count.load());
    EXPECT_EQ(is.depth_class.load(), source.depth_class.load()) << "depth and priority";
    EXPECT_EQ(is.retain_until.load(), 900U);
    EXPECT_EQ(is.publisher.load(), 0U);
  }
  EXPECT_EQ(depth_in(was.depth_class.load()), 1U);
  EXPECT_EQ(page.value, 0U) << "pages come to lie in the file's order";
  EXPECT_STREQ(loaded.segment().name_space({0}).label, "a");
}

// The oracle is the evictor: what is left of the source when it
// holds as many pages as the target has.
TEST_F(LoadCacheTest, ASmallerPoolGetsWhatExactLruWouldHaveKept) {
  for (std::uint32_t seed = 1; seed <= 10; ++seed) {
    MemoryCache cache({.pages = 256});
    fill(cache, seed, 200);
    save(cache);
    const std::uint64_t all = keys(cache).size();
    ASSERT_GT(all, 64U) << "too few to leave any out";
    MemoryCache loaded({.pages = 64});
    const auto report = test::load_into(loaded, path_);
    ASSERT_TRUE(report);
    EXPECT_EQ(report->pages, 64U);
    EXPECT_EQ(report->no_room, all - 64);
    cache.evict_down_to(64);
    EXPECT_EQ(keys(loaded), keys(cache)) << "seed " << seed;
    // And goes on as the source would.
    loaded.evict_down_to(20);
    cache.evict_down_to(20);
    EXPECT_EQ(keys(loaded), keys(cache)) << "seed " << seed;
    EXPECT_EQ(loaded.findings(), "");
  }
}

TEST_F(LoadCacheTest, PathsAreRuns) {
  MemoryCache cache({.pages = 128});
  const NamespaceId a = cache.open_namespace("a");
  for (std::uint32_t depth = 1; depth <= 10; ++depth) {  // interleaved in the source
    for (std::uint32_t path = 0; path < 4; ++path) {
      test::Numbers numbers(depth, path);
      cache.publish(a, numbers);
    }
  }
  save(cache);
  MemoryCache loaded({.pages = 128});
  ASSERT_TRUE(test::load_into(loaded, path_));
  std::uint32_t neighbours = 0;
  for (std::uint32_t i = 1; i < 40; ++i) {
    const Handle parent{loaded.segment().descriptor({i}).parent.load()};
    neighbours += parent.is_page() && parent.page_index().value + 1 == i ? 1 : 0;
  }
  EXPECT_EQ(neighbours, 36U) << "four runs of ten";
}

TEST_F(LoadCacheTest, AgesStayAsFarAsTheClockAllows) {
  MemoryCache cache;
  const NamespaceId a = cache.open_namespace("a");
  cache.set_tick(1'000'000'000);
  for (std::uint32_t i = 0; i < 10; ++i)
    cache.publish(a, {i});
  save(cache);
  // A host that is up for less than that: the driven clock's
  // milliseconds become whole seconds, all in tick "now".
  MemoryCache loaded({.clock = ClockKind::kSystem});
  const std::uint32_t now = loaded.segment().now_tick();
  ASSERT_TRUE(test::load_into(loaded, path_));
  for (const auto& [key, page] : loaded.contents()) {
    const TouchWord touch{loaded.segment().descriptor(page).touch.load()};
    EXPECT_LE(touch.tick(), loaded.segment().now_tick());
    EXPECT_GE(touch.tick() + 1, now) << key;
  }
  // Touched 1,000,000 s ago, on a host that started a moment ago: tick 0, in the old order.
  SaveHead head{};
  head.tick_ns = 1'000'000'000'000;
  head.now_tick = 1'000'000;
  const SavedTime time(head, loaded.segment());
  const auto at = [&](std::uint32_t tick, double place) {
    return time.recency(TouchWord::make(tick, 9, 1, 0).raw, place);
  };
  EXPECT_EQ(at(1, 0.5).tick(), 0U);
  EXPECT_GT(at(2, 0.5).stamp(), at(1, 0.6).stamp());
  EXPECT_GT(at(1'000'000, 0.1).stamp(), at(2, 0.5).stamp());
  EXPECT_EQ(time.retain_until(0), 0U);
  EXPECT_GT(time.retain_until(1), loaded.segment().now_tick());
  EXPECT_EQ(time.retain_until(~0U), ~0U);
}

TEST_F(LoadCacheTest, TwoNamespacesMoreThanTheTableHasAreLeftOut) {
  MemoryCache cache({.namespaces = 3});
  for (const char* name : {"a", "b", "c"})
    cache.publish(cache.open_namespace(name), {1, 2});
  save(cache);
  MemoryCache loaded({.namespaces = 1});
  const auto report = test::load_into(loaded, path_);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->namespaces, 1U);
  EXPECT_EQ(report->namespaces_left_out, 2U);
  EXPECT_EQ(report->pages, 2U);
  EXPECT_EQ(report->below_left_out, 4U);
  EXPECT_EQ(loaded.findings(), "");
  (void)loaded.contents();
}

TEST_F(LoadCacheTest, StopsWhenItIsToldTo) {
  MemoryCache cache;
  cache.publish(cache.open_namespace("a"), {1});
  save(cache);
  MemoryCache loaded;
  Result<SavedFile> file = SavedFile::open(path_);
  ASSERT_TRUE(file);
  const Result<LoadReport> report =
      load_cache(*file, loaded.segment(), loaded.planes(), [](const LoadReport&) { return true; });
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code(), Code::kRefused);
}

TEST_F(LoadCacheTest, SaysWhichValueDiffers) {
  MemoryCache cache;
  cache.publish(cache.open_namespace("a"), {1});
  save(cache);
  const Result<SavedFile> file = SavedFile::open(path_);
  ASSERT_TRUE(file);
  Geometry geometry = cache.segment().geometry();
  EXPECT_EQ(file->difference(geometry), "");
  geometry.planes = 1;
  EXPECT_EQ(file->difference(geometry), "it has planes 2, the cache 1");
  geometry.page_bytes = 64;
  EXPECT_EQ(file->difference(geometry), "it has page-bytes 24, the cache 64");
  geometry.tokens_per_page = 16;
  EXPECT_EQ(file->difference(geometry), "it has tokens-per-page 5, the cache 16");
}

}  // namespace
}  // namespace kvtrie
