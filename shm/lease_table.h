// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// All lease slots of a segment, as the coordinator and the tools look at them. How one lease is taken, moved and
// dropped, and why that is safe against the evictor, is in lease.h.
//
// Layout: area kLeases, leases_per_worker slots of 16 bytes a worker slot; slot 0's are the operator's pins.
// Invariants
//   L1 Only slots below the worker's leases_high_water were ever used in its life (rule 19); who reads all leases
//      reads no further. A mark of this segment is at most leases_per_worker; of any other number that much is read.
//   L2 A handle is none, or names a page of this segment. A page of another life is not protected, and not hurt.
//
// Crash: died after / left behind / repaired by / test
//   worker, anywhere / its leases go on protecting / recover, from reap_worker / LeaseTableTest, step_kill reap
//   reap.after_lease / the rest of them, and the mark above them / the same again / LeaseTableTest
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "shm/crash_point.h"
#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

struct LeaseStats {
  std::uint64_t held = 0;   // workers', each protecting a page
  std::uint64_t pins = 0;   // the operator's, the same
  std::uint64_t stale = 0;  // of a page's other life, or of no page: they protect nothing
  std::uint64_t all() const { return held + pins + stale; }
};

class LeaseTable {
 public:
  explicit LeaseTable(const Segment& segment) : segment_(segment) {}

  // Zero bytes are a table without leases.
  void init() const {}
  // Empty, or the first handle or mark that cannot be and whose it is. True at any moment (L1, L2).
  std::string validate() const;
  // Every lease of a slot whose worker is gone to none. Returns how many there were. Idempotent.
  std::uint32_t recover(WorkerId dead) const;
  LeaseStats stats() const;

  // Calls visit(WorkerId, Handle) for every lease in use that names a page of this segment, in the memory order
  // that the evictor needs (lease.h).
  template <typename Visit>
  void for_each(Visit visit) const {
    for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
      const WorkerId worker{static_cast<std::uint16_t>(i)};
      for (const LeaseSlot& lease : used(worker)) {
        const Handle handle{lease.handle.load(std::memory_order_seq_cst)};
        KVTRIE_CRASH_POINT("leases.after_slot");
        if (handle.is_page() && segment_.has(handle.page_index())) visit(worker, handle);
      }
    }
  }

 private:
  std::span<LeaseSlot> used(WorkerId worker) const {
    const std::span<LeaseSlot> slots = segment_.leases(worker);
    return slots.first(std::min<std::size_t>(
        segment_.worker(worker).leases_high_water.load(std::memory_order_seq_cst), slots.size()));
  }

  const Segment& segment_;
};

}  // namespace kvtrie
