// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// C7 for the tool: whatever bytes a segment holds, each command ends with an answer.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <map>
#include <random>

#include "shm/geometry.h"
#include "tests/tools/kvtrie/json_schema.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<std::vector<std::string>> kCommands = {
    {"status"},    {"workers"},   {"tree"},       {"tree", "--depth", "100", "--limit", "100000"},
    {"workers", "--leases"},       {"namespaces"}, {"tree", "--prefix", "0,1,2,3,4", "--worker", "1", "--min-pages", "1"},
    {"tree", "--leased"},          {"tree", "--below", "3"}, {"page", "3", "--tokens"},
    {"page", "0"}, {"page", "7"}, {"page", "63"}, {"verify", "--at-rest"}};

// A cache with a bit of everything in it.
struct FullCache {
  explicit FullCache(std::uint64_t pages = 128)
      : cache({.geometry = {.pages = pages,
                            .tokens_per_page = 4,
                            .page_bytes = 64,
                            .planes = 1,
                            .workers = 3,
                            .leases_per_worker = 8,
                            .namespaces = 4,
                            .stripes = 4}}) {
    PathEnd end = cache.open_namespace("m");
    const WorkerId one = cache.attach("one");
    const WorkerId two = cache.attach("two", 1, 1);
    cache.publish(one, end, 10, 0);
    PathEnd branch = end;
    cache.publish(one, end, 10, 100);
    cache.publish(two, branch, 10, 200);
    cache.lease(one, 0, end.handle, 1);
    cache.lease(two, 1, branch.handle, 2);
    cache.publish(two, branch, 2, 300, PageState::kPending);
    cache.take(two, 3);
  }

  std::span<std::byte> bytes() const {
    return {cache.segment().data(), cache.segment().size_bytes()};
  }
  void seal() const {
    Superblock& block = cache.segment().superblock();
    block.constant_checksum = constant_checksum(block);
  }

  SmallCache cache;
};

const Json& schema_of(const std::string& name) {
  static std::map<std::string, Json> schemas;
  const auto [at, fresh] = schemas.try_emplace(name);
  if (fresh) at->second = load_schema(name);
  return at->second;
}

// Runs everything, as text and as JSON; each must end, with JSON that fits its schema.
void run_all(const std::string& cache) {
  for (std::vector<std::string> arguments : kCommands) {
    arguments.insert(arguments.end(), {"--cache", cache});
    const auto text = run_kvtrie(arguments);
    EXPECT_FALSE(text.out.empty() && text.err.empty()) << arguments[0];
    arguments.push_back("--json");
    const auto json = run_kvtrie(arguments);
    ASSERT_TRUE(Json::accept(json.out)) << arguments[0] << ": " << json.out;
    const Json document = Json::parse(json.out);
    const std::string schema = document.contains("error") ? "error" : arguments[0];
    EXPECT_THAT(schema_problems(schema_of(schema), document), IsEmpty()) << arguments[0];
  }
}

TEST(CorruptTest, ADamagedSuperblockIsSaidClearly) {
  const FullCache full;
  full.cache.segment().superblock().page_count ^= 1;
  const auto status = run_kvtrie({"status", "--cache", full.cache.name()});
  EXPECT_EQ(status.code, Exit::kCorrupt);
  EXPECT_THAT(status.err, HasSubstr("superblock checksum does not match"));
  const auto verify = run_kvtrie({"verify", "--cache", full.cache.name()});
  EXPECT_EQ(verify.code, Exit::kCorrupt);
  EXPECT_THAT(verify.out, HasSubstr("S.constant"));
}

TEST(CorruptTest, AnotherBuildsSegmentIsRefused) {
  const FullCache full;
  full.cache.segment().superblock().struct_fingerprint ^= 1;
  const auto status = run_kvtrie({"status", "--cache", full.cache.name()});
  EXPECT_EQ(status.code, Exit::kRefused);
  EXPECT_THAT(status.err, HasSubstr("other struct sizes"));
}

TEST(CorruptTest, ATruncatedObjectIsSaidClearly) {
  const SmallCache cache;
  ASSERT_EQ(::truncate(cache.segment_path().c_str(), 8192), 0);
  EXPECT_EQ(run_kvtrie({"status", "--cache", cache.name()}).code, Exit::kCorrupt);
  ASSERT_EQ(::truncate(cache.segment_path().c_str(), 100), 0);
  EXPECT_EQ(run_kvtrie({"verify", "--cache", cache.name()}).code, Exit::kCorrupt);
  ASSERT_EQ(::truncate(cache.segment_path().c_str(), 0), 0);
  EXPECT_EQ(run_kvtrie({"tree", "--cache", cache.name()}).code, Exit::kCorrupt);
}

