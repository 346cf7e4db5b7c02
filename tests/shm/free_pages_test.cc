// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/free_pages.h"

#include "tests/shm/cache_fixture.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

class FreePagesTest : public test::CacheFixture {
 protected:
  FreePages pages() const { return FreePages(*segment_); }
  std::uint32_t last_chunk() const { return segment_->chunk_count() - 1; }
  std::int64_t hint() const { return block().free_hint.load(); }
  void expect_given_back(const char* where) const {
    EXPECT_EQ(word(pending_).state(), PageState::kFree) << where;
    EXPECT_EQ(word(writing_).state(), PageState::kFree) << where;
    EXPECT_EQ(word(other_pending_).state(), PageState::kPending) << where;
    EXPECT_EQ(index_->occurrences(segment_->descriptor(pending_).prefix_hash.load(), pending_), 0U)
        << where;
    EXPECT_EQ(pages().stats().held_of.at(kMe.value), 0U) << where;
    EXPECT_EQ(pages().count(), geometry_.pages - 6) << where;
  }
};

TEST_F(FreePagesTest, InitFindsEachPageAndNoOther) {
  const FileDescriptor fd = std::move(*test::nameless_object(bytes_));
  const Result<Segment> fresh = test::build_segment(fd.get(), geometry_);
  ASSERT_TRUE(fresh);
  EXPECT_EQ(FreePages(*fresh).validate(), "");
  EXPECT_EQ(FreePages(*fresh).count(), geometry_.pages);
  EXPECT_EQ(fresh->superblock().free_hint.load(), static_cast<std::int64_t>(geometry_.pages));
}

TEST_F(FreePagesTest, ValidateNamesWhatCannotBe) {
  EXPECT_EQ(pages().validate(), "");
  segment_->free_bits(last_chunk()).fetch_or(std::uint64_t{1} << 63);
  EXPECT_TRUE(pages().validate().starts_with("chunk 3: free bits")) << pages().validate();
  segment_->free_bits(last_chunk()).fetch_and(~(std::uint64_t{1} << 63));
  segment_->held_count({3}, 2).store(4);
  EXPECT_EQ(pages().validate(), "worker slot 3: free, but held count of chunk 2 is 4");
  segment_->held_count({3}, 2).store(0);
  EXPECT_EQ(pages().validate(), "");
}

TEST_F(FreePagesTest, RecoverFindsFreePagesWithoutABit) {
  const std::uint64_t before = pages().count();
  segment_->free_bits(2).store(0);
  block().free_hint.store(-7);
  for (int run = 0; run < 2; ++run) {
    pages().recover();
    EXPECT_EQ(pages().count(), before);
    EXPECT_EQ(hint(), static_cast<std::int64_t>(before));
  }
}

TEST_F(FreePagesTest, RecoverGivesBackWhatTheDeadHeldAndNothingElse) {
  const std::int64_t before = hint();
  const std::uint64_t generation = word(writing_).generation();
  EXPECT_EQ(pages().recover(kMe), 2U);
  expect_given_back("once");
  EXPECT_EQ(word(writing_).generation(), generation + 1);
  EXPECT_EQ(hint(), before + 2);
  EXPECT_EQ(pages().recover(kMe), 0U);
  EXPECT_EQ(hint(), before + 2);
}

TEST_F(FreePagesTest, ARequestForManyTakesTheRunThatFitsBest) {
  const auto leave_free = [&](std::uint32_t chunk, std::uint32_t first, std::uint32_t count) {
    segment_->free_bits(chunk).fetch_or(((std::uint64_t{1} << count) - 1) << first);
  };
  for (std::uint32_t chunk = 0; chunk <= last_chunk(); ++chunk) segment_->free_bits(chunk).store(0);
  leave_free(1, 3, 20);
  leave_free(1, 40, 12);
  leave_free(1, 60, 4);  // goes on in the next chunk
  leave_free(2, 0, 10);
  leave_free(2, 20, 1);
  std::uint32_t cursor = 0;
  const PageIndex nowhere{static_cast<std::uint32_t>(geometry_.pages)};
  const auto take = [&](std::uint32_t wanted) {
    std::vector<PageIndex> taken;
    EXPECT_EQ(pages().take(kMe, wanted, nowhere, cursor, taken), wanted);
    std::vector<std::uint32_t> places;
    for (const PageIndex page : taken) places.push_back(page.value);
    return places;
  };
  const auto run = [](std::uint32_t first, std::uint32_t count) {
    std::vector<std::uint32_t> places(count);
    for (std::uint32_t i = 0; i < count; ++i) places[i] = first + i;
    return places;
  };
  EXPECT_EQ(take(12), run(64 + 40, 12)) << "not of the first run that is long enough";
  EXPECT_EQ(take(13), run(64 + 60, 13)) << "across two chunks";
  EXPECT_EQ(take(22).front(), 64U + 3) << "the longest first, when none is long enough";
  EXPECT_EQ(pages().count(), 0U) << "then what there is";
}

TEST_F(FreePagesTest, StatsSumHeldCountsBySlot) {
  segment_->held_count(kMe, 3).fetch_add(5);
  const FreeStats stats = pages().stats();
  EXPECT_EQ(stats.free_bits, pages().count());
  EXPECT_EQ(stats.held_of, (std::vector<std::uint64_t>{0, 7, 1, 0}));
}

#ifdef KVTRIE_DEV
TEST_F(FreePagesTest, RecoverCanDieAndRunAgain) {
  for (const char* place :
       {"finish.after_unindex", "evict.after_free", "reap.before_held", "reap.after_chunk"}) {
    cursor_ = 0;
    SetUp();
    ASSERT_TRUE(test::dies_at(place, [&] { (void)pages().recover(kMe); })) << place;
    (void)pages().recover(kMe);
    expect_given_back(place);
  }
}
#endif

}  // namespace
}  // namespace kvtrie
