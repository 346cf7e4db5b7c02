// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Tensor parallel with a real kvtried: a scheduler process and two rank processes that fill a plane each, through the C
// calls; one of them killed at each place that matters.

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "shm/free_pages.h"
#include "shm/page_table.h"
#include "shm/verify.h"
#include "shm/worker_table.h"
#include "tests/support/kvtried_process.h"
#include "tests/support/rank_processes.h"

namespace kvtrie {
namespace {

using test::Child;
using test::eventually;
using test::KvtriedProcess;
using test::kRankPages;
using test::kRanks;
using test::Line;
using test::RankProcesses;

constexpr std::uint32_t kPages = 64;

class PlaneWriterTest : public testing::Test {
 protected:
  void SetUp() override {
    serve();
    Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
  }
  void TearDown() override {
    scheduler_.reset();
    for (auto& rank : ranks_)
      rank.reset();
    EXPECT_TRUE(eventually([&] { return WorkerTable(*segment_).stats().slots[0] == 8; }));
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->err();
    const VerifyReport report = verify(*segment_, {.at_rest = true});
    EXPECT_TRUE(report.clean()) << to_string(report.findings.at(0));
  }
  void serve() {
    daemon_ = std::make_unique<KvtriedProcess>(
        cache_, std::vector<std::string>{"--pages", "64", "--page-bytes", "1K", "--planes", "2", "--workers", "8",
                                         "--metrics", "off", "--stripes", "8", "--low", "0", "--high", "0"});
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
  }
  // Scheduler with its pages, both ranks attached; rank 1 stops after `half` pages.
  void start(std::uint32_t half = kRankPages) {
    engine_.emplace(cache_);
    scheduler_ = std::make_unique<Child>([this](Line line) { return engine_->schedule(line); });
    ranks_[0] = std::make_unique<Child>([this](Line line) { return engine_->write_plane(0, line); });
    ranks_[1] = std::make_unique<Child>([this, half](Line line) { return engine_->write_plane(1, line, half); });
    engine_->close_reports();
    ASSERT_EQ(scheduler_->line().hear(), 'a');
    for (auto& rank : ranks_)
      ASSERT_EQ(rank->line().hear(), 'a');
  }
  std::uint64_t count(PageState state) const { return PageTable(*segment_).stats().of(state); }
  SlotState state_of(std::uint64_t id) const {
    return WorkerTable(*segment_).word(WorkerTag{id}.grant().slot).state();
  }
  bool published_bytes_are_right() const {
    for (std::uint32_t plane = 0; plane < kRanks; ++plane) {
      Result<FileDescriptor> fd = open_object(pool_object_name(cache_.name(), plane), Access::kReadOnly);
      Result<Mapping> pool = Mapping::map(fd->get(), kPages * 1024, Access::kReadOnly);
      for (std::uint32_t i = 0; i < kRankPages; ++i) {
        for (std::uint32_t byte = 0; byte < 1024; ++byte) {
          const auto there = static_cast<unsigned char>(pool->data()[engine_->pages()[i] * 1024 + byte]);
          if (there != test::rank_byte(plane, i)) return false;
        }
      }
    }
    return true;
  }

