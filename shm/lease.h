// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A lease: the handle of the deepest matched page in a slot that only its worker writes. It protects that
// page and, since only leaves are evicted, every ancestor.
//
//   acquire (worker)                         evict (coordinator, evictor.cc)
//     slot := handle          (seq_cst)        page: CAS Live -> Condemned   (seq_cst)
//     look at the page's word (seq_cst)        read all slots                (seq_cst)
//
// All four are sequentially consistent, so at least one side sees the other (rule 17): the worker sees
// Condemned and rescues, or the evictor sees the lease and rescues. A rescue that fails reads either Live of
// the same life (somebody rescued: fine) or a word past return (lost: fall back to the parent by this same rule).
//
// A slot is moved onto one's own Pending page by a release store (rule 6); every other move acquires in a
// second slot and clears the first (rule 7). Dropping is a release store of 0.
// High-water: leases_high_water covers a slot before the first lease in it (rule 19); the evictor reads no further.
//
// Crash: a dead worker's slot goes on protecting its page until reap_worker clears it, after its pages
// (rule 14). A slot with a handle of another life protects nothing and hurts nobody.
#pragma once

#include <cstdint>

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/segment.h"

namespace kvtrie {

enum class LeaseOutcome : std::uint8_t { kHeld, kRescued, kLost };

// Requires segment.has(page.page_index()). On kLost the slot still names the page: try another or drop.
inline LeaseOutcome acquire_lease(const Segment& segment, LeaseSlot& slot, Handle page) {
  AtomicU64& state = segment.descriptor(page.page_index()).state;
  StateWord word;
  if (KVTRIE_MUTANT(lease_load_passes_store)) word = {state.load(std::memory_order_relaxed)};  // as a CPU may
  KVTRIE_CRASH_POINT("lease.before_store");
  slot.handle.store(page.raw, std::memory_order_seq_cst);
  KVTRIE_CRASH_POINT("lease.after_store");
  if (KVTRIE_MUTANT(lease_without_recheck)) return LeaseOutcome::kHeld;
  if (!KVTRIE_MUTANT(lease_load_passes_store)) word = {state.load(std::memory_order_seq_cst)};
  if (!page.same_life(word)) return LeaseOutcome::kLost;
  if (word.state() == PageState::kLive) return LeaseOutcome::kHeld;
  if (word.state() != PageState::kCondemned) return LeaseOutcome::kLost;
  const StateWord live = word.with(PageState::kLive);
  KVTRIE_CRASH_POINT("lease.before_rescue");
  if (KVTRIE_MUTANT(rescue_by_store)) {
    state.store(live.raw, std::memory_order_seq_cst);
    return LeaseOutcome::kRescued;
  }
  if (state.compare_exchange_strong(word.raw, live.raw, std::memory_order_seq_cst)) {
    return LeaseOutcome::kRescued;
  }
  return word == live ? LeaseOutcome::kHeld : LeaseOutcome::kLost;
}

inline void drop_lease(LeaseSlot& slot) { slot.handle.store(0, std::memory_order_release); }

}  // namespace kvtrie
