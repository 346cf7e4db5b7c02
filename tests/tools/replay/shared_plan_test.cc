// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/shared_plan.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "tools/replay/generator.h"

namespace kvtrie::replay {
namespace {

PlanSettings small_settings() {
  PlanSettings settings{};
  settings.in_flight = 2;
  settings.namespaces = 1;
  settings.seed = 7;
  return settings;
}

TEST(SharedPlanTest, HandsOutTheRequestsAsTheyWere) {
  const std::vector<Request> requests = generate(50, 3);
  SharedPlan plan(requests, small_settings(), 2, 0);
  for (std::uint32_t i = 0; i < plan.request_count(); ++i) {
    const Request got = plan.request(i);
    EXPECT_EQ(got.hash_ids, requests[i].hash_ids);
    EXPECT_EQ(got.output_length, requests[i].output_length);
    EXPECT_EQ(got.timestamp_ms, requests[i].timestamp_ms);
  }
}

TEST(SharedPlanTest, GivesEveryRequestALaterTickThatFollowsTheTrace) {
  std::vector<Request> requests = generate(4, 3);
  requests[0].timestamp_ms = requests[1].timestamp_ms = requests[2].timestamp_ms = 0;
  requests[3].timestamp_ms = 5000;
  const SharedPlan plan(requests, small_settings(), 1, 100);
  EXPECT_EQ(plan.planned(0).tick, 101U);
  EXPECT_EQ(plan.planned(1).tick, 102U);
  EXPECT_EQ(plan.planned(2).tick, 103U);
  EXPECT_EQ(plan.planned(3).tick, 5100U);
}

TEST(SharedPlanTest, RefusesATraceThatIsLongerThanTheClock) {
  std::vector<Request> requests = generate(2, 3);
  requests[1].timestamp_ms = std::uint64_t{1} << 32;
  EXPECT_THROW(SharedPlan(requests, small_settings(), 1, 0), std::runtime_error);
}

TEST(SharedPlanTest, ThreadsTakeEveryRequestOnce) {
  const std::vector<Request> requests = generate(500, 3);
  SharedPlan plan(requests, small_settings(), 4, 0);
  std::vector<std::atomic<int>> taken(requests.size());
  std::vector<std::thread> threads;
  for (std::uint32_t worker = 0; worker < 4; ++worker) {
    threads.emplace_back([&, worker] {
      while (const auto index = plan.take(worker)) {
        ++taken[*index];
        plan.finish(*index, true);
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  for (const std::atomic<int>& count : taken)
    EXPECT_EQ(count.load(), 1);
  EXPECT_EQ(plan.finished(), 500U);
  EXPECT_EQ(plan.count_unfinished(), 0U);
}

TEST(SharedPlanTest, RequestsOfADeadWorkerAreTakenAgainAndNoOthers) {
  const std::vector<Request> requests = generate(10, 3);
  SharedPlan plan(requests, small_settings(), 2, 0);
  EXPECT_EQ(plan.take(0), 0U);
  EXPECT_EQ(plan.take(1), 1U);
  EXPECT_EQ(plan.take(0), 2U);
  EXPECT_EQ(plan.take(0), 3U);
  plan.finish(2, false);
  EXPECT_EQ(plan.reopen(0), 2U);  // 0 and 3
  EXPECT_EQ(plan.take(1), 0U);
  EXPECT_EQ(plan.take(1), 3U);
  EXPECT_EQ(plan.take(1), 4U);
  EXPECT_EQ(plan.reopen(0), 0U);
  EXPECT_EQ(plan.count_unfinished(), 9U);
}

TEST(SharedPlanTest, ChildFindsItByItsDescriptor) {
  const std::vector<Request> requests = generate(20, 3);
  SharedPlan plan(requests, small_settings(), 3, 0);
  const pid_t child = ::fork();
  if (child == 0) {
    SharedPlan same(::dup(plan.fd()));
    const bool right = same.request_count() == 20 && same.settings().seed == 7 &&
                       same.request(19).hash_ids == requests[19].hash_ids && same.take(2) == 0U;
    same.tally(2).add(Tally::kPagesHit, 5);
    same.tally(2).timing(Timing::kLookup).record(1000);
    ::_exit(right ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(plan.tally(2).get(Tally::kPagesHit), 5U);
  EXPECT_EQ(plan.tally(2).timing(Timing::kLookup).count(), 1U);
  EXPECT_EQ(plan.reopen(2), 1U);
}

TEST(SharedPlanTest, RefusesADescriptorThatIsNone) {
  EXPECT_THROW(SharedPlan(::open("/dev/null", O_RDWR)), std::exception);
  EXPECT_THROW(SharedPlan(-1), std::exception);
}

}  // namespace
}  // namespace kvtrie::replay
