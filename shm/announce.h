// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Announcing a page (rules 3, 4, 5, 9): from Writing, known to nobody, to Pending, known to all and in the index.
//
//   1 node fields (page_table.h)      2 lock the stripe      3 look for a canonical page of the same key
//   4 state := Pending                5 index entry          6 unlock         7 parent's announce counter += 1
//
// The first to announce a key is canonical for good. There is no edge Writing to Live, and nobody supersedes.
// Step 7 comes after 4 and before the sequence's lease may leave the parent, so the evictor either counts the
// child in its scan or sees the counter changed (evictor.cc, rule 10).
//
// Crash: died after / left behind / repaired by / test
//   1, 2, 3 / Writing page (stripe lock) / reap frees it (next holder sweeps) / step_kill allocate.fresh
//   4       / Pending without entry, stripe lock / reap frees it, next holder sweeps / crash point announce.after_pending
//   5, 6    / Pending with entry, counter not raised / reap removes the entry, frees it; its lease on the parent is
//             cleared only after that (rule 14) / crash point announce.after_index_store
//   7       / the same with a raised counter: one spare rescue / step_kill allocate.fresh
#pragma once

#include <cstdint>
#include <span>

#include "shm/page_table.h"
#include "shm/segment.h"
#include "shm/stripe_index.h"

namespace kvtrie {

enum class AnnounceOutcome : std::uint8_t {
  kAnnounced,
  kDuplicate,  // `other` was there first
  kBusy,       // stripe not had in time: private for now (C5)
  kNoRoom,     // both buckets full: private for now
  kFailed,     // lock broken; the segment is poisoned
};

struct AnnounceResult {
  AnnounceOutcome outcome;
  Handle other;            // kDuplicate
  StateWord other_state;   // kDuplicate: Pending, Live or Condemned when looked at
};

// `page` is Writing and `me`'s. node.parent is a root, a Live page under the caller's lease, or the caller's own
// Pending page (rule 3).
AnnounceResult announce_page(const Segment& segment, const StripeIndex& index, WorkerId me, PageIndex page,
                             const PageNode& node, std::span<const std::uint32_t> tokens);

}  // namespace kvtrie
