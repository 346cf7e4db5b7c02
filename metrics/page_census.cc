// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/page_census.h"

#include <algorithm>

namespace kvtrie {

PageCensus take_census(const Segment& segment) {
  PageCensus census;
  for (std::uint32_t page = 0; page < segment.page_count(); ++page) {
    const StateWord word{segment.descriptor({page}).state.load(std::memory_order_relaxed)};
    if (word.well_formed()) {
      ++census.pages[static_cast<std::size_t>(word.state())];
    } else {
      ++census.malformed;
    }
  }
  for (std::uint32_t slot = 0; slot < segment.slot_count(); ++slot) {
    const WorkerId worker{static_cast<std::uint16_t>(slot)};
    const auto leases = segment.leases(worker);
    // The coordinator's own slots, the operator's pins, have no mark.
    const std::size_t used =
        slot == 0 ? leases.size()
                  : std::min<std::size_t>(
                        segment.worker(worker).leases_high_water.load(std::memory_order_acquire),
                        leases.size());
    for (const LeaseSlot& lease : leases.first(used)) {
      if (lease.handle.load(std::memory_order_relaxed) != 0) ++census.leases;
    }
  }
  return census;
}

PageCensus CensusCache::get() {
  const std::lock_guard guard(mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (!valid_ || now - taken_ >= kMaxAge) {
    census_ = take_census(segment_);
    taken_ = std::chrono::steady_clock::now();
    valid_ = true;
  }
  return census_;
}

}  // namespace kvtrie
