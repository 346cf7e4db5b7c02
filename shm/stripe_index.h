// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// From prefix hash to page: a hint that readers check and that a crash cannot break.
//
//   stripe = high half of the hash        a contiguous range of buckets and one robust mutex
//   b1, b2 = two buckets of that range    a key may stand in either; readers look at both, so neither a full
//                                         bucket nor a removal can hide an entry. Entered in b1 while that has room to
//                                         spare, so that who looks far ahead mostly fetches one (80 to 94 % stand there)
//   entry  = valid 1 | tag 39 | page 24   one store enters, one compare-and-swap removes; 0 is empty
//
// Who            does                                            under
//   reader       loads entries (acquire), tries each equal tag   nothing
//   announcer    looks for the same key, stores one entry        the stripe's lock
//   page's owner removes its entry by CAS {tag, page} -> 0       nothing (rule 12: nobody waits for a stopped worker)
//   next holder  recover: sweeps after the last one died (13)    the stripe's lock
//
// Invariants
//   I1  a Pending page whose announce ended, a Live and a Condemned page stand in exactly one entry.
//   I2  of all canonical pages at most one has a given (parent handle, tokens): it is looked for under the lock.
//   I3  any other entry is stale: harmless (state, life, parent, tokens are checked), removed when met under the lock.
// Every probe reads at most 16 entries. Lock level: stripe (docs/lock-order.md); one stripe at a time is enough,
// both buckets of a key belong to it.
//
// Crash: a holder dies before the entry store / Pending page without entry / reap_worker frees the page; after
// it / Pending page with entry / reap_worker removes both. The next holder gets OwnerDied and sweeps; dying in
// the sweep leaves the next one the same task.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/status.h"
#include "shm/wide_loads.h"

namespace kvtrie {

// Where a key may stand.
struct IndexPlace {
  std::uint32_t stripe;
  std::uint64_t bucket[2];
  std::uint64_t tagged;  // valid bit and tag, page bits zero
};

// Which entries of a bucket may have this tag: bit i of entry i. Without branches, since where in its bucket an entry
// stands cannot be predicted; with wide loads by the upper half of the words, so look at the entry itself.
inline unsigned entries_equal(const IndexBucket& bucket, std::uint64_t tagged) {
#ifdef KVTRIE_WIDE_LOADS
  static_assert(kBucketEntries == 8);
  const auto* pairs = reinterpret_cast<const __m128i*>(bucket.entries);
  const __m128i upper = _mm_set1_epi32(static_cast<int>(tagged >> 32));
  const auto uppers_equal = [&](unsigned i) {
    const __m128 four = _mm_shuffle_ps(_mm_castsi128_ps(_mm_load_si128(pairs + i)),
                                       _mm_castsi128_ps(_mm_load_si128(pairs + i + 1)), _MM_SHUFFLE(3, 1, 3, 1));
    return _mm_cmpeq_epi32(_mm_castps_si128(four), upper);
  };
  return static_cast<unsigned>(_mm_movemask_epi8(
      _mm_packs_epi16(_mm_packs_epi32(uppers_equal(0), uppers_equal(2)), _mm_setzero_si128())));
#else
  unsigned equal = 0;
  for (unsigned i = 0; i < kBucketEntries; ++i) {
    const std::uint64_t entry = bucket.entries[i].load(std::memory_order_acquire);
    equal |= static_cast<unsigned>((entry ^ tagged) <= kIndexMask) << i;
  }
  return equal;
#endif
}

struct IndexStats {
  std::uint64_t recoveries = 0;  // locks taken over from a dead holder
  std::uint64_t passed_by = 0;   // locks not had in time
};

class StripeIndex {
 public:
  explicit StripeIndex(const Segment& segment)
      : segment_(segment),
        stripes_(segment.geometry().stripes),
        buckets_per_stripe_(
            static_cast<std::uint32_t>(segment.layout().bucket_count / segment.geometry().stripes)) {}

  // Of zero bytes: the locks.
  Status init() const;
  // Empty, or the first lock that is none or entry that cannot be. True at any moment; stale entries and I1, I2 are
  // for `verify`.
  std::string validate() const;
  // The sweep (rule 13), under the stripe's lock after its last holder died: takes stale entries out. Returns how
  // many. Idempotent. Nothing of the index has to be repaired at adoption.
  std::uint32_t recover(std::uint32_t stripe) const;
  IndexStats stats() const;

