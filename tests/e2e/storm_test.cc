// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Short storms of kvtrie-replay: workers and coordinators killed and stopped at random moments under eviction. The long
// one is in tools/replay/README.md. And that what a storm watches for is seen.

#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "shm/segment.h"
#include "tests/e2e/replay_process.h"

namespace kvtrie {
namespace {

using test::left_behind_by;
using test::ReplayProcess;

using Words = std::vector<std::string>;

class StormTest : public testing::Test {
 protected:
  Words words(const Words& more = {}, const char* kills = "200", const char* workers = "4") const {
    Words all = {"--storm", kills,    "--kill-rate", "50",           "--pages", "6000",
                 "--workers", workers,   "--generate",  "300",          "--page-bytes", "512",
                 "--low",   "2",      "--high",      "5"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static void expect_weathered(ReplayProcess& replay) {
    EXPECT_EQ(replay.wait(), 0) << replay.out() << replay.err();
    const nlohmann::json json = replay.json();
    ASSERT_TRUE(json.contains("storm")) << replay.err();
    const nlohmann::json storm = json["storm"];
    EXPECT_EQ(storm["kills"], 200);
    EXPECT_EQ(json["wrong_pages"], 0);
    EXPECT_EQ(json["pages_lost"], 0);
    EXPECT_EQ(json["failed_allocations"], 0);
    EXPECT_GT(json["pages_checked"], 10'000);
    EXPECT_GT(json["evictions"], 1'000);
    EXPECT_GT(json["reaped_pages"], 0);
    EXPECT_GT(storm["stops"], 0);
    EXPECT_GT(storm["coordinator_kills"].get<int>() + storm["coordinator_stops"].get<int>(), 0);
    EXPECT_EQ(storm["given_back_count"].get<int>() + storm["given_back_disturbed_count"].get<int>() +
                  storm["kills_without_slot"].get<int>(),
              200);
    EXPECT_TRUE(left_behind_by(replay.pid()).empty());
  }

  const std::string folder_ = testing::TempDir();
};

TEST_F(StormTest, WorkersAndCoordinatorsDieUnderEviction) {
  ReplayProcess replay(folder_, words());
  expect_weathered(replay);
}

TEST_F(StormTest, SharedMemoryIsFullMeanwhile) {
  ReplayProcess replay(folder_, words({"--fill-shm", "--seed", "7"}));
  if (replay.wait() == 4 && replay.err().find("mount namespace of its own") != std::string::npos) {
    GTEST_SKIP() << replay.err();
  }
  expect_weathered(replay);
  EXPECT_GT(replay.json()["storm"]["shm_full"], 0);
}

// The kvtried of that replay, if it serves; else 0.
pid_t serving_kvtried(pid_t replay) {
  const std::string prefix = "kvtrie.";
  for (const std::string& object : left_behind_by(replay)) {
    const std::string cache = object.substr(prefix.size(), object.find('.', prefix.size()) - prefix.size());
    const Result<Segment> segment = open_segment(cache, Access::kReadOnly);
    if (!segment) continue;
    const Superblock& block = segment->superblock();
    if (block.coordinator_state.load() != static_cast<std::uint32_t>(CoordinatorState::kServing)) continue;
    return static_cast<pid_t>(block.coordinator_pid.load());
  }
  return 0;
}

// A coordinator that does not come round, though the storm did not stop it, leaves what the dead held.
TEST_F(StormTest, SaysWhenWhatTheDeadHeldIsNotGivenBack) {
  ReplayProcess replay(folder_, words({}, "1000000"));
  // The storm lets a kvtried that it stopped itself go on, and starts others.
  while (replay.running()) {
    if (const pid_t kvtried = serving_kvtried(replay.pid()); kvtried > 0) ::kill(kvtried, SIGSTOP);
    ::usleep(10'000);
  }
  EXPECT_EQ(replay.wait(), 4);
  EXPECT_NE(replay.err().find("is not given back"), std::string::npos) << replay.err();
  EXPECT_TRUE(left_behind_by(replay.pid()).empty());
}

TEST_F(StormTest, RefusesWhatDoesNotFit) {
  for (const Words& wrong : {Words{"--speed", "2"}, Words{"--mix"}, Words{"--kill-workers", "3"},
                             Words{"--cache", "some"}, Words{}}) {
    ReplayProcess replay(folder_, words(wrong, "200", wrong.empty() ? "1" : "4"));
    EXPECT_EQ(replay.wait(), 2);
    EXPECT_NE(replay.err().find("--storm: "), std::string::npos) << replay.err();
  }
}

}  // namespace
}  // namespace kvtrie
