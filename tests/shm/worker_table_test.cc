// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/worker_table.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tests/shm/test_support.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

class WorkerTableTest : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = std::move(*test::nameless_object(layout_of(geometry_).segment_bytes));
    Result<Segment> segment = test::build_segment(fd_.get(), geometry_);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
    table_.emplace(*segment_);
  }

  SlotGrant give(std::uint32_t pid = 1234) {
    const Result<SlotGrant> grant = table_->give({pid, 99, 7, WorkerRole::kWorker, "engine", 0});
    EXPECT_TRUE(grant) << grant.error().what();
    return grant ? *grant : SlotGrant{};
  }

  SlotState state(WorkerId slot) const { return table_->word(slot).state(); }

  void reap(WorkerId slot) {
    ASSERT_TRUE(table_->begin_reap(slot, table_->word(slot)));
    table_->finish_reap(slot);
  }

  const Geometry geometry_ = test::small_geometry();
  FileDescriptor fd_;
  std::optional<Segment> segment_;
  std::optional<WorkerTable> table_;
};

TEST_F(WorkerTableTest, GivesEachSlotOnce) {
  std::vector<WorkerId> slots;
  for (std::uint32_t i = 0; i < geometry_.workers; ++i)
    slots.push_back(give().slot);
  EXPECT_EQ(slots, (std::vector<WorkerId>{{1}, {2}, {3}}));
  const Result<SlotGrant> none = table_->give({1, 2, 3, WorkerRole::kWorker, "", 0});
  EXPECT_EQ(none.error().code(), Code::kFull);
  EXPECT_EQ(state(kCoordinatorSlot), SlotState::kFree);
  EXPECT_EQ(table_->stats().slots[static_cast<int>(SlotState::kAttaching)], 3U);
}

TEST_F(WorkerTableTest, SchedulerHasPlaneWritersAsLongAsTheirSlotsAreInUse) {
  const SlotGrant scheduler = give();
  const SlotGrant other = give();
  EXPECT_FALSE(table_->has_plane_writers(scheduler.slot));
  WorkerIdentity rank{1234, 99, 7, WorkerRole::kPlaneWriter, "rank", 2};
  rank.scheduler = scheduler.slot;
  const Result<SlotGrant> writer = table_->give(rank);
  ASSERT_TRUE(writer);
  EXPECT_TRUE(table_->has_plane_writers(scheduler.slot)) << "it has its planes, though it has not said so";
  EXPECT_FALSE(table_->has_plane_writers(other.slot));
  ASSERT_TRUE(table_->confirm(*writer));
  ASSERT_TRUE(table_->leave(*writer));
  EXPECT_TRUE(table_->has_plane_writers(scheduler.slot)) << "until it is reaped";
  reap(writer->slot);
  EXPECT_FALSE(table_->has_plane_writers(scheduler.slot));
  EXPECT_EQ(segment_->worker(writer->slot).scheduler.load(), 0U);
}

TEST_F(WorkerTableTest, LifeOfASlotIsOverWhenItIsFreeOrAnothers) {
  const SlotGrant grant = give();
  EXPECT_EQ(WorkerTag{WorkerTag::of(grant).raw}.grant(), grant);
  ASSERT_TRUE(table_->confirm(grant));
  EXPECT_FALSE(table_->over(grant));
  ASSERT_TRUE(table_->begin_reap(grant.slot, table_->word(grant.slot)));
  EXPECT_FALSE(table_->over(grant)) << "Reaping: something of it may be under way";
  table_->finish_reap(grant.slot);
  EXPECT_TRUE(table_->over(grant));
  EXPECT_EQ(give().slot, grant.slot);
  EXPECT_TRUE(table_->over(grant)) << "that life is over";
  EXPECT_TRUE(table_->over({{999}, 1}));
}

TEST_F(WorkerTableTest, LifeOfASlot) {
  const SlotGrant grant = give(1234);
  EXPECT_EQ(state(grant.slot), SlotState::kAttaching);
  EXPECT_EQ(grant.incarnation, 1U);
  const WorkerRecord& record = segment_->worker(grant.slot);
  EXPECT_EQ(record.pid.load(), 1234U);
  EXPECT_EQ(record.start_time.load(), 99U);
  EXPECT_STREQ(record.name, "engine");
  EXPECT_EQ(table_->validate(), "");
  ASSERT_TRUE(table_->confirm(grant));
  EXPECT_EQ(state(grant.slot), SlotState::kActive);
  const std::uint32_t rung = segment_->superblock().doorbell.word.load();
  ASSERT_TRUE(table_->leave(grant));
  EXPECT_NE(segment_->superblock().doorbell.word.load(), rung);
  EXPECT_EQ(state(grant.slot), SlotState::kLeaving);
  reap(grant.slot);
  EXPECT_EQ(state(grant.slot), SlotState::kFree);
  EXPECT_EQ(record.pid.load(), 0U);
  EXPECT_STREQ(record.name, "");
  EXPECT_EQ(segment_->total(Counter::kAttaches), 1U) << "counters belong to the slot";
  EXPECT_EQ(table_->validate(), "");
}

TEST_F(WorkerTableTest, IncarnationGrowsWithEachGrant) {
  for (std::uint64_t i = 1; i <= 3; ++i) {
    const SlotGrant grant = give();
    EXPECT_EQ(grant, (SlotGrant{{1}, i}));
    reap(grant.slot);
  }
}

