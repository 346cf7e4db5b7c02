// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "shm/process_identity.h"
#include "shm/shared_object.h"
#include "shm/worker_table.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint32_t kNobody = 0x3FFFFFFF;  // above any pid

class StatusTest : public ::testing::Test {
 protected:
  void serve_here() { cache_.serve(static_cast<std::uint32_t>(::getpid()), *own_start_time()); }
  std::string text(const std::string& command = "status") {
    const auto outcome = run_kvtrie({command, "--cache", cache_.name()});
    EXPECT_EQ(outcome.code, Exit::kOk);
    EXPECT_EQ(outcome.err, "");
    return outcome.out;
  }
  Json json(const std::string& command = "status") {
    return run_json({command, "--cache", cache_.name()});
  }

  SmallCache cache_;
};

TEST_F(StatusTest, SaysHowManyPagesAreInWhichState) {
  PathEnd end = cache_.open_namespace("m");
  const WorkerId me = cache_.attach("one");
  cache_.publish(me, end, 64, 0);
  cache_.publish(me, end, 3, 1000, PageState::kPending);
  cache_.take(me, 5);
  const Json json = this->json();
  EXPECT_EQ(json["pages"]["live"], 64);
  EXPECT_EQ(json["pages"]["pending"], 3);
  EXPECT_EQ(json["pages"]["writing"], 5);
  EXPECT_EQ(json["pages"]["free"], 256 - 72);
  EXPECT_EQ(json["tokens_cached"], 64 * 4);
  EXPECT_EQ(json["namespaces"]["open"], 1);
  EXPECT_THAT(text(), AllOf(HasSubstr("live               64   25.0 %  256 tokens"),
                            HasSubstr("1 open of 4")));
}

TEST_F(StatusTest, IsWellWhenACoordinatorServes) {
  serve_here();
  EXPECT_THAT(text(), AllOf(HasSubstr("not poisoned, served; well"), Not(HasSubstr("\n! "))));
  EXPECT_EQ(json()["coordinator"]["liveness"], "alive");
  EXPECT_TRUE(json()["attention"].empty());
}

TEST_F(StatusTest, SaysThatTheCoordinatorIsDeadAndWhatToDo) {
  cache_.serve(kNobody, 1);
  EXPECT_THAT(text(), AllOf(HasSubstr("pid 1073741823 dead, serving, epoch 3"),
                            HasSubstr("start kvtried")));
  EXPECT_EQ(json()["coordinator"]["liveness"], "dead");
}

TEST_F(StatusTest, TakesARecycledPidForDead) {
  cache_.serve(static_cast<std::uint32_t>(::getpid()), *own_start_time() + 1);
  EXPECT_EQ(json()["coordinator"]["liveness"], "dead");
}

TEST_F(StatusTest, AddsUpCountersOfAllSlots) {
  cache_.segment().count({1}, Counter::kPagesAsked, 10);
  cache_.segment().count({2}, Counter::kPagesAsked, 30);
  cache_.segment().count({2}, Counter::kPagesHit, 10);
  cache_.segment().count({0}, Counter::kEvictions, 7);
  EXPECT_EQ(json()["hit_ratio_pages"], 0.25);
  EXPECT_EQ(json()["counters"]["evictions"], 7);
  EXPECT_THAT(text(),
              AllOf(HasSubstr("25.0 % of pages (10 of 40)"), HasSubstr("7 pages in 0 passes")));
}

TEST_F(StatusTest, HasNoRatioOfNothing) {
  EXPECT_TRUE(json()["hit_ratio_pages"].is_null());
  EXPECT_THAT(text(), HasSubstr("- of pages (0 of 0)"));
}

TEST_F(StatusTest, SaysThatAndWhyItIsPoisoned) {
  cache_.segment().poison(PoisonReason::kLockNotRecoverable);
  EXPECT_THAT(text(), AllOf(HasSubstr("POISONED: lock_not_recoverable; successor none yet"),
                            HasSubstr("! the segment was given up")));
  EXPECT_EQ(json()["poison"]["reason"], "lock_not_recoverable");
}

TEST_F(StatusTest, SeesThatAPoolIsMissing) {
  EXPECT_EQ(json()["memory"]["pools_found"], 2);
  remove_object(pool_object_name(cache_.name(), 1));
  EXPECT_EQ(json()["memory"]["pools_found"], 1);
  EXPECT_THAT(text(), HasSubstr("1 of 2 pools are missing or too small"));
}

TEST_F(StatusTest, SeesWhoWaitsForPages) {
  const WorkerId me = cache_.attach("one");
  cache_.segment().worker(me).pages_wanted.store(70);
  EXPECT_EQ(json()["workers"]["pages_wanted"], 70);
  EXPECT_THAT(text(), HasSubstr("1 waiting for 70 pages"));
}

