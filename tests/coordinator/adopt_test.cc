// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A coordinator that takes over, and dies while it does.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "coordinator/evictor.h"
#include "shm/announce.h"
#include "shm/free_pages.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/stripe_index.h"
#include "tests/coordinator/running_coordinator.h"
#include "tests/support/dies_at.h"
#include "worker_plugin/attach_client.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;
using test::RunningCoordinator;

class AdoptTest : public testing::Test {
 protected:
  // A cache whose coordinator is gone; one worker lives with 10 pages, one is dead with 20, one is
  // half attached.
  void SetUp() override {
    {
      // Forked before there is a coordinator: a child would share its lock on the directory.
      alive_ = holder(10);
      const std::unique_ptr<Child> dead = holder(20);
      RunningCoordinator first(cache_);
      ASSERT_EQ(first.problem(), "");
      for (const Child* child : {alive_.get(), dead.get()}) {
        ASSERT_TRUE(child->line().say());
        ASSERT_EQ(child->line().hear(), '+');
      }
      first.stop();
    }
    Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
    const std::uint32_t pid = static_cast<std::uint32_t>(::getpid());
    ASSERT_TRUE(WorkerTable(*segment_).give({pid, 1, 0, WorkerRole::kWorker, "half", 0}));
    set(100, PageState::kRetiring);
    announce_first(101);
    set(101, PageState::kCondemned);
    EXPECT_EQ(slots(SlotState::kActive), 2U);
    EXPECT_EQ(slots(SlotState::kAttaching), 1U);
  }

  std::unique_ptr<Child> holder(std::uint32_t count) {
    return std::make_unique<Child>([this, count](Line line) {
      if (line.hear() != '+') return 9;
      std::string message;
      Result<Attachment> got =
          attach({{cache_.directory(), cache_.name()}, "holder", WorkerRole::kWorker, 0}, message);
      if (!got) return 10;
      Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
      if (!segment || !WorkerTable(*segment).confirm(got->grant)) return 11;
      std::uint32_t cursor = 0;
      std::vector<PageIndex> pages;
      if (FreePages(*segment).take(got->grant.slot, count, {0}, cursor, pages) != count) return 12;
      line.say();
      return line.hear() == '+' ? 0 : 13;
    });
  }
  void set(std::uint32_t page, PageState state) const {
    segment_->descriptor({page}).state.store(StateWord::make(state, 0).raw);
    segment_->free_bits(page / kChunkPages).fetch_and(~(std::uint64_t{1} << page % kChunkPages));
  }
  // A page below a root, announced by the worker that lives.
  void announce_first(std::uint32_t page) const {
    const Result<OpenNamespace> made = NamespaceTable(*segment_).open("model=m\n", "adopt");
    ASSERT_TRUE(made);
    const std::vector<std::uint32_t> tokens(segment_->tokens_per_page(), page);
    PageNode node;
    node.parent = made->root();
    node.prefix_hash = hash_page(made->hash_seed, tokens);
    node.name_space = made->id;
    node.root_generation = made->root_generation;
    node.depth = 1;
    node.publisher = {1};
    const PageIndex index{page};
    std::vector<PageIndex> taken;
    std::uint32_t cursor = 0;
    ASSERT_EQ(FreePages(*segment_).take({1}, 1, index, cursor, taken), 1U);
    ASSERT_EQ(taken[0], index);
    ASSERT_EQ(announce_page(*segment_, StripeIndex(*segment_), {1}, index, node, tokens).outcome,
              AnnounceOutcome::kAnnounced);
    FreePages(*segment_).drop_held({1}, taken);
  }
  // The message; and that nothing of the segment was changed.
  std::string refusal() const {
    const std::uint64_t epoch = segment_->superblock().coordinator_epoch.load();
    RunningCoordinator next(cache_);
    EXPECT_EQ(segment_->superblock().coordinator_epoch.load(), epoch);
    EXPECT_EQ(slots(SlotState::kActive), 2U) << "one of them is dead";
    EXPECT_EQ(state(100), PageState::kRetiring);
    EXPECT_EQ(state(101), PageState::kCondemned);
    EXPECT_NE(next.problem().find("kvtrie destroy"), std::string::npos) << next.problem();
    return next.problem();
  }
  PageState state(std::uint32_t page) const {
    return StateWord{segment_->descriptor({page}).state.load()}.state();
  }
  std::uint32_t slots(SlotState state) const {
    return WorkerTable(*segment_).stats().slots[static_cast<int>(state)];
  }
  void expect_adopted() const {
    EXPECT_EQ(slots(SlotState::kActive), 1U);
    EXPECT_EQ(slots(SlotState::kFree), 2U);
    EXPECT_EQ(WorkerTable(*segment_).validate(), "");
    EXPECT_EQ(state(100), PageState::kFree);
    EXPECT_EQ(state(101), PageState::kLive);
    EXPECT_EQ(FreePages(*segment_).count(), 128U - 10 - 1) << "10 of the living, one Live";
    EXPECT_EQ(segment_->superblock().coordinator_state.load(),
              static_cast<std::uint32_t>(CoordinatorState::kServing));
  }

  test::TemporaryCache cache_{"adopt"};
  std::unique_ptr<Child> alive_;
  std::optional<Segment> segment_;
};

TEST_F(AdoptTest, TakesOverWhatIsThere) {
  RunningCoordinator next(cache_);
  ASSERT_EQ(next.problem(), "");
  expect_adopted();
  EXPECT_NE(next.log().find("event=adopt"), std::string::npos);
  EXPECT_NE(next.log().find("workers=1 reaped=2 condemned=1 retiring=1"), std::string::npos)
      << next.log();
  EXPECT_EQ(segment_->total(Counter::kAdoptions), 1U);
  EXPECT_EQ(segment_->total(Counter::kReapedWorkers), 1U) << "the half attached one did not die";
}