  IndexPlace place_of(std::uint64_t hash) const {
    const std::uint64_t mixed = hash * 0x9E37'79B9'7F4A'7C15ULL;
    const auto stripe = static_cast<std::uint32_t>((hash >> 32) * stripes_ >> 32);
    const std::uint64_t base = std::uint64_t{stripe} * buckets_per_stripe_;
    const std::uint64_t first = (hash & 0xFFFF'FFFF) * buckets_per_stripe_ >> 32;
    std::uint64_t second = (mixed >> 32) * buckets_per_stripe_ >> 32;
    if (second == first) second = first + 1 == buckets_per_stripe_ ? 0 : first + 1;
    return {stripe, {base + first, base + second}, kValid | (mixed & kTagMask)};
  }

  // Calls visit(PageIndex) for each entry of this tag until it returns true. Page numbers are in range.
  template <typename Visit>
  bool for_each_candidate(const IndexPlace& place, Visit visit) const {
    // Both buckets before the first branch: in which of them an entry stands cannot be predicted, that there is one can.
    const IndexBucket* buckets[] = {&segment_.bucket(place.bucket[0]), &segment_.bucket(place.bucket[1])};
    unsigned equal = entries_equal(*buckets[0], place.tagged) |
                     entries_equal(*buckets[1], place.tagged) << kBucketEntries;
    for (; equal != 0; equal &= equal - 1) {
      const auto i = static_cast<unsigned>(std::countr_zero(equal));
      const std::uint64_t entry =
          buckets[i / kBucketEntries]->entries[i % kBucketEntries].load(std::memory_order_acquire);
      const PageIndex page = page_in(entry);
      if ((entry ^ place.tagged) <= kIndexMask && segment_.has(page) && visit(page)) return true;
    }
    return false;
  }

  // The first page of this tag in one of the two buckets, which may be another's; ~0: none.
  std::uint32_t first_candidate(const IndexPlace& place, unsigned which) const {
    const IndexBucket& bucket = segment_.bucket(place.bucket[which]);
    const unsigned equal = entries_equal(bucket, place.tagged);
    if (equal == 0) return ~std::uint32_t{0};
    const PageIndex page =
        page_in(bucket.entries[static_cast<unsigned>(std::countr_zero(equal))].load(std::memory_order_acquire));
    return segment_.has(page) ? page.value : ~std::uint32_t{0};
  }

  // Always inline: gcc 12 takes a call that only prefetches for one without effect, and drops it.
  [[gnu::always_inline]] void prefetch(const IndexPlace& place, unsigned which) const {
    __builtin_prefetch(&segment_.bucket(place.bucket[which]));
  }
  [[gnu::always_inline]] void prefetch(const IndexPlace& place) const {
    prefetch(place, 0);
    prefetch(place, 1);
  }
  // For who will enter something there.
  [[gnu::always_inline]] void prefetch_to_enter(const IndexPlace& place) const {
    __builtin_prefetch(&segment_.stripe(place.stripe), 1);
    for (const std::uint64_t b : place.bucket) __builtin_prefetch(&segment_.bucket(b), 1);
  }

  // Locks the stripe, repairing it when its last holder died. Busy: not had in time, counted. Poisons the
  // segment when the lock is beyond recovery.
  Status lock(WorkerId me, const IndexPlace& place) const;
  void unlock(const IndexPlace& place) const;

  // Under the lock: an empty slot of the emptier bucket, cleaning stale entries when both are full (counted for
  // `me`); null when that helps nothing. It stays empty until the lock goes: only holders fill slots.
  AtomicU64* vacancy(WorkerId me, const IndexPlace& place) const;
  static void enter(AtomicU64& slot, const IndexPlace& place, PageIndex page) {
    slot.store(place.tagged | page.value, std::memory_order_release);
  }
  // By the page's present owner, without lock. True if an entry was there.
  bool remove(std::uint64_t hash, PageIndex page) const;

  // How often the page stands at its place; for verify.
  unsigned occurrences(std::uint64_t hash, PageIndex page) const;
  std::uint64_t first_bucket(std::uint32_t stripe) const {
    return std::uint64_t{stripe} * buckets_per_stripe_;
  }
  std::uint32_t buckets_per_stripe() const { return buckets_per_stripe_; }

  static constexpr PageIndex page_in(std::uint64_t entry) {
    return {static_cast<std::uint32_t>(entry & kIndexMask)};
  }
  // Whether an entry that is not empty names a page of this segment.
  bool possible(std::uint64_t entry) const {
    return (entry & kValid) != 0 && segment_.has(page_in(entry));
  }

  static constexpr std::uint64_t kValid = std::uint64_t{1} << 63;
  static constexpr std::uint64_t kTagMask = ~kIndexMask & ~kValid;

 private:
  void give_up_lock() const;
  AtomicU64* empty_slot(const IndexPlace& place) const;
  bool stale(std::uint64_t entry, std::uint64_t bucket) const;
  std::uint32_t clean_bucket(std::uint64_t bucket) const;

  const Segment& segment_;
  std::uint64_t stripes_;
  std::uint32_t buckets_per_stripe_;
};

}  // namespace kvtrie
