// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/stripe_index.h"

#include <fmt/format.h>

#include <array>
#include <bit>

#include "shm/crash_point.h"
#include "shm/lock_times.h"
#include "shm/mutant.h"
#include "shm/robust_mutex.h"

namespace kvtrie {
namespace {

// How many bits of a byte are set. The portable instruction set has none for it.
constexpr auto kBitsOf = [] {
  std::array<std::uint8_t, 1U << kBucketEntries> bits{};
  for (unsigned i = 1; i < bits.size(); ++i) bits[i] = static_cast<std::uint8_t>(bits[i / 2] + i % 2);
  return bits;
}();

unsigned empty_entries(const IndexBucket& bucket) {
  unsigned empty = 0;
#pragma GCC unroll 8
  for (unsigned i = 0; i < kBucketEntries; ++i) {
    empty |= static_cast<unsigned>(bucket.entries[i].load(std::memory_order_relaxed) == 0) << i;
  }
  return empty;
}

}  // namespace

#ifdef KVTRIE_TIME_LOCKS
LockObserver kvtrie_lock_observer;
#endif

Status StripeIndex::init() const {
  for (std::uint32_t i = 0; i < stripes_; ++i) {
    if (Status status = RobustMutex::init(segment_.stripe(i).mutex); !status) return status;
  }
  return {};
}

std::string StripeIndex::validate() const {
  for (std::uint32_t i = 0; i < stripes_; ++i) {
    if (const Status status = RobustMutex::validate(segment_.stripe(i).mutex); !status) {
      return fmt::format("stripe {}: {}", i, status.what());
    }
  }
  for (std::uint64_t b = 0; b < segment_.layout().bucket_count; ++b) {
    for (const AtomicU64& slot : segment_.bucket(b).entries) {
      const std::uint64_t entry = slot.load(std::memory_order_relaxed);
      if (entry != 0 && !possible(entry)) {
        return fmt::format("bucket {}: impossible entry {:#018x}", b, entry);
      }
    }
  }
  return {};
}

IndexStats StripeIndex::stats() const {
  IndexStats stats;
  for (std::uint32_t i = 0; i < stripes_; ++i) {
    stats.recoveries += segment_.stripe(i).recoveries.load(std::memory_order_relaxed);
    stats.passed_by += segment_.stripe(i).passed_by.load(std::memory_order_relaxed);
  }
  return stats;
}

Status StripeIndex::lock(WorkerId me, const IndexPlace& place) const {
  StripeRecord& record = segment_.stripe(place.stripe);
  LockTimes::asked();
  const Status status = RobustMutex::acquire(record.mutex);
  LockTimes::answered();
  switch (status.code()) {
    case Code::kOwnerDied:
      KVTRIE_CRASH_POINT("sweep.before");
      if (!KVTRIE_MUTANT(no_stripe_sweep)) recover(place.stripe);
      KVTRIE_CRASH_POINT("sweep.before_consistent");
      record.recoveries.fetch_add(1, std::memory_order_relaxed);
      segment_.count(me, Counter::kLockRecoveries);
      if (const Status marked = RobustMutex::mark_consistent(record.mutex); !marked) {
        give_up_lock();
        return marked;
      }
      return {};
    case Code::kBusy:
      record.passed_by.fetch_add(1, std::memory_order_relaxed);
      segment_.count(me, Counter::kStripesPassedBy);
      return status;
    case Code::kPoisoned:
      segment_.poison(PoisonReason::kLockNotRecoverable);
      return status;
    case Code::kCorrupt:
      segment_.poison(PoisonReason::kCorruptStructure);
      return status;
    default:
      return status;
  }
}

void StripeIndex::unlock(const IndexPlace& place) const {
  if (!RobustMutex::release(segment_.stripe(place.stripe).mutex)) give_up_lock();
  LockTimes::released();
}

// Somebody wrote over a lock while we held it.
void StripeIndex::give_up_lock() const {
  segment_.poison(PoisonReason::kLockNotRecoverable);
  segment_.keep_mapped();
}

// Of the first bucket, or of the emptier one when that is nearly full: two choices keep both from filling.
AtomicU64* StripeIndex::empty_slot(const IndexPlace& place) const {
  IndexBucket& first = segment_.bucket(place.bucket[0]);
  IndexBucket& second = segment_.bucket(place.bucket[1]);
  const unsigned in_first = empty_entries(first), in_second = empty_entries(second);
  constexpr std::uint8_t kToSpare = 3;  // of fewer, one key in 10,000 would find both full in a full cache
  const bool choose_second = kBitsOf[in_first] < kToSpare && kBitsOf[in_second] > kBitsOf[in_first];
  const unsigned empty = choose_second ? in_second : in_first;
  if (empty == 0) return nullptr;
  return &(choose_second ? second : first).entries[static_cast<unsigned>(std::countr_zero(empty))];
}

AtomicU64* StripeIndex::vacancy(WorkerId me, const IndexPlace& place) const {
  if (AtomicU64* slot = empty_slot(place)) return slot;
  const std::uint32_t cleaned = clean_bucket(place.bucket[0]) + clean_bucket(place.bucket[1]);
  if (cleaned == 0) return nullptr;
  segment_.count(me, Counter::kStaleEntriesCleaned, cleaned);
  return empty_slot(place);
}

bool StripeIndex::remove(std::uint64_t hash, PageIndex page) const {
  const IndexPlace place = place_of(hash);
  bool found = false;
  for (const std::uint64_t b : place.bucket) {
    for (AtomicU64& slot : segment_.bucket(b).entries) {
      std::uint64_t entry = place.tagged | page.value;
      if (slot.load(std::memory_order_relaxed) != entry) continue;
      KVTRIE_CRASH_POINT("unindex.before_remove");
      found |= slot.compare_exchange_strong(entry, 0, std::memory_order_acq_rel);
    }
  }
  return found;
}

bool StripeIndex::stale(std::uint64_t entry, std::uint64_t bucket) const {
  if (!possible(entry)) return true;
  const Descriptor& descriptor = segment_.descriptor(page_in(entry));
  const StateWord word{descriptor.state.load(std::memory_order_acquire)};
  if (word.state() == PageState::kPending && KVTRIE_MUTANT(sweep_takes_pending)) return true;
  if (!word.canonical()) return true;
  const IndexPlace right = place_of(descriptor.prefix_hash.load(std::memory_order_relaxed));
  return right.tagged != (entry & ~kIndexMask) ||
         (right.bucket[0] != bucket && right.bucket[1] != bucket);
}

std::uint32_t StripeIndex::clean_bucket(std::uint64_t bucket) const {
  std::uint32_t removed = 0;
  for (AtomicU64& slot : segment_.bucket(bucket).entries) {
    std::uint64_t entry = slot.load(std::memory_order_acquire);
    if (entry == 0 || !stale(entry, bucket)) continue;
    if (slot.compare_exchange_strong(entry, 0, std::memory_order_acq_rel)) ++removed;
  }
  return removed;
}

std::uint32_t StripeIndex::recover(std::uint32_t stripe) const {
  std::uint32_t removed = 0;
  const std::uint64_t first = first_bucket(stripe);
  for (std::uint64_t b = first; b < first + buckets_per_stripe_; ++b) removed += clean_bucket(b);
  return removed;
}

unsigned StripeIndex::occurrences(std::uint64_t hash, PageIndex page) const {
  const IndexPlace place = place_of(hash);
  unsigned count = 0;
  for_each_candidate(place, [&](PageIndex candidate) {
    count += candidate == page ? 1 : 0;
    return false;
  });
  return count;
}

}  // namespace kvtrie
