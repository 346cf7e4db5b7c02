// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/settings.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

class SettingsTest : public testing::Test {
 protected:
  MaybeFailure read(const std::string& text, const std::set<std::string>& overridden = {}) {
    path_ = cache_.directory() + "/kvtried.toml";
    std::ofstream(path_) << text;
    return apply_file(
        path_, [&](std::string_view key) { return overridden.contains(std::string(key)); },
        options_);
  }
  std::string text_of(const std::string& text) {
    const MaybeFailure failure = read(text);
    return failure ? failure->text : "";
  }

  test::TemporaryCache cache_{"settings"};
  std::string path_;
  Options options_;
};

TEST_F(SettingsTest, ReadsBytesWithUnits) {
  EXPECT_EQ(*parse_bytes("4096"), 4096U);
  EXPECT_EQ(*parse_bytes("512K"), 512U * 1024);
  EXPECT_EQ(*parse_bytes("2MiB"), 2U << 20);
  EXPECT_EQ(*parse_bytes("1G"), 1U << 30);
  EXPECT_EQ(*parse_bytes("3TiB"), 3ULL << 40);
  for (const char* text :
       {"", "K", "-1", "1.5K", "4 K", "4KB", "4k", "4Ki", "20000000T", "99999999999999999999"})
    EXPECT_FALSE(parse_bytes(text)) << text;
}