TEST_F(StatusTest, ALongWaitNeedsAttentionAShortOneDoesNot) {
  const WorkerId me = cache_.attach("one");
  WorkerRecord& record = cache_.segment().worker(me);
  record.pages_wanted.store(70);
  const auto now =
      std::chrono::steady_clock::now().time_since_epoch();  // CLOCK_MONOTONIC, as the ticket
  const auto ticket = [&](std::chrono::nanoseconds ago) {
    return static_cast<std::uint64_t>((std::chrono::nanoseconds(now) - ago).count());
  };
  record.wait_ticket.store(
      ticket(-std::chrono::seconds(60)));  // whatever this machine does meanwhile
  EXPECT_THAT(text(), Not(HasSubstr("! 1 worker waits")));
  record.wait_ticket.store(ticket(std::chrono::seconds(90)));
  EXPECT_THAT(
      text(),
      HasSubstr("! 1 worker waits for 70 pages in all, 256 free, the longest for 1 min 30 s"));
}

TEST_F(StatusTest, ShowsTheOldestLease) {
  PathEnd end = cache_.open_namespace("m");
  const WorkerId me = cache_.attach("one");
  cache_.set_tick(1000);
  cache_.publish(me, end, 2, 0);
  cache_.lease(me, 0, end.handle, 0x2a);
  cache_.set_tick(5000);
  cache_.lease(me, 1, end.handle, 0x2b);
  EXPECT_THAT(text(), HasSubstr("2 held, 0 pins; oldest taken 4 s ago by slot 1 (tag 0x2a)"));
  EXPECT_EQ(json()["leases"]["oldest_seconds"], 4.0);
}

TEST_F(StatusTest, ShowsNoControlCharactersOfASegment) {
  const WorkerId me = cache_.attach("one");
  std::copy_n("\x1b[2J\xff", 5, cache_.segment().worker(me).name);
  EXPECT_THAT(text("workers"), AllOf(HasSubstr("\\x1b[2J\\xff"), Not(HasSubstr("\x1b"))));
  EXPECT_EQ(json("workers")["workers"][1]["name"], "\\x1b[2J\\xff");
}

TEST_F(StatusTest, WorkersShowsWhatEachHolds) {
  cache_.serve(kNobody, 1);
  PathEnd end = cache_.open_namespace("m");
  const WorkerId alive = cache_.attach("alive");
  const WorkerId dead = cache_.attach("dead", kNobody);
  cache_.publish(alive, end, 2, 0);
  cache_.lease(alive, 3, end.handle, 7);
  cache_.take(dead, 6);
  cache_.publish(dead, end, 4, 100, PageState::kPending);
  cache_.segment().worker(dead).pages_wanted.store(9);
  const Json rows = json("workers")["workers"];
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0]["role"], "coordinator");
  EXPECT_EQ(rows[1]["liveness"], "alive");
  EXPECT_EQ(rows[1]["leases"], 1);
  EXPECT_EQ(rows[1]["oldest_lease_request_tag"], 7);
  EXPECT_EQ(rows[2]["liveness"], "dead");
  EXPECT_EQ(rows[2]["pages_writing"], 6);
  EXPECT_EQ(rows[2]["pages_pending"], 4);
  EXPECT_EQ(rows[2]["pages_held_hint"], 10);
  EXPECT_EQ(rows[2]["pages_wanted"], 9);
  EXPECT_THAT(text("workers"),
              AllOf(HasSubstr("dead, waits for its reap"), HasSubstr("2 workers attached")));
}

TEST_F(StatusTest, WorkersShowsAFreeSlotThatHoldsSomething) {
  const WorkerId dead = cache_.attach("dead", kNobody);
  cache_.take(dead, 6);
  cache_.segment().worker(dead).slot_state.store(SlotWord::make(SlotState::kFree, 1).raw);
  EXPECT_THAT(text("workers"), HasSubstr("free slot that still holds something"));
}

TEST(StatusOfAnotherHostTest, KnowsNoAgesAndNoLivingOfAnotherBoot) {
  SmallCache cache({.clock = ClockKind::kSystem, .this_boot = false});
  cache.serve(static_cast<std::uint32_t>(::getpid()), *own_start_time());
  cache.attach("one");
  EXPECT_THAT(run_kvtrie({"status", "--cache", cache.name()}).out, HasSubstr("another boot"));
  const Json rows = run_json({"workers", "--cache", cache.name()})["workers"];
  EXPECT_EQ(rows[1]["liveness"], "dead");
  EXPECT_TRUE(rows[1]["attached_seconds"].is_null());
}

TEST(StatusOfAnotherHostTest, DoesNotCallProcessesOfAnotherPidNamespaceDead) {
  SmallCache cache({.this_pid_namespace = false});
  cache.serve(kNobody, 1);
  EXPECT_EQ(run_json({"status", "--cache", cache.name()})["coordinator"]["liveness"], "unknown");
  EXPECT_THAT(run_kvtrie({"status", "--cache", cache.name()}).out,
              HasSubstr("another PID namespace"));
}

}  // namespace
}  // namespace kvtrie::test