TEST_F(WorkerTableTest, GivenUpSlotCannotBeConfirmed) {
  const SlotGrant late = give();
  reap(late.slot);
  EXPECT_EQ(table_->confirm(late).code(), Code::kStale);
  const SlotGrant next = give();
  ASSERT_EQ(next.slot, late.slot);
  EXPECT_EQ(table_->confirm(late).code(), Code::kStale) << "the slot's next life is another's";
  EXPECT_TRUE(table_->confirm(next));
}

TEST_F(WorkerTableTest, OldWorkerCannotLeaveForTheNewOne) {
  const SlotGrant old = give();
  ASSERT_TRUE(table_->confirm(old));
  reap(old.slot);
  const SlotGrant fresh = give();
  ASSERT_TRUE(table_->confirm(fresh));
  EXPECT_EQ(table_->leave(old).code(), Code::kStale);
  EXPECT_EQ(state(fresh.slot), SlotState::kActive);
}

TEST_F(WorkerTableTest, ReapTakesOnlyTheWordThatWasSeen) {
  const SlotGrant grant = give();
  const SlotWord attaching = table_->word(grant.slot);
  ASSERT_TRUE(table_->confirm(grant));
  EXPECT_FALSE(table_->begin_reap(grant.slot, attaching)) << "it confirmed just in time";
  EXPECT_EQ(state(grant.slot), SlotState::kActive);
  EXPECT_FALSE(table_->begin_reap({2}, table_->word({2}))) << "free slots are not reaped";
}

TEST_F(WorkerTableTest, ConfirmAndGiveUpNeverBothWin) {
  for (int round = 0; round < 2000; ++round) {
    const SlotGrant grant = give();
    bool confirmed = false;
    std::thread worker([&] { confirmed = table_->confirm(grant).ok(); });
    const bool given_up =
        table_->begin_reap(grant.slot, SlotWord::make(SlotState::kAttaching, grant.incarnation));
    worker.join();
    ASSERT_NE(confirmed, given_up);
    if (confirmed) {
      ASSERT_TRUE(table_->begin_reap(grant.slot, table_->word(grant.slot)));
    }
    table_->finish_reap(grant.slot);
  }
}

TEST_F(WorkerTableTest, GrantOfAnotherSegmentIsRefused) {
  EXPECT_EQ(table_->confirm({{0}, 1}).code(), Code::kCorrupt);
  EXPECT_EQ(table_->confirm({{4}, 1}).code(), Code::kCorrupt);
  EXPECT_EQ(table_->leave({{999}, 1}).code(), Code::kInvalid);
}

TEST_F(WorkerTableTest, LongNamesAreCut) {
  const std::string name(200, 'x');
  const Result<SlotGrant> grant = table_->give({1, 2, 3, WorkerRole::kWorker, name, 0});
  ASSERT_TRUE(grant);
  EXPECT_EQ(std::string(segment_->worker(grant->slot).name).size(), 63U);
}

TEST_F(WorkerTableTest, ReportsWhatIsImpossible) {
  const SlotGrant grant = give();
  WorkerRecord& record = segment_->worker(grant.slot);
  const std::uint64_t good = record.slot_state.load();
  record.slot_state.store(good | 0x77);
  EXPECT_NE(table_->validate().find("worker slot 1: impossible state"), std::string::npos);
  EXPECT_EQ(table_->stats().impossible, 1U);
  record.slot_state.store(good);
  record.pid.store(0);
  EXPECT_NE(table_->validate().find("without an identity"), std::string::npos);
  record.pid.store(5);
  record.role.store(9);
  EXPECT_NE(table_->validate().find("impossible role"), std::string::npos);
  record.role.store(0);
  EXPECT_EQ(table_->validate(), "");
  segment_->worker(kCoordinatorSlot).slot_state.store(good);
  EXPECT_NE(table_->validate().find("slot 0"), std::string::npos);
}

#ifdef KVTRIE_DEV
using test::dies_at;

TEST_F(WorkerTableTest, CoordinatorDiesInGive) {
  ASSERT_TRUE(dies_at("attach.after_identity", [&] { (void)give(); }));
  EXPECT_EQ(state({1}), SlotState::kFree);
  EXPECT_NE(segment_->worker({1}).pid.load(), 0U);
  table_->recover();
  EXPECT_EQ(segment_->worker({1}).pid.load(), 0U);
  EXPECT_EQ(table_->validate(), "");

  ASSERT_TRUE(dies_at("attach.after_attaching", [&] { (void)give(); }));
  EXPECT_EQ(state({1}), SlotState::kAttaching);
  EXPECT_EQ(table_->validate(), "");
  table_->recover();
  EXPECT_EQ(segment_->worker({1}).pid.load(), 1234U) << "not free: recover leaves it to the reaper";
  reap({1});
  EXPECT_EQ(give().slot, WorkerId{1});
}

TEST_F(WorkerTableTest, CoordinatorDiesInReap) {
  const SlotGrant grant = give();
  ASSERT_TRUE(table_->confirm(grant));
  ASSERT_TRUE(dies_at("reap.after_reaping",
                      [&] { (void)table_->begin_reap(grant.slot, table_->word(grant.slot)); }));
  EXPECT_EQ(state(grant.slot), SlotState::kReaping);
  EXPECT_EQ(table_->validate(), "");
  EXPECT_EQ(table_->confirm(grant).code(), Code::kStale);
  ASSERT_TRUE(dies_at("reap.after_identity_cleared", [&] { table_->finish_reap(grant.slot); }));
  EXPECT_EQ(state(grant.slot), SlotState::kReaping);
  EXPECT_EQ(table_->validate(), "");
  reap(grant.slot);
  EXPECT_EQ(state(grant.slot), SlotState::kFree);
}
#endif

}  // namespace
}  // namespace kvtrie
