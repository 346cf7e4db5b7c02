// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// KVTRIE_TRACE in the environment names the real trace; without it its tests are skipped.
#include "tests/reference/simulate_trace.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>
#include <string>

#include "tests/reference/sequential_cache.h"
#include "tools/replay/content.h"
#include "tools/replay/generator.h"

namespace kvtrie::reference {
namespace {

using replay::Request;

// The replay's cycle on the slow model.
SimulationResult replay_slowly(std::span<const Request> requests,
                               const SimulationOptions& options) {
  SequentialCache cache({.pages = options.pages,
                         .tokens_per_page = options.tokens_per_page,
                         .low_percent = options.low_percent,
                         .high_percent = options.high_percent,
                         .touch_once_a_tick = options.touch_once_a_tick});
  SimulationResult result;
  Tokens tokens;
  for (std::size_t index = 0; index < requests.size(); ++index) {
    const Request& request = requests[index];
    tokens_of_prompt(request, tokens);
    cache.set_tick(static_cast<std::uint32_t>(request.timestamp_ms));
    const BeginResult begun =
        cache.begin(replay::namespace_of_request(index, options.namespaces), tokens);
    result.pages_hit += begun.matched_pages;
    result.pages_total += replay::pages_of_prompt(request, options.tokens_per_page);
    result.blocks_hit += begun.matched_pages * options.tokens_per_page / replay::kBlockTokens;
    result.blocks_total += request.hash_ids.size();
    const auto total =
        static_cast<std::uint32_t>(replay::pages_needed(request, options.tokens_per_page));
    if (cache.allocate(begun.request, total) == AllocateResult::kOk) {
      result.pages_allocated += total - begun.matched_pages;
      cache.publish(begun.request, tokens.size());
    } else {
      ++result.failed_allocations;
    }
    cache.release(begun.request);
  }
  result.evictions = cache.counters().evictions;
  EXPECT_EQ(cache.find_violation(), "");
  return result;
}

Request request_of(std::vector<std::uint64_t> ids, std::uint32_t output_length = 0) {
  const auto input_length = static_cast<std::uint32_t>(ids.size() * replay::kBlockTokens);
  return {0, input_length, output_length, std::move(ids)};
}

TEST(SimulateTraceTest, CountsByHand) {
  // Two pages a block, a pool of five blocks.
  const std::vector<Request> requests = {request_of({1, 2}, 10), request_of({1, 2, 3}, 300),
                                         request_of({7, 8}), request_of({1, 2, 3})};
  const SimulationResult result = simulate_trace(
      requests, {.pages = 10, .tokens_per_page = 256, .low_percent = 0, .high_percent = 0});
  EXPECT_EQ(result.pages_total, 4U + 6 + 4 + 6);
  EXPECT_EQ(result.blocks_total, 2U + 3 + 2 + 3);
  EXPECT_EQ(result.pages_hit, 0U + 4 + 0 + 6);
  EXPECT_EQ(result.blocks_hit, 0U + 2 + 0 + 3);
  // Answers take pages of their own: ceil(10 / 256) and ceil(300 / 256).
  EXPECT_EQ(result.pages_allocated, (4U + 1) + (2 + 2) + 4 + 0);
  EXPECT_EQ(result.evictions, 0U);
  EXPECT_EQ(result.failed_allocations, 0U);
}

TEST(SimulateTraceTest, TooLargeARequestFailsAndTheRestGoesOn) {
  const std::vector<Request> requests = {request_of({1}), request_of({2, 3, 4}), request_of({1})};
  const SimulationResult result = simulate_trace(
      requests, {.pages = 4, .tokens_per_page = 256, .low_percent = 0, .high_percent = 0});
  EXPECT_EQ(result.failed_allocations, 1U);
  EXPECT_EQ(result.pages_hit, 2U);
  EXPECT_EQ(result.evictions, 0U);
}

TEST(SimulateTraceTest, MatchedPageIsNotEvictedThoughItsStampIsTheOldest) {
  // All in one tick, so that the third request does not touch the page that it matches.
  const std::vector<Request> requests = {request_of({1}), request_of({2, 3}),
                                         request_of({1, 4, 5, 6}), request_of({1, 4, 5, 6})};
  const SimulationResult result = simulate_trace(requests, {.pages = 4,
                                                            .tokens_per_page = 512,
                                                            .low_percent = 0,
                                                            .high_percent = 0,
                                                            .touch_once_a_tick = true});
  EXPECT_EQ(result.pages_hit, 0U + 0 + 1 + 4);
  EXPECT_EQ(result.evictions, 2U);
}

TEST(SimulateTraceTest, MovingWatermarksChangesTheResult) {
  const std::vector<Request> requests = replay::generate(500, 5);
  SimulationOptions options{.pages = 2048};
  const SimulationResult narrow = simulate_trace(requests, options);
  options.high_percent = 50;
  EXPECT_LT(simulate_trace(requests, options).pages_hit, narrow.pages_hit);
}

struct Shape {
  std::uint32_t pages;
  std::uint32_t tokens_per_page;
  std::uint32_t low_percent;
  std::uint32_t high_percent;
  std::uint32_t namespaces;
  bool touch_once_a_tick;
};

void PrintTo(const Shape& shape, std::ostream* output) {
  *output << shape.pages << " pages of " << shape.tokens_per_page << ", low " << shape.low_percent
          << " high " << shape.high_percent << ", namespaces " << shape.namespaces
          << (shape.touch_once_a_tick ? ", touch once a tick" : "");
}

class ModelsTest : public ::testing::TestWithParam<Shape> {};

TEST_P(ModelsTest, Agree) {
  const Shape& shape = GetParam();
  std::vector<Request> requests = replay::generate(400, 2);
  // Coarse, so that ticks hold several requests.
  for (Request& request : requests)
    request.timestamp_ms -= request.timestamp_ms % 3000;
  const SimulationOptions options{.pages = shape.pages,
                                  .tokens_per_page = shape.tokens_per_page,
                                  .low_percent = shape.low_percent,
                                  .high_percent = shape.high_percent,
                                  .namespaces = shape.namespaces,
                                  .touch_once_a_tick = shape.touch_once_a_tick};
  const SimulationResult fast = simulate_trace(requests, options);
  const SimulationResult slow = replay_slowly(requests, options);
  EXPECT_EQ(fast.pages_hit, slow.pages_hit);
  EXPECT_EQ(fast.pages_total, slow.pages_total);
  EXPECT_EQ(fast.blocks_hit, slow.blocks_hit);
  EXPECT_EQ(fast.blocks_total, slow.blocks_total);
  EXPECT_EQ(fast.evictions, slow.evictions);
  EXPECT_EQ(fast.failed_allocations, slow.failed_allocations);
  EXPECT_EQ(fast.pages_allocated, slow.pages_allocated);
  EXPECT_GT(fast.pages_hit, 0U);
  EXPECT_GT(fast.evictions, 0U);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ModelsTest,
    ::testing::Values(Shape{256, 128, 1, 2, 1, false}, Shape{256, 128, 0, 0, 1, false},
                      Shape{256, 128, 10, 40, 1, false}, Shape{256, 128, 1, 2, 3, false},
                      Shape{256, 128, 1, 2, 1, true},
                      Shape{100, 128, 1, 2, 1, false},  // some do not fit
                      Shape{512, 100, 1, 2, 2, false}, Shape{64, 1000, 1, 2, 1, false},
                      Shape{600, 48, 5, 10, 1, false}));

// Block hit ratios of the real trace by pool size in blocks of 32 pages.
struct Expected {
  std::uint32_t blocks;
  std::uint32_t low_percent;
  std::uint32_t high_percent;
  double ratio;
  double tolerance;
};

void PrintTo(const Expected& expected, std::ostream* output) {
  *output << expected.blocks << " blocks, low " << expected.low_percent << " high "
          << expected.high_percent;
}

class RealTraceTest : public ::testing::TestWithParam<Expected> {};

TEST_P(RealTraceTest, GivesTheKnownHitRatio) {
  const char* path = std::getenv("KVTRIE_TRACE");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "KVTRIE_TRACE is not set: no real trace to simulate";
  }
  const replay::TraceResult trace = replay::read_trace_file(path);
  ASSERT_TRUE(trace.ok()) << trace.error;
  const Expected& expected = GetParam();
  const SimulationResult result =
      simulate_trace(trace.requests, {.pages = expected.blocks * 32,
                                      .low_percent = expected.low_percent,
                                      .high_percent = expected.high_percent});
  EXPECT_NEAR(result.hit_ratio_blocks(), expected.ratio, expected.tolerance);
  EXPECT_EQ(result.failed_allocations, 0U);
  RecordProperty("hit_ratio_blocks", std::to_string(result.hit_ratio_blocks()));
  RecordProperty("evictions", std::to_string(result.evictions));
}

// Without watermarks: what an independent simulator by whole blocks gives, to its last digit.
INSTANTIATE_TEST_SUITE_P(
    Pools, RealTraceTest,
    ::testing::Values(Expected{3'000, 1, 2, .066, .006}, Expected{10'000, 1, 2, .213, .006},
                      Expected{30'000, 1, 2, .327, .006}, Expected{3'000, 0, 0, .0653, .0001},
                      Expected{10'000, 0, 0, .2116, .0001}, Expected{30'000, 0, 0, .3257, .0001}));

}  // namespace
}  // namespace kvtrie::reference
