// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/warm_start.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/cache_store.h"
#include "coordinator/device.h"
#include "save/save_format.h"
#include "tests/save/memory_cache.h"
#include "tests/save/temporary_file.h"
#include "tests/support/death_in_child.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

// A file of six pages, and a cache that is made with it.
class WarmStartTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kSavedPages = 6;

  void SetUp() override {
    ASSERT_FALSE(read_host_identity(host_));
    test::MemoryCache source({.tokens_per_page = 16, .page_bytes = 64});
    const NamespaceId a = source.open_namespace("a");
    source.publish(a, {1, 2, 3});
    source.publish(a, {1, 4, 5, 6});
    ASSERT_TRUE(save_cache(source.segment(), source.planes(), file_));
    options_.cache = cache_.name();
    options_.directory = cache_.directory();
    options_.pages = 128;
    options_.page_bytes = 64;
    options_.planes = 2;
    options_.workers = 3;
    options_.namespaces = 4;
    options_.stripes = 4;
    options_.leases = 8;
    options_.load = file_;
  }

  MaybeFailure open(CacheObjects& objects) {
    return open_or_make_cache(
        options_, host_, [this](std::string_view line) { log_ += std::string(line) + "\n"; },
        objects, [this] { return stopped_; });
  }
  // Opens and closes again; why it did not work.
  std::string open_problem() {
    CacheObjects objects;
    const MaybeFailure failure = open(objects);
    return failure ? failure->text : "";
  }
  static std::uint64_t live(const CacheObjects& objects) {
    return PageTable(*objects.segment).stats().of(PageState::kLive);
  }
  // After a start that died: the next one has all, and no more.
  void expect_all_after_death(const std::string& where) {
    CacheObjects objects;
    const MaybeFailure failure = open(objects);
    ASSERT_FALSE(failure) << failure->text;
    EXPECT_EQ(live(objects), kSavedPages) << where;
    EXPECT_TRUE(verify(*objects.segment, {.at_rest = true}).clean()) << where;
    EXPECT_FALSE(std::filesystem::exists(cache_.segment_path() + ".tmp")) << where;
    objects = {};
    remove_cache();
  }
  void remove_cache() {
    (void)remove_object(segment_object_name(cache_.name()));
    remove_planes(cache_.name());
  }
  // What others can see of a start: names and sizes.
  std::string seen_by_others() const {
    std::string seen;
    for (const std::string& path : {cache_.segment_path(), cache_.pool_path(0), cache_.pool_path(1)}) {
      for (const std::string& name : {path, path + ".tmp"}) {
        std::error_code none;
        if (std::filesystem::exists(name)) seen += name + ' ' + std::to_string(std::filesystem::file_size(name, none)) + '\n';
      }
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(cache_.directory())) {
      seen += entry.path().string() + '\n';
    }
    return seen;
  }
  std::uint64_t live_after_open() {
    CacheObjects objects;
    const MaybeFailure failure = open(objects);
    EXPECT_FALSE(failure) << failure->text;
    return live(objects);
  }
  bool nothing_there() const {
    const auto there = [](const std::string& path) { return std::filesystem::exists(path); };
    return !there(cache_.segment_path()) && !there(cache_.segment_path() + ".tmp") &&
           !there(cache_.pool_path(0)) && !there(cache_.pool_path(0) + ".tmp");
  }

  test::TemporaryCache cache_{"warm"};
  test::TemporaryFolder folder_;
  const std::string file_ = folder_.file("cache.save");
  HostIdentity host_;
  Options options_;
  std::string log_;
  bool stopped_ = false;
};

TEST_F(WarmStartTest, ANewCacheStartsWithTheSavedPages) {
  EXPECT_EQ(live_after_open(), kSavedPages);
  EXPECT_NE(log_.find("event=load "), std::string::npos) << log_;
  EXPECT_NE(log_.find(" pages=6 namespaces=1 whole=1 damaged=0 "), std::string::npos) << log_;
}

TEST_F(WarmStartTest, AnAdoptedCacheWins) {
  options_.load.clear();
  EXPECT_EQ(live_after_open(), 0U);
  options_.load = file_;
  EXPECT_EQ(live_after_open(), 0U);
  EXPECT_NE(log_.find("event=not_loaded "), std::string::npos) << log_;
}