TEST_F(SettingsTest, FileGivesEverySetting) {
  ASSERT_FALSE(read(R"(
    cache = "prod"
    pages = 4096
    tokens-per-page = 32
    page-bytes = "512K"
    planes = 2
    workers = 8
    leases = 100
    namespaces = 10
    stripes = 64
    device = "cuda:0,3"
    huge-pages = true
    numa-node = 1
    mlock = true
    queue-delay-ms = 20
    low = 1.5
    high = 3
    policy = "lru"
    dir = "/srv/kv"
    metrics = "off"
    clock = "driven"
    tick-ns = 5000
    mode = "0660"
    allow-uid = [1000, 1001]
    allow-gid = 50
    load = "/srv/kv.save"
    fresh = true
    prefault = true
    page-checksums = true
    realtime = 5
  )"));
  EXPECT_EQ(options_.cache, "prod");
  EXPECT_EQ(options_.pages, 4096U);
  EXPECT_EQ(options_.page_bytes, 512U * 1024);
  EXPECT_EQ(options_.planes, 2U);
  ASSERT_TRUE(options_.device);
  EXPECT_EQ(options_.device->kind, DeviceKind::kCuda);
  EXPECT_EQ(options_.device->ordinals, (std::vector<int>{0, 3}));
  EXPECT_TRUE(options_.memory.huge_pages && options_.memory.lock);
  EXPECT_EQ(options_.memory.numa_node, 1U);
  EXPECT_EQ(options_.queue_delay_ms, 20U);
  EXPECT_EQ(options_.low_percent, 1.5);
  EXPECT_EQ(options_.high_percent, 3);
  EXPECT_EQ(options_.directory, "/srv/kv");
  EXPECT_EQ(options_.clock, ClockKind::kDriven);
  EXPECT_EQ(options_.tick_ns, 5000U);
  EXPECT_EQ(options_.mode, 0660U);
  EXPECT_EQ(options_.allow_uids, (std::vector<uid_t>{1000, 1001}));
  EXPECT_EQ(options_.allow_gids, (std::vector<gid_t>{50}));
  EXPECT_EQ(options_.load, "/srv/kv.save");
  EXPECT_TRUE(options_.fresh);
  EXPECT_TRUE(options_.prefault);
  EXPECT_TRUE(options_.page_checksums);
  EXPECT_EQ(options_.realtime, 5);
  EXPECT_NE(options_problem(options_), "") << "a load fills host memory only";
  options_.load.clear();
  EXPECT_EQ(options_problem(options_), "");
}

TEST_F(SettingsTest, EverySettingHasAnExampleAbove) {
  // A new setting must be added to FileGivesEverySetting and to coordinator/README.md.
  EXPECT_EQ(settings().size(), 29U);
}

TEST_F(SettingsTest, UnknownKeysAreErrorsThatNameThem) {
  EXPECT_NE(text_of("pages = 64\npagez = 64\n").find(":2: pagez: unknown key"), std::string::npos);
  EXPECT_NE(text_of("[cache]\nname = 'x'\n").find("cache"), std::string::npos);
}

TEST_F(SettingsTest, WrongValuesAreErrorsThatNameTheKey) {
  for (const char* line :
       {"pages = -1", "pages = 'many'", "pages = [1]", "pages = 99999999999999999999",
        "pages = true", "low = 101", "low = 'x'", "page-bytes = '5X'", "clock = 'sun'",
        "policy = 'lfu'", "mode = '0777'", "mode = '0400'", "mode = 'rw'", "allow-uid = ['x']",
        "device = 'gpu'", "numa-node = -1", "mlock = 1", "queue-delay-ms = 'x'", "fresh = 1", "planes = 5000000000", "cache = ''"}) {
    const MaybeFailure failure = read(line);
    ASSERT_TRUE(failure) << line;
    EXPECT_EQ(failure->exit_code, kExitUsage);
  }
  EXPECT_NE(text_of("policy = 'lfu'").find("policy: 'lfu': unknown policy"), std::string::npos);
  EXPECT_TRUE(read("pages = = 3"));
  EXPECT_TRUE(apply_file(
      "/nonexistent/file", [](std::string_view) { return false; }, options_));
}

TEST_F(SettingsTest, FlagsBeatTheFileWhichIsCheckedAllTheSame) {
  options_.pages = 100;
  ASSERT_FALSE(read("pages = 200\nworkers = 3\n", {"pages"}));
  EXPECT_EQ(options_.pages, 100U);
  EXPECT_EQ(options_.workers, 3U);
  EXPECT_TRUE(read("pages = 'x'\n", {"pages"}));
}

TEST_F(SettingsTest, OptionsThatDoNotFitTogether) {
  options_.cache = "x";
  options_.directory = "/run/kvtrie";
  EXPECT_EQ(options_problem(options_), "");
  const auto problem = [&](auto change) {
    Options changed = options_;
    change(changed);
    return options_problem(changed);
  };
  EXPECT_NE(problem([](Options& o) { o.cache = "a/b"; }), "");
  EXPECT_NE(problem([](Options& o) { o.cache = ""; }), "");
  EXPECT_NE(problem([](Options& o) { o.directory = "run"; }), "");
  EXPECT_NE(problem([](Options& o) { o.directory = "/" + std::string(120, 'x'); }), "");
  EXPECT_NE(problem([](Options& o) { o.low_percent = 3; }), "") << "above --high";
  EXPECT_NE(problem([](Options& o) { o.high_percent = 101; }), "");
  EXPECT_NE(problem([](Options& o) { o.tick_ns = 0; }), "");
  for (const char* address :
       {"", "9464", "localhost", ":9464", "h:x", "h:70000", "h:1,0.0.0.0:2", "h:1s"})
    EXPECT_NE(problem([&](Options& o) { o.metrics = address; }), "") << address;
  for (const char* address : {"off", "127.0.0.1:0", "[::1]:9464", "localhost:1"})
    EXPECT_EQ(problem([&](Options& o) { o.metrics = address; }), "") << address;
}

TEST_F(SettingsTest, ShapeIsWhatWasGivenElseWhatIsThere) {
  options_.pages = 128;
  options_.page_bytes = 64;
  const CacheShape fresh = shape_of(options_, {});
  EXPECT_EQ(fresh.geometry.pages, 128U);
  EXPECT_EQ(fresh.geometry.workers, Geometry{}.workers);
  EXPECT_EQ(fresh.tick_ns, kSystemTickNs);
  CacheShape there = fresh;
  there.geometry.workers = 5;
  EXPECT_EQ(shape_of(options_, there).geometry.workers, 5U);
  options_.clock = ClockKind::kDriven;
  EXPECT_EQ(shape_of(options_, {}).tick_ns, kDrivenTickNs);
  options_.tick_ns = 77;
  EXPECT_EQ(shape_of(options_, {}).tick_ns, 77U);
}

TEST_F(SettingsTest, ConflictNamesOptionAndBothValues) {
  const CacheShape there = shape_of({}, {});
  EXPECT_EQ(shape_conflict(options_, there), "");
  options_.tokens_per_page = there.geometry.tokens_per_page;
  EXPECT_EQ(shape_conflict(options_, there), "");
  options_.workers = 3;
  EXPECT_EQ(shape_conflict(options_, there), "--workers 3 was given, but the cache there has 64");
  options_ = {};
  options_.clock = ClockKind::kDriven;
  EXPECT_EQ(shape_conflict(options_, there),
            "--clock driven was given, but the cache there has system");
  options_ = {};
  options_.page_checksums = true;
  EXPECT_EQ(shape_conflict(options_, there), "--page-checksums was given, but the cache there was made without");
  EXPECT_TRUE(shape_of({}, shape_of(options_, {})).page_checksums);  // a successor's, too
}

}  // namespace
}  // namespace kvtrie
