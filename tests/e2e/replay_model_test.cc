// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One worker, one request at a time: real processes and the sequential model must agree, page by
// page and eviction by eviction.
//
// KVTRIE_TRACE in the environment names the real trace; without it its test is skipped.
#include <cstdlib>
#include <ostream>
#include <string>

#include "tests/e2e/replay_process.h"
#include "tests/reference/simulate_trace.h"
#include "tools/replay/generator.h"

namespace kvtrie {
namespace {

using reference::simulate_trace;
using reference::SimulationResult;
using test::ReplayProcess;

struct Shape {
  std::uint32_t pages;
  std::uint32_t tokens_per_page;
  std::uint32_t low_percent;
  std::uint32_t high_percent;
  std::uint32_t namespaces;
  std::uint64_t seed;
};

void PrintTo(const Shape& shape, std::ostream* output) {
  *output << shape.pages << " pages of " << shape.tokens_per_page << " tokens, low "
          << shape.low_percent << " high " << shape.high_percent << ", " << shape.namespaces
          << " namespaces, seed " << shape.seed;
}

std::vector<std::string> flags_of(const Shape& shape) {
  const auto text = [](std::uint64_t number) { return std::to_string(number); };
  return {"--workers",
          "1",
          "--in-flight",
          "1",
          "--speed",
          "max",
          "--policy",
          "lru",
          "--page-bytes",
          "128",
          "--check-bytes",
          "100",
          "--pages",
          text(shape.pages),
          "--tokens-per-page",
          text(shape.tokens_per_page),
          "--low",
          text(shape.low_percent),
          "--high",
          text(shape.high_percent),
          "--namespaces",
          text(shape.namespaces),
          "--seed",
          text(shape.seed)};
}

SimulationResult simulate(std::span<const replay::Request> requests, const Shape& shape) {
  return simulate_trace(requests, {.pages = shape.pages,
                                   .tokens_per_page = shape.tokens_per_page,
                                   .low_percent = shape.low_percent,
                                   .high_percent = shape.high_percent,
                                   .namespaces = shape.namespaces});
}

class ReplayModelTest : public testing::TestWithParam<Shape> {
 protected:
  test::TemporaryCache folder_{"replay-model"};
};

TEST_P(ReplayModelTest, GeneratedWorkloadHitsExactlyWhatTheModelHits) {
  constexpr std::size_t kRequests = 600;
  const Shape& shape = GetParam();
  std::vector<std::string> words = flags_of(shape);
  words.insert(words.end(), {"--generate", std::to_string(kRequests)});
  ReplayProcess replay(folder_.directory(), words);
  const SimulationResult model = simulate(replay::generate(kRequests, shape.seed), shape);
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["requests"], kRequests);
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["buckets_full"], 0);
  EXPECT_EQ(json["pages_hit"], model.pages_hit);
  EXPECT_EQ(json["pages_total"], model.pages_total);
  EXPECT_EQ(json["blocks_hit"], model.blocks_hit);
  EXPECT_EQ(json["blocks_total"], model.blocks_total);
  EXPECT_EQ(json["evictions"], model.evictions);
  EXPECT_EQ(json["failed_allocations"], model.failed_allocations);
  EXPECT_GT(model.evictions, 0U);
  EXPECT_GT(model.pages_hit, 0U);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ReplayModelTest,
                         testing::Values(Shape{2048, 48, 1, 2, 1, 1}, Shape{1500, 48, 5, 10, 2, 2},
                                         Shape{2048, 16, 1, 2, 1, 3},  // some do not fit
                                         Shape{2000, 16, 5, 10, 1, 4},
                                         Shape{1000, 100, 0, 0, 2, 5}));

TEST(ReplayRealTraceTest, HitsWhatTheModelHits) {
  const char* path = std::getenv("KVTRIE_TRACE");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "KVTRIE_TRACE is not set: no real trace to replay";
  }
  constexpr std::size_t kRequests = 2500;
  const Shape shape{32'000, 16, 1, 2, 1, 1};
  const test::TemporaryCache folder("replay-trace");
  std::vector<std::string> words = flags_of(shape);
  words.insert(words.end(), {"--trace", path, "--limit", std::to_string(kRequests)});
  ReplayProcess replay(folder.directory(), words);
  const replay::TraceResult trace = replay::read_trace_file(path, kRequests);
  ASSERT_TRUE(trace.ok()) << trace.error;
  const SimulationResult model = simulate(trace.requests, shape);
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["failed_allocations"], 0);
  EXPECT_NEAR(json["hit_ratio_blocks"].get<double>(), model.hit_ratio_blocks(), .001);
  EXPECT_GT(model.evictions, 0U);
}

// The README's command: what it says, through real processes. Blocks of 32 pages.
struct Pool {
  std::uint32_t blocks;
  double hit_ratio;
};
void PrintTo(const Pool& pool, std::ostream* output) { *output << pool.blocks << " blocks"; }

class ReplayRealPoolTest : public testing::TestWithParam<Pool> {};

TEST_P(ReplayRealPoolTest, GivesTheKnownHitRatio) {
  const char* path = std::getenv("KVTRIE_TRACE");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "KVTRIE_TRACE is not set: no real trace to replay";
  }
  const Shape shape{32 * GetParam().blocks, 16, 1, 2, 1, 1};
  const test::TemporaryCache folder("replay-pool");
  std::vector<std::string> words = flags_of(shape);
  words.insert(words.end(), {"--trace", path});
  ReplayProcess replay(folder.directory(), words);
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["failed_allocations"], 0);
  EXPECT_NEAR(json["hit_ratio_blocks"].get<double>(), GetParam().hit_ratio, .006);
  const replay::TraceResult trace = replay::read_trace_file(path);
  ASSERT_TRUE(trace.ok()) << trace.error;
  EXPECT_NEAR(json["hit_ratio_blocks"].get<double>(), simulate(trace.requests, shape).hit_ratio_blocks(), .001);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ReplayRealPoolTest,
                         testing::Values(Pool{3'000, .066}, Pool{10'000, .213}, Pool{30'000, .327}),
                         [](const auto& pool) { return std::to_string(pool.param.blocks); });

}  // namespace
}  // namespace kvtrie
