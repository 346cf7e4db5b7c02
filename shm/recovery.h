// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Giving back what the dead held (rules 12, 14, 15): the structures' own `recover`, in the order that the rules
// ask for. Each walks flat arrays, is idempotent, and may itself be killed at any instruction and run again by
// whoever takes over.
//
//   reap_worker   1 FreePages::recover(dead): some chunks with held > 0 at a time: their pages of the dead: index entry
//                   out, then Free, next generation, free bit; then, where fewer than held were found, the bits of
//                   the chunk's Free pages; then the counts to 0
//                 2 LeaseTable::recover(dead): leases to none, up to the high-water mark
//                 3 waits off           4 superblock.reaps += 1, wake who waits for its Pending pages (pending_wait.h)
//                 The worker's slot record is freed by the caller, last (worker_table.h).
//   adopt_pages   PageTable::recover: Condemned -> Live; Retiring -> out of the index, Free; pages of slots that
//                   nobody has -> Free.  FreePages::recover: free bits of all chunks
//
// Crash: between any two stores / the rest is still there / the next reap of the same slot, whose state says
// Reaping, or the next adoption / each structure's RecoverCanDieAndRunAgain, step_kill reap, step_kill adopt.
// Order inside a page: the entry goes first, Free is last, so a page is never free and findable.
// Cost of reap_worker: kvtrie-bench reap.
#pragma once

#include <cstdint>
#include <optional>

#include "shm/ids.h"
#include "shm/page_table.h"
#include "shm/segment.h"
#include "shm/worker_table.h"

namespace kvtrie {

struct ReapReport {
  std::uint32_t pages = 0;
  std::uint32_t leases = 0;
};

// After the kernel reported the death (or the worker detached): nobody of that slot runs any more.
ReapReport reap_worker(const Segment& segment, WorkerId dead);

// Rule 14 for the whole slot: Reaping, what it holds, last its record. Empty when its word is not
// `expected` any more. `died`: counted as a death, else as a detach.
std::optional<ReapReport> reap_slot(const Segment& segment, WorkerId slot, SlotWord expected,
                                    bool died);

// By a coordinator that holds the cache's lock, after it reaped the dead and before it evicts.
PageRecovery adopt_pages(const Segment& segment);

// The page is Retiring, or Pending/Writing of a dead owner: out of the index, Free, next generation, bit set.
void finish_page(const Segment& segment, PageIndex page);

// Wakes all that wait for a Pending page of whomever.
void wake_pending_waiters(const Segment& segment);

}  // namespace kvtrie