TEST_F(WarmStartTest, FreshLoadsAgain) {
  options_.load.clear();
  EXPECT_EQ(live_after_open(), 0U);
  options_.load = file_;
  options_.fresh = true;
  EXPECT_EQ(live_after_open(), kSavedPages);
}

TEST_F(WarmStartTest, RefusesEveryDifferenceAndMakesNothing) {
  const auto refused = [&](const std::string& part) {
    const std::string problem = open_problem();
    EXPECT_NE(problem.find(part), std::string::npos) << problem;
    EXPECT_TRUE(nothing_there()) << part;
  };
  options_.planes = 1;
  refused("it has planes 2, the cache 1");
  options_.planes = 2;
  options_.page_bytes = 128;
  refused("it has page-bytes 64, the cache 128");
  options_.page_bytes = 64;
  options_.tokens_per_page = 32;
  refused("it has tokens-per-page 16, the cache 32");
  options_.tokens_per_page = 16;
  options_.load = folder_.file("none");
  refused("No such file or directory");

  std::string bytes = test::read_file(file_);
  SavePrefix prefix{};
  std::memcpy(&prefix, bytes.data(), sizeof prefix);
  ++prefix.version;
  prefix.checksum = part_checksum(prefix, kSaveMagic);
  std::memcpy(bytes.data(), &prefix, sizeof prefix);
  options_.load = folder_.file("newer");
  test::write_file(options_.load, bytes);
  refused("another format version");
}

TEST_F(WarmStartTest, ARefusedFileCostsNobodyHisCache) {
  EXPECT_EQ(live_after_open(), kSavedPages);
  options_.fresh = true;
  options_.planes = 1;
  EXPECT_NE(open_problem(), "");
  options_.fresh = false;
  options_.planes = 2;
  CacheObjects objects;
  ASSERT_FALSE(open(objects));
  EXPECT_TRUE(objects.adopted);
  EXPECT_EQ(live(objects), kSavedPages);
}

TEST_F(WarmStartTest, ADamagedHeadOrAnEmptyFileGivesAnEmptyCache) {
  std::string bytes = test::read_file(file_);
  bytes[30] = static_cast<char>(bytes[30] ^ 1);
  for (const std::string& damaged : {bytes, std::string()}) {
    test::write_file(file_, damaged);
    options_.fresh = true;
    log_.clear();
    EXPECT_EQ(live_after_open(), 0U);
    EXPECT_NE(log_.find("problem=head"), std::string::npos) << log_;
  }
}

TEST_F(WarmStartTest, ASignalWhileItLoadsEndsTheStartAndMakesNothing) {
  stopped_ = true;
  CacheObjects objects;
  const MaybeFailure failure = open(objects);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->exit_code, kExitStopped);
  EXPECT_TRUE(nothing_there());
}

// A start writes into objects that have no name yet, so between two system calls nothing happens that anybody could see.
// Killed at each call that shows something, and at some between.
TEST_F(WarmStartTest, DiesAtItsSystemCalls) {
  constexpr unsigned kStride = 16;
  const auto start = [&] { (void)open_problem(); };
  std::vector<unsigned> places;
  std::string before = seen_by_others();
  unsigned changes = 0;
  const unsigned calls = test::run_by_calls(start, [&](unsigned n) {
    const std::string now = seen_by_others();
    const bool changed = now != std::exchange(before, now);
    changes += changed ? 1 : 0;
    if (changed || n % kStride == 0) places.push_back(n);
    return true;
  });
  remove_cache();
  EXPECT_GE(changes, 6U) << "segment and two planes, made and renamed";
  EXPECT_GT(calls, 50U);
  for (const unsigned place : places) {
    (void)test::run_by_calls(start, [&](unsigned n) { return n < place; });
    expect_all_after_death("died at call " + std::to_string(place));
    if (HasFatalFailure()) return;
  }
}

#ifdef KVTRIE_DEV

// At every crash point of a start: of the build, of each page's
// announcement, of the load. The next start has all.
TEST_F(WarmStartTest, DiesWhileItLoads) {
  unsigned points = 0;
  while (test::dies_at_passage(points + 1, [&] { (void)open_problem(); })) {
    ++points;
    expect_all_after_death("died at point " + std::to_string(points));
  }
  EXPECT_GT(points, kSavedPages * 6) << "load and announcement have that many";
}

#endif

}  // namespace
}  // namespace kvtrie
