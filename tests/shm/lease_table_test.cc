// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/lease_table.h"

#include "tests/shm/cache_fixture.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

class LeaseTableTest : public test::CacheFixture {
 protected:
  LeaseTable table() const { return LeaseTable(*segment_); }
  AtomicU64& handle(WorkerId worker, std::size_t i) const {
    return segment_->leases(worker)[i].handle;
  }
  AtomicU32& mark(WorkerId worker) const { return segment_->worker(worker).leases_high_water; }
};

TEST_F(LeaseTableTest, NewTableHasNoLease) {
  const FileDescriptor fd = std::move(*test::nameless_object(bytes_));
  const Result<Segment> fresh = test::build_segment(fd.get(), geometry_);
  ASSERT_TRUE(fresh);
  EXPECT_EQ(LeaseTable(*fresh).validate(), "");
  EXPECT_EQ(LeaseTable(*fresh).stats().all(), 0U);
}

TEST_F(LeaseTableTest, ValidateNamesWhatCannotBe) {
  EXPECT_EQ(table().validate(), "");
  const std::uint64_t good = handle(kOther, 0).load();
  handle(kOther, 0).store(Handle::page(PageIndex{250}, 0).raw);
  EXPECT_TRUE(table().validate().starts_with("worker slot 2: lease 0 is of")) << table().validate();
  handle(kOther, 0).store(namespace_.root().raw);
  EXPECT_NE(table().validate().find("no page"), std::string::npos) << "a root is not leased";
  handle(kOther, 0).store(good);
  handle(kMe, 3).store(good);
  EXPECT_EQ(table().validate(), "worker slot 1: lease 3 above its high-water mark");
  handle(kMe, 3).store(0);
  mark(kMe).store(geometry_.leases_per_worker + 1);
  EXPECT_EQ(table().validate(), "worker slot 1: lease high-water mark 11 of 10 leases");
  mark(kMe).store(1);
  EXPECT_EQ(table().validate(), "");
}

TEST_F(LeaseTableTest, RecoverClearsThoseOfTheDeadAlone) {
  lease(kMe, 2, c_);
  segment_->leases(kMe)[2].request_tag.store(5);
  EXPECT_EQ(table().recover(kMe), 2U);
  for (const std::size_t i : {0U, 2U})
    EXPECT_EQ(handle(kMe, i).load(), 0U);
  EXPECT_EQ(segment_->leases(kMe)[2].request_tag.load(), 0U);
  EXPECT_EQ(mark(kMe).load(), 0U);
  EXPECT_NE(handle(kOther, 0).load(), 0U);
  EXPECT_EQ(table().recover(kMe), 0U);
}

TEST_F(LeaseTableTest, RecoverOfAMarkBeyondTheTableStaysInIt) {
  const std::uint64_t others = handle(kOther, 0).load();
  mark(kMe).store(~0U);
  EXPECT_EQ(table().recover(kMe), 1U);
  EXPECT_EQ(handle(kOther, 0).load(), others);
}

TEST_F(LeaseTableTest, StatsTellWhatProtects) {
  handle(kOther, 1).store(Handle::page(c_, word(c_).generation() + 1).raw);
  mark(kOther).store(2);
  handle(kOther, 5).store(Handle::page(c_, word(c_)).raw);  // above the mark: nobody looks there
  const LeaseStats stats = table().stats();
  EXPECT_EQ(stats.held, 2U);
  EXPECT_EQ(stats.pins, 1U);
  EXPECT_EQ(stats.stale, 1U);
  EXPECT_EQ(stats.all(), 4U);
}

TEST_F(LeaseTableTest, VisitsWhatTheEvictorMustKnow) {
  handle(kMe, 1).store(namespace_.root().raw);  // names no page: must not lead outside
  mark(kMe).store(2);
  std::vector<Handle> seen;
  table().for_each([&](WorkerId, Handle of) { seen.push_back(of); });
  EXPECT_EQ(seen, (std::vector<Handle>{Handle::page(a_, word(a_)), Handle::page(b_, word(b_)),
                                       Handle::page(sibling_, word(sibling_))}));
}

#ifdef KVTRIE_DEV
TEST_F(LeaseTableTest, RecoverCanDieAndRunAgain) {
  lease(kMe, 2, c_);
  ASSERT_TRUE(test::dies_at("reap.after_lease", [&] { (void)table().recover(kMe); }));
  EXPECT_NE(handle(kMe, 2).load(), 0U);
  EXPECT_EQ(mark(kMe).load(), 3U) << "else nobody would clear the rest";
  EXPECT_EQ(table().recover(kMe), 1U);
  EXPECT_EQ(handle(kMe, 2).load(), 0U);
}
#endif

}  // namespace
}  // namespace kvtrie