TEST_F(AdoptTest, PinsOfTheOperatorSurvive) {
  const Handle pinned = Handle::page({101}, StateWord{segment_->descriptor({101}).state.load()});
  segment_->worker(kCoordinatorSlot).leases_high_water.store(1);
  segment_->leases(kCoordinatorSlot)[0].handle.store(pinned.raw);
  {
    RunningCoordinator next(cache_);
    ASSERT_EQ(next.problem(), "");
    expect_adopted();
    next.stop();
  }
  EXPECT_EQ(segment_->leases(kCoordinatorSlot)[0].handle.load(), pinned.raw);
  Evictor evictor(*segment_);
  EXPECT_EQ(evictor.evict(1, [] { return false; }, [](double) {}).evicted, 0U);
  EXPECT_EQ(state(101), PageState::kLive);
  segment_->leases(kCoordinatorSlot)[0].handle.store(0);
  EXPECT_EQ(evictor.evict(1, [] { return false; }, [](double) {}).evicted, 1U) << "it was the pin that kept it";
}

TEST_F(AdoptTest, RefusesABrokenParent) {
  segment_->descriptor({101}).parent.store(Handle::page({55}, 0).raw);
  EXPECT_NE(refusal().find("is corrupt: C2.parent page 101: parent is page 55"), std::string::npos)
      << refusal();
}

TEST_F(AdoptTest, RefusesABrokenIndexEntry) {
  const StripeIndex index(*segment_);
  const IndexPlace place = index.place_of(12345);
  StripeIndex::enter(segment_->bucket(place.bucket[0]).entries[7], place, {55});
  EXPECT_NE(refusal().find("is of page 55, which is free"), std::string::npos) << refusal();
}

TEST_F(AdoptTest, RefusesALivePageThatNobodyWouldFind) {
  ASSERT_TRUE(
      StripeIndex(*segment_).remove(segment_->descriptor({101}).prefix_hash.load(), {101}));
  EXPECT_NE(refusal().find("I1.indexed page 101"), std::string::npos) << refusal();
}

// What no process can leave even for a while is refused without waiting.
TEST_F(AdoptTest, RefusesAnImpossibleStateAtOnce) {
  segment_->descriptor({55}).state.store(0xF);
  EXPECT_NE(refusal().find("page 55: impossible state word 0xf"), std::string::npos) << refusal();
}

// A worker dies, or is stopped for long, between Pending and the index entry.
TEST_F(AdoptTest, TakesOverFromAWorkerInTheMiddleOfAnAnnouncement) {
  announce_first(102);
  ASSERT_TRUE(
      StripeIndex(*segment_).remove(segment_->descriptor({102}).prefix_hash.load(), {102}));
  segment_->held_count({1}, 102 / kChunkPages).fetch_add(1);
  ASSERT_EQ(state(102), PageState::kPending);
  RunningCoordinator next(cache_);
  ASSERT_EQ(next.problem(), "");
  EXPECT_EQ(state(102), PageState::kPending) << "it is the living worker's";
}

TEST_F(AdoptTest, WakesWhoSleepsForPages) {
  WorkerRecord& record = segment_->worker({1});
  record.pages_wanted.store(1000);  // more than there are: no pass of the evictor serves it
  const std::uint32_t before = record.wait_word.load();
  const std::uint32_t pending = record.pending_word.load();
  RunningCoordinator next(cache_);
  ASSERT_EQ(next.problem(), "");
  EXPECT_NE(record.wait_word.load(), before);
  EXPECT_NE(record.pending_word.load(), pending) << "who waits for a Pending page looks again";
  record.pages_wanted.store(0);
}

TEST_F(AdoptTest, ForgetsTheWaiterOfTheDeadOnTheDoorbell) {
  segment_->superblock().doorbell.waiters.store(7);
  RunningCoordinator next(cache_);
  ASSERT_EQ(next.problem(), "");
  EXPECT_TRUE(
      test::eventually([&] { return segment_->superblock().doorbell.waiters.load() == 1; }));
}

// Whatever fails for want of descriptors, only the kernel's word makes a worker dead.
TEST_F(AdoptTest, WithoutDescriptorsNobodyIsTakenForDead) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  std::size_t refused = 0;
  for (rlim_t limit = 3; limit < 80; ++limit) {
    const rlimit few{limit, before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
    std::string problem;
    {
      RunningCoordinator next(cache_);
      problem = next.problem();
    }
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    if (!problem.empty()) ++refused;
    ASSERT_EQ(WorkerTable(*segment_).word({1}).state(), SlotState::kActive)
        << limit << " " << problem;
  }
  EXPECT_GT(refused, 10U);
  EXPECT_LT(refused, 70U);
}

#ifdef KVTRIE_DEV
TEST_F(AdoptTest, DiesWhileItAdopts) {
  for (const char* place :
       {"adopt.after_epoch", "reap.after_reaping", "reap.after_identity_cleared",
        "adopt.after_slots", "adopt.after_pages"}) {
    const bool died = test::dies_at(place, [&] { const RunningCoordinator dying(cache_); });
    EXPECT_TRUE(died) << place;
    EXPECT_EQ(WorkerTable(*segment_).validate(), "") << place;
  }
  EXPECT_EQ(segment_->superblock().coordinator_epoch.load(), 6U);
  RunningCoordinator next(cache_);
  ASSERT_EQ(next.problem(), "");
  expect_adopted();
}
#endif

}  // namespace
}  // namespace kvtrie
