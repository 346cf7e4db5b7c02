// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/lease_table.h"

#include <fmt/format.h>

#include "shm/crash_point.h"

namespace kvtrie {

std::string LeaseTable::validate() const {
  for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
    const WorkerId worker{static_cast<std::uint16_t>(i)};
    const AtomicU32& mark = segment_.worker(worker).leases_high_water;
    const std::span<LeaseSlot> slots = segment_.leases(worker);
    if (const std::uint32_t high = mark.load(std::memory_order_acquire); high > slots.size()) {
      return fmt::format("worker slot {}: lease high-water mark {} of {} leases", i, high,
                         slots.size());
    }
    for (std::size_t lease = 0; lease < slots.size(); ++lease) {
      const AtomicU64& slot = slots[lease].handle;
      const Handle handle{slot.load(std::memory_order_acquire)};
      if (handle.none()) continue;
      if (!handle.is_page() || !segment_.has(handle.page_index())) {
        return fmt::format("worker slot {}: lease {} is of {:#x}, which is no page", i, lease,
                           handle.raw);
      }
      const auto above = [&] { return lease >= mark.load(std::memory_order_acquire); };
      // A reap takes the handle first, the slot's next life stores the mark first; between the two it may seem above.
      if (above() && slot.load(std::memory_order_acquire) == handle.raw && above()) {
        return fmt::format("worker slot {}: lease {} above its high-water mark", i, lease);
      }
    }
  }
  return {};
}

std::uint32_t LeaseTable::recover(WorkerId dead) const {
  std::uint32_t cleared = 0;
  for (LeaseSlot& slot : used(dead)) {
    if (slot.handle.load(std::memory_order_relaxed) != 0) ++cleared;
    slot.handle.store(0, std::memory_order_release);
    slot.since_tick.store(0, std::memory_order_relaxed);
    slot.request_tag.store(0, std::memory_order_relaxed);
    KVTRIE_CRASH_POINT("reap.after_lease");
  }
  segment_.worker(dead).leases_high_water.store(0, std::memory_order_release);
  return cleared;
}

LeaseStats LeaseTable::stats() const {
  LeaseStats stats;
  for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
    for (const LeaseSlot& lease : used({static_cast<std::uint16_t>(i)})) {
      const Handle handle{lease.handle.load(std::memory_order_acquire)};
      if (handle.none()) continue;
      const bool protects =
          handle.is_page() && segment_.has(handle.page_index()) &&
          handle.same_life({segment_.descriptor(handle.page_index()).state.load(
              std::memory_order_acquire)});
      ++(!protects ? stats.stale : i == kCoordinatorSlot.value ? stats.pins : stats.held);
    }
  }
  return stats;
}

}  // namespace kvtrie
