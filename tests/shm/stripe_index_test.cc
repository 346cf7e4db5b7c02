// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/stripe_index.h"

#include <bit>
#include <random>

#include "shm/robust_mutex.h"
#include "tests/shm/cache_fixture.h"

namespace kvtrie {
namespace {

class StripeIndexTest : public test::CacheFixture {
 protected:
  std::uint64_t hash_of(PageIndex page) const {
    return segment_->descriptor(page).prefix_hash.load();
  }
};

TEST_F(StripeIndexTest, InitMakesLocksThatCanBeHad) {
  const FileDescriptor fd = std::move(*test::nameless_object(bytes_));
  const Result<Segment> fresh = test::build_segment(fd.get(), geometry_);
  ASSERT_TRUE(fresh);
  EXPECT_EQ(StripeIndex(*fresh).validate(), "");
  for (std::uint32_t i = 0; i < geometry_.stripes; ++i) {
    ASSERT_TRUE(RobustMutex::acquire(fresh->stripe(i).mutex)) << i;
    EXPECT_TRUE(RobustMutex::release(fresh->stripe(i).mutex)) << i;
  }
}

TEST_F(StripeIndexTest, ValidateNamesALockThatIsNone) {
  EXPECT_EQ(index_->validate(), "");
  segment_->stripe(2).mutex.__data.__kind ^= 1;
  EXPECT_TRUE(index_->validate().starts_with("stripe 2: ")) << index_->validate();
}

TEST_F(StripeIndexTest, ValidateNamesAnEntryThatCannotBe) {
  AtomicU64& entry = segment_->bucket(5).entries[7];
  entry.store(StripeIndex::kValid | geometry_.pages);
  EXPECT_TRUE(index_->validate().starts_with("bucket 5: impossible entry")) << index_->validate();
  entry.store(b_.value);
  EXPECT_NE(index_->validate(), "") << "not valid, not empty";
  entry.store(0);
  EXPECT_EQ(index_->validate(), "");
}

TEST_F(StripeIndexTest, RecoverTakesOutStaleEntriesAndLeavesTheRest) {
  const std::uint64_t hash = hash_of(c_);
  const std::uint32_t stripe = index_->place_of(hash).stripe;
  enter_somewhere(hash, free_page());
  enter_somewhere(hash, writing_);
  segment_->bucket(index_->first_bucket(stripe)).entries[7].store(1);
  EXPECT_EQ(index_->recover(stripe), 3U);
  EXPECT_EQ(index_->recover(stripe), 0U);
  for (std::uint32_t i = 0; i < geometry_.stripes; ++i)
    (void)index_->recover(i);
  for (const PageIndex page : {a_, b_, c_, sibling_, short_, pending_, other_pending_})
    EXPECT_EQ(index_->occurrences(hash_of(page), page), 1U) << page.value;
}

// The wide comparison may name an entry too many, with the same upper half; never one too few.
TEST_F(StripeIndexTest, EntriesOfATagAreThoseThatALoopFinds) {
  std::mt19937_64 random(1);
  alignas(64) IndexBucket bucket{};
  unsigned found = 0;
  for (int round = 0; round < 20'000; ++round) {
    const std::uint64_t tagged = StripeIndex::kValid | (random() & StripeIndex::kTagMask);
    unsigned equal = 0, alike = 0;
    for (unsigned i = 0; i < kBucketEntries; ++i) {
      const std::uint64_t one_bit_off = tagged ^ 1ULL << random() % 64;
      const std::uint64_t entries[] = {0, tagged, tagged | (random() & kIndexMask), one_bit_off, random()};
      const std::uint64_t entry = entries[random() % 5];
      bucket.entries[i].store(entry);
      equal |= static_cast<unsigned>((entry & ~kIndexMask) == tagged) << i;
      alike |= static_cast<unsigned>(entry >> 32 == tagged >> 32) << i;
    }
    const unsigned named = entries_equal(bucket, tagged);
    ASSERT_EQ(named & equal, equal);
    ASSERT_EQ(named & ~alike, 0U);
    found += static_cast<unsigned>(std::popcount(equal));
  }
  EXPECT_GT(found, 20'000U);
}

TEST_F(StripeIndexTest, StatsSumTheStripes) {
  segment_->stripe(0).recoveries.store(2);
  segment_->stripe(3).recoveries.store(3);
  segment_->stripe(1).passed_by.store(7);
  EXPECT_EQ(index_->stats().recoveries, 5U);
  EXPECT_EQ(index_->stats().passed_by, 7U);
}

// The C library follows a thread's list of robust mutexes at its next lock, wherever that list leads.
TEST_F(StripeIndexTest, LockThatCannotBeGivenBackKeepsItsSegmentMapped) {
  const IndexPlace place = index_->place_of(hash_of(c_));
  ASSERT_TRUE(index_->lock(kMe, place));
  segment_->stripe(place.stripe).mutex.__data.__kind ^= 1;  // somebody writes over it
  index_->unlock(place);
  EXPECT_TRUE(segment_->poisoned());
  index_.reset();
  segment_.reset();  // as detach does
  fd_ = std::move(*test::nameless_object(bytes_));
  const Result<Segment> next = test::build_segment(fd_.get(), geometry_);
  ASSERT_TRUE(next);
  const StripeIndex index(*next);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(index.lock(kMe, place)) << "nor does this thread count as holding one for ever";
    index.unlock(place);
  }
  EXPECT_FALSE(next->poisoned());
}

}  // namespace
}  // namespace kvtrie
