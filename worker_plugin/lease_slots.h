// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which of a worker's lease slots its sequences use. The list of free slots is private to the process (it dies
// with it); the slots and their high-water mark are shared. Lowest first, so that the evictor reads few.
// Thread-safe, lock-free.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

#include "shm/mutant.h"
#include "shm/segment.h"

namespace kvtrie {

class LeaseSlots {
 public:
  LeaseSlots(const Segment& segment, WorkerId worker)
      : segment_(segment), worker_(worker), used_((segment.leases(worker).size() + 63) / 64) {}

  LeaseSlot& operator[](std::uint32_t slot) const { return segment_.leases(worker_)[slot]; }

  // Empty when every slot is taken. The mark covers the slot before anybody can store a lease in it (rule 19).
  std::optional<std::uint32_t> take() {
    const auto slots = static_cast<std::uint32_t>(segment_.leases(worker_).size());
    for (std::size_t word = 0; word < used_.size(); ++word) {
      std::uint64_t bits = used_[word].load(std::memory_order_relaxed);
      while (bits != ~std::uint64_t{0}) {
        const auto bit = static_cast<std::uint32_t>(std::countr_one(bits));
        const std::uint32_t slot = static_cast<std::uint32_t>(word) * 64 + bit;
        if (slot >= slots) return std::nullopt;
        if (used_[word].compare_exchange_weak(bits, bits | std::uint64_t{1} << bit,
                                              std::memory_order_acquire)) {
          if (!KVTRIE_MUTANT(high_water_after_lease)) cover(slot);
          return slot;
        }
      }
    }
    return std::nullopt;
  }

  void give_back(std::uint32_t slot) {
    if (KVTRIE_MUTANT(high_water_after_lease)) cover(slot);
    used_[slot / 64].fetch_and(~(std::uint64_t{1} << slot % 64), std::memory_order_release);
  }

 private:
  void cover(std::uint32_t slot) const {
    AtomicU32& mark = segment_.worker(worker_).leases_high_water;
    // Acquire: another thread may have raised it, and our lease must come after that too.
    std::uint32_t seen = mark.load(std::memory_order_acquire);
    while (seen <= slot && !mark.compare_exchange_weak(seen, slot + 1, std::memory_order_seq_cst)) {
    }
  }

  const Segment& segment_;
  WorkerId worker_;
  std::vector<std::atomic<std::uint64_t>> used_;
};

}  // namespace kvtrie
