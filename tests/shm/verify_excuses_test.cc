// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Whom `verify` excuses on a live segment and while a coordinator adopts, and that a clean pass over
// the index hides nothing.

#include <gtest/gtest.h>

#include <algorithm>

#include "shm/verify.h"
#include "tests/shm/cache_fixture.h"

namespace kvtrie {
namespace {

class VerifyExcusesTest : public test::CacheFixture {
 protected:
  VerifyReport look(bool adopting) const {
    return verify(*segment_, {.adopting = adopting, .settle_ms = 3});
  }
  static bool finds(const VerifyReport& report, Invariant invariant) {
    return std::ranges::find(report.findings, invariant, &Finding::invariant) !=
           report.findings.end();
  }
  void take_out(PageIndex page) const {
    ASSERT_TRUE(index_->remove(segment_->descriptor(page).prefix_hash.load(), page));
  }
  void die(WorkerId worker) const { segment_->worker(worker).start_time.store(1); }
};

TEST_F(VerifyExcusesTest, AdoptionAsksOfNobodyWhetherItRuns) {
  take_out(other_pending_);
  EXPECT_TRUE(finds(look(false), Invariant::kIndexed)) << "its worker runs";
  EXPECT_TRUE(look(true).clean()) << "but may be frozen, say, between the two stores";
}

TEST_F(VerifyExcusesTest, AdoptionExcusesNoSharedPage) {
  take_out(c_);
  EXPECT_TRUE(finds(look(true), Invariant::kIndexed));
}

TEST_F(VerifyExcusesTest, KeyOfADeadWorkersUnlistedPageMayBeAnnouncedAgain) {
  take_out(other_pending_);  // it died between Pending and the entry
  die(kOther);
  announce(kMe, std::nullopt, {31, 32, 33, 34, 35});
  EXPECT_TRUE(look(false).clean());
  EXPECT_TRUE(look(true).clean());
}

TEST_F(VerifyExcusesTest, ListedPagesOfOneKeyAreDuplicatesWhoeverIsDead) {
  copy_of(other_pending_);
  die(kOther);
  EXPECT_TRUE(finds(look(false), Invariant::kDuplicate));
  EXPECT_TRUE(finds(look(true), Invariant::kDuplicate));
}

// Duplicates meet in their buckets. Those that do not are found too.
TEST_F(VerifyExcusesTest, DuplicateWithoutAnEntryIsFound) {
  take_out(copy_of(c_));
  const VerifyReport report = look(false);
  EXPECT_TRUE(finds(report, Invariant::kIndexed));
  EXPECT_TRUE(finds(report, Invariant::kDuplicate));
}

TEST_F(VerifyExcusesTest, DuplicateUnderAnotherHashIsFound) {
  const PageIndex copy = copy_of(c_);
  take_out(copy);
  segment_->descriptor(copy).prefix_hash.store(4711);
  enter_somewhere(4711, copy);
  const VerifyReport report = look(false);
  EXPECT_TRUE(finds(report, Invariant::kHash));
  EXPECT_TRUE(finds(report, Invariant::kDuplicate));
}

}  // namespace
}  // namespace kvtrie
