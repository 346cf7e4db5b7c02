// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What `verify` excuses, counts and says of a valid segment, and of one with leftovers.

#include "shm/verify.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/shm/verify_fixture.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;
using test::VerifyTest;
using test::in_lines;

TEST_F(VerifyTest, FreshSegmentIsClean) {
  FileDescriptor fd = std::move(*test::nameless_object(bytes_));
  const Result<Segment> fresh = test::build_segment(fd.get(), geometry_);
  ASSERT_TRUE(fresh);
  for (const VerifyOptions& options : {live(), at_rest()}) {
    const VerifyReport report = verify(*fresh, options);
    EXPECT_TRUE(report.clean()) << in_lines(report);
    EXPECT_EQ(report.pages[static_cast<int>(PageState::kFree)], geometry_.pages);
  }
}

TEST_F(VerifyTest, FilledSegmentIsCleanAndCounted) {
  expect_clean(live());
  const VerifyReport report = verify(*segment_, at_rest());
  EXPECT_TRUE(report.clean()) << in_lines(report);
  EXPECT_EQ(report.pages[static_cast<int>(PageState::kLive)], 5U);
  EXPECT_EQ(report.pages[static_cast<int>(PageState::kPending)], 2U);
  EXPECT_EQ(report.pages[static_cast<int>(PageState::kWriting)], 1U);
  EXPECT_EQ(report.pages[static_cast<int>(PageState::kFree)], geometry_.pages - 8);
  EXPECT_EQ(report.pages_impossible, 0U);
  EXPECT_EQ(report.leases, 3U);
  EXPECT_EQ(report.index_entries, 7U);
}

TEST_F(VerifyTest, PlaneWriterOfAFreeSlotIsAFinding) {
  const WorkerTable table(*segment_);
  const auto used = [&](std::uint16_t slot) { return table.word({slot}).state() != SlotState::kFree; };
  WorkerIdentity rank{1234, 99, 7, WorkerRole::kPlaneWriter, "rank", 1};
  rank.scheduler = {1};
  ASSERT_TRUE(used(1));
  const Result<SlotGrant> writer = table.give(rank);
  ASSERT_TRUE(writer);
  ASSERT_TRUE(table.confirm(*writer));
  expect_clean(live());
  std::uint16_t free = 1;
  while (used(free))
    ++free;
  segment_->worker(writer->slot).scheduler.store(free);
  const VerifyReport report = verify(*segment_, live());
  ASSERT_FALSE(report.clean());
  EXPECT_EQ(report.findings.front().invariant, Invariant::kIdentity) << in_lines(report);
}

TEST_F(VerifyTest, ReadOnlyMappingIsEnough) {
  Result<Mapping> mapping = Mapping::map(fd_.get(), bytes_, Access::kReadOnly);
  ASSERT_TRUE(mapping);
  const Result<Segment> opened = Segment::open(std::move(*mapping));
  ASSERT_TRUE(opened);
  for (const VerifyOptions& options : {live(), at_rest()}) {
    const VerifyReport report = verify(*opened, options);
    EXPECT_TRUE(report.clean()) << in_lines(report);
  }
}

TEST_F(VerifyTest, FlushedPagesAreNoFinding) {
  segment_->name_space(namespace_.id).root_generation.fetch_add(1);
  expect_clean(live());
  expect_clean(at_rest());
}

TEST_F(VerifyTest, CondemnedPagesAreFoundAtRestOnly) {
  state(c_).store(word(c_).with(PageState::kCondemned).raw);
  expect_clean(live());
  EXPECT_FALSE(verify(*segment_, at_rest()).clean());
}

TEST_F(VerifyTest, HeldCountThatIsTooHighIsFoundAtRestOnly) {
  segment_->held_count(kMe, 2).store(7);
  expect_clean(live());
  EXPECT_FALSE(verify(*segment_, at_rest()).clean());
}

TEST_F(VerifyTest, FreePageWithoutBitIsExcusedWhileSomebodyHoldsItsChunk) {
  segment_->free_bits(2).fetch_and(~std::uint64_t{4});
  segment_->held_count(kMe, 2).store(1);  // killed between bits and state, not reaped yet
  expect_clean(live());
}

TEST_F(VerifyTest, FreePageWithoutBitIsExcusedWhileNoCoordinatorRuns) {
  segment_->free_bits(2).fetch_and(~std::uint64_t{4});
  block().coordinator_pid.store(0);  // it died between its two stores; adoption sets all bits
  expect_clean(live());
}

TEST_F(VerifyTest, SetBitOfAPageThatIsNotFreeIsNoFinding) {
  segment_->free_bits(a_.value / kChunkPages).fetch_or(std::uint64_t{1} << a_.value % kChunkPages);
  expect_clean(live());
  expect_clean(at_rest());
}

// A worker stopped between a store and the next one loses nothing and is no violation.
TEST_F(VerifyTest, StoppedWorkersHalfDoneStepsAreExcused) {
  Child worker([](Line line) {
    line.say();
    line.hear();
    return 0;
  });
  ASSERT_EQ(worker.line().hear(), '+');
  WorkerRecord& record = segment_->worker(kOther);
  record.pid.store(static_cast<std::uint32_t>(worker.pid()));
  record.start_time.store(*start_time_of(static_cast<std::uint32_t>(worker.pid())));
  // Pending without its entry; and a lease on a life that is over.
  ASSERT_TRUE(
      index_->remove(segment_->descriptor(other_pending_).prefix_hash.load(), other_pending_));
  const Handle gone = Handle::page(free_page(), word(free_page()).generation() + 5);
  segment_->worker(kOther).leases_high_water.store(2);
  segment_->leases(kOther)[1].handle.store(gone.raw);
  const VerifyReport running = verify(*segment_, live());
  EXPECT_EQ(running.findings_total, 2U) << in_lines(running);
  ASSERT_TRUE(worker.stop());
  expect_clean(live());
  worker.kill();
  expect_clean(live());
  EXPECT_EQ(verify(*segment_, at_rest()).findings_total, 2U);
}

TEST_F(VerifyTest, ReportIsLimitedAndCountsTheRest) {
  for (std::uint32_t i = 100; i < 200; ++i)
    state(PageIndex{i}).store(0xF);
  VerifyOptions options = at_rest();
  options.findings_max = 10;
  const VerifyReport report = verify(*segment_, options);
  EXPECT_EQ(report.findings.size(), 10U);
  EXPECT_GE(report.findings_total, 100U);
  EXPECT_EQ(report.pages_impossible, 100U);
}

TEST_F(VerifyTest, FindingReadsAsOneLine) {
  state(PageIndex{100}).store(0xF);
  const VerifyReport report = verify(*segment_, live());
  ASSERT_EQ(report.findings.size(), 1U) << in_lines(report);
  EXPECT_EQ(to_string(report.findings[0]),
            "C1.state page 100: impossible state word 0x000000000000000f");
}

}  // namespace
}  // namespace kvtrie