TEST(CorruptTest, VerifyFindsWhatIsWrong) {
  const FullCache full;
  full.cache.segment().descriptor({3}).parent.store(full.cache.handle_of({9}).raw);
  const auto outcome = run_kvtrie({"verify", "--cache", full.cache.name()});
  EXPECT_EQ(outcome.code, Exit::kFindings);
  EXPECT_THAT(outcome.out, HasSubstr("page 3"));
  const Json json = run_json({"verify", "--cache", full.cache.name()});
  EXPECT_EQ(json["clean"], false);
  EXPECT_GT(json["findings"].size(), 0U);
}

TEST(CorruptTest, VerifyOfAGoodSegmentIsClean) {
  const FullCache full;
  const auto outcome = run_kvtrie({"verify", "--cache", full.cache.name()});
  EXPECT_EQ(outcome.code, Exit::kOk) << outcome.out;
  EXPECT_THAT(outcome.out, HasSubstr("findings      none"));
}

TEST(CorruptTest, LeavesTheSegmentAsItWas) {
  const FullCache full;
  const std::vector<std::byte> before(full.bytes().begin(), full.bytes().end());
  run_all(full.cache.name());
  EXPECT_EQ(std::memcmp(before.data(), full.bytes().data(), before.size()), 0);
}

class FuzzTest : public ::testing::TestWithParam<unsigned> {};

// Bytes, words and whole stretches anywhere behind the constant part, so that the segment still
// opens.
TEST_P(FuzzTest, EveryCommandEndsOnAnyBytes) {
  const FullCache full(64 + GetParam());
  const std::vector<std::byte> good(full.bytes().begin(), full.bytes().end());
  std::mt19937_64 random(GetParam());
  auto below = [&](std::uint64_t n) { return random() % n; };
  const auto& areas = full.cache.segment().layout().areas;
  const std::uint32_t area_count = full.cache.segment().layout().area_count;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  unsigned rounds = 0;
  for (; rounds < 5 || std::chrono::steady_clock::now() < deadline; ++rounds) {
    std::ranges::copy(good, full.bytes().begin());
    for (std::uint64_t hits = 1 + below(60); hits > 0; --hits) {
      const AreaEntry& area = areas[below(area_count)];
      const std::uint64_t at = below(10) == 0 ? offsetof(Superblock, poison_state) + below(1800)
                                              : area.offset + below(area.stride * area.count);
      const std::uint64_t room = full.bytes().size() - at;
      if (below(4) == 0) {
        for (std::uint64_t i = 0, n = std::min<std::uint64_t>(room, below(2000)); i < n; ++i) {
          full.bytes()[at + i] = static_cast<std::byte>(random());
        }
      } else if (below(2) == 0 && room >= 16) {  // a plausible handle or state word
        const std::uint64_t word = (random() & 3) << 62 | below(3) << 24 | below(80);
        std::memcpy(&full.bytes()[at / 8 * 8], &word, sizeof word);
      } else {
        full.bytes()[at] = static_cast<std::byte>(random());
      }
    }
    run_all(full.cache.name());
  }
  RecordProperty("rounds", static_cast<int>(rounds));
}

// The constant part too, with a checksum that agrees: sizes that do not fit must be refused, the
// rest is shown.
TEST_P(FuzzTest, EveryCommandEndsOnAnySuperblock) {
  const FullCache full(64);
  const std::vector<std::byte> good(full.bytes().begin(), full.bytes().end());
  std::mt19937_64 random(1000 + GetParam());
  for (int round = 0; round < 30; ++round) {
    std::ranges::copy(good, full.bytes().begin());
    for (int hits = 0; hits < 3; ++hits) {
      // Behind magic, version and fingerprint, so that it is looked at.
      const std::size_t first = offsetof(Superblock, segment_bytes);
      const std::size_t at = first + random() % (offsetof(Superblock, areas) + 64 - first);
      full.bytes()[at] = static_cast<std::byte>(random());
    }
    full.seal();
    run_all(full.cache.name());
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, FuzzTest, ::testing::Range(0U, 3U));

}  // namespace
}  // namespace kvtrie::test