  test::TemporaryCache cache_{"plane-writer"};
  std::unique_ptr<KvtriedProcess> daemon_;
  std::optional<Segment> segment_;
  std::optional<RankProcesses> engine_;
  std::unique_ptr<Child> scheduler_;
  std::array<std::unique_ptr<Child>, kRanks> ranks_;
};

TEST_F(PlaneWriterTest, SchedulerPublishesAfterBothRanksReported) {
  start();
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
    const WorkerRecord& record = segment_->worker(WorkerTag{engine_->rank_id(rank)}.grant().slot);
    EXPECT_EQ(record.role.load(), static_cast<std::uint32_t>(WorkerRole::kPlaneWriter)) << "kvtrie workers shows it";
    EXPECT_EQ(record.pid.load(), static_cast<std::uint32_t>(ranks_[rank]->pid()));
    EXPECT_EQ(record.plane_mask.load(), std::uint64_t{1} << rank);
    EXPECT_EQ(record.scheduler.load(), WorkerTag{engine_->scheduler_id()}.grant().slot.value);
  }
  ranks_[0]->line().say();
  ASSERT_EQ(ranks_[0]->line().hear(), 'w');
  EXPECT_EQ(count(PageState::kLive), 0U) << "one rank has not written";
  EXPECT_EQ(count(PageState::kPending), kRankPages);
  ranks_[1]->line().say();
  ASSERT_EQ(ranks_[1]->line().hear(), 'w');
  ASSERT_EQ(scheduler_->line().hear(), 'p');
  EXPECT_EQ(count(PageState::kLive), kRankPages);
  EXPECT_TRUE(published_bytes_are_right());
  for (auto* child : {scheduler_.get(), ranks_[0].get(), ranks_[1].get()}) {
    child->line().say();
    EXPECT_EQ(child->wait(), 0);
  }
  EXPECT_EQ(count(PageState::kLive), kRankPages) << "published pages stay";
}

TEST_F(PlaneWriterTest, RankKilledHalfWayGivesNoLivePage) {
  start(kRankPages / 2);
  for (auto& rank : ranks_)
    rank->line().say();
  ASSERT_EQ(ranks_[0]->line().hear(), 'w');
  ASSERT_EQ(ranks_[1]->line().hear(), 'h');
  ranks_[1]->kill();
  ASSERT_EQ(scheduler_->line().hear(), 'r') << "gave the pages back, after the rank was over";
  EXPECT_EQ(count(PageState::kLive), 0U);
  EXPECT_EQ(count(PageState::kFree), kPages);
  EXPECT_TRUE(daemon_->logs("event=reap worker="));
}

TEST_F(PlaneWriterTest, PagesOfADeadSchedulerComeBackWhenItsLastRankIsGone) {
  start(kRankPages / 2);
  ranks_[1]->line().say();
  ASSERT_EQ(ranks_[1]->line().hear(), 'h');
  const std::uint64_t scheduler = engine_->scheduler_id();
  scheduler_->kill();
  ASSERT_TRUE(daemon_->logs("waits_for=plane_writers"));
  // Its ranks may write: nobody gets its pages, everybody gets the others.
  const kvtrie_worker other = engine_->attach(KVTRIE_ROLE_WORKER, 0, 0);
  std::uint64_t other_id = 0;
  ASSERT_EQ(kvtrie_worker_id(other, &other_id), KVTRIE_OK) << kvtrie_last_error();
  std::uint32_t cursor = 0;
  std::vector<PageIndex> taken;
  const WorkerId me = WorkerTag{other_id}.grant().slot;
  EXPECT_EQ(FreePages(*segment_).take(me, kPages, {kPages}, cursor, taken), kPages - kRankPages);
  // Nor does the next coordinator give them away.
  daemon_->send(SIGKILL);
  daemon_->wait();
  serve();
  EXPECT_TRUE(daemon_->logs("waits_for=plane_writers"));
  EXPECT_EQ(state_of(scheduler), SlotState::kReaping);
  ranks_[0]->kill();
  ranks_[1]->line().say();  // writes the other half, into pages of a dead scheduler
  ASSERT_EQ(ranks_[1]->line().hear(), 'w');
  EXPECT_EQ(state_of(scheduler), SlotState::kReaping) << "one rank is left";
  EXPECT_EQ(count(PageState::kPending), kRankPages);
  ranks_[1]->line().say();  // detaches
  EXPECT_EQ(ranks_[1]->wait(), 0);
  EXPECT_TRUE(eventually([&] { return state_of(scheduler) == SlotState::kFree; }));
  EXPECT_EQ(FreePages(*segment_).take(me, kPages, {kPages}, cursor, taken), kRankPages);
  FreePages(*segment_).give_back(me, taken);
  EXPECT_EQ(kvtrie_detach(other), KVTRIE_OK);
}

TEST_F(PlaneWriterTest, WritesItsPlanesAndReadsTheOthers) {
  start();
  const kvtrie_worker rank = engine_->attach(KVTRIE_ROLE_PLANE_WRITER, 2, engine_->scheduler_id());
  ASSERT_NE(rank.id, 0U) << kvtrie_last_error();
  kvtrie_field fields[] = {{"model", "m"}};
  kvtrie_namespace space{0};
  EXPECT_EQ(kvtrie_open_namespace(rank, fields, 1, "m", &space), KVTRIE_E_INVALID);
  EXPECT_NE(std::string(kvtrie_last_error()).find("plane writer has no namespaces"), std::string::npos);
  const auto writes = [this](std::uint32_t plane) {
    Child child([&](Line) {
      const kvtrie_worker mine = engine_->attach(KVTRIE_ROLE_PLANE_WRITER, 2, engine_->scheduler_id());
      void* address = nullptr;
      if (kvtrie_page_address(mine, 0, plane, &address) != KVTRIE_OK) return 1;
      volatile char* const byte = static_cast<char*>(address);
      if (*byte != 0) return 2;
      *byte = 0;
      return 0;
    });
    return child.wait();
  };
  EXPECT_EQ(writes(1), 0);
  EXPECT_EQ(writes(0), -SIGSEGV);
  EXPECT_EQ(kvtrie_detach(rank), KVTRIE_OK);
}

TEST_F(PlaneWriterTest, IsRefusedWithoutPlanesOrScheduler) {
  start();
  const auto refused = [&](std::uint32_t role, std::uint64_t mask, std::uint64_t scheduler, const std::string& why) {
    EXPECT_EQ(engine_->attach(role, mask, scheduler).id, 0U);
    EXPECT_NE(std::string(kvtrie_last_error()).find(why), std::string::npos) << kvtrie_last_error();
  };
  const std::uint64_t scheduler = engine_->scheduler_id();
  refused(KVTRIE_ROLE_PLANE_WRITER, 0, scheduler, "name one or more of the 2 planes");
  refused(KVTRIE_ROLE_PLANE_WRITER, 4, scheduler, "name one or more of the 2 planes");
  refused(KVTRIE_ROLE_PLANE_WRITER, 1, 0, "is not an attached worker");
  refused(KVTRIE_ROLE_PLANE_WRITER, 1, scheduler + (1U << 16), "is not an attached worker");
  refused(KVTRIE_ROLE_PLANE_WRITER, 1, scheduler | 0xFFFF, "is not an attached worker");
  refused(KVTRIE_ROLE_WORKER, 1, 0, "for plane writers");
  refused(1, 0, 0, "KVTRIE_ROLE_PLANE_WRITER");
}

}  // namespace
}  // namespace kvtrie
