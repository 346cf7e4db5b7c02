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

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/segment.h"

namespace kvtrie {

class LeaseSlots {
 public:
  LeaseSlots(const Segment& segment, WorkerId worker)
      : segment_(segment), worker_(worker), used_((segment.leases(worker).size() + 63) / 64) {
    // Bits past the last slot are never free.
    const std::size_t rest = segment.leases(worker).size() % 64;
    if (rest != 0) used_.back().store(~std::uint64_t{0} << rest, std::memory_order_relaxed);
  }

  LeaseSlot& operator[](std::uint32_t slot) const { return segment_.leases(worker_)[slot]; }

  // For a new sequence: the last free slot is left for moves of leases (rule 7). Empty when there is none.
  std::optional<std::uint32_t> take() { return take_leaving(1); }
  // For a move. One for all threads, claimed by compare-and-swap: a thread that gets none does not move and its page stays
  // private, so what tests/model/worker_threads.pml shows for threads with a slot each covers it.
  std::optional<std::uint32_t> take_spare() { return take_leaving(0); }

  void give_back(std::uint32_t slot) {
    if (KVTRIE_MUTANT(high_water_after_lease)) cover(slot);
    used_[slot / 64].fetch_and(~(std::uint64_t{1} << slot % 64), std::memory_order_release);
  }

 private:
  // The mark covers the slot before anybody can store a lease in it (rule 19).
  std::optional<std::uint32_t> take_leaving(std::uint32_t left) {
    for (std::size_t word = 0; word < used_.size(); ++word) {
      std::uint64_t bits = used_[word].load(std::memory_order_relaxed);
      while (bits != ~std::uint64_t{0}) {
        const std::uint64_t with_mine = bits | (bits + 1);  // its lowest free bit
        if (left > 0 && with_mine == ~std::uint64_t{0} && !any_free_after(word)) return std::nullopt;
        KVTRIE_CRASH_POINT("slots.before_take");
        if (!used_[word].compare_exchange_weak(bits, with_mine, std::memory_order_acquire)) continue;
        const auto slot = static_cast<std::uint32_t>(word * 64) +
                          static_cast<std::uint32_t>(std::countr_one(bits));
        if (!KVTRIE_MUTANT(high_water_after_lease)) cover(slot);
        return slot;
      }
    }
    return std::nullopt;
  }

  bool any_free_after(std::size_t word) const {
    for (++word; word < used_.size(); ++word) {
      if (used_[word].load(std::memory_order_relaxed) != ~std::uint64_t{0}) return true;
    }
    return false;
  }

  void cover(std::uint32_t slot) const {
    AtomicU32& mark = segment_.worker(worker_).leases_high_water;
    // Acquire: another thread may have raised it, and our lease must come after that too.
    std::uint32_t seen = mark.load(std::memory_order_acquire);
    while (seen <= slot) {
      KVTRIE_CRASH_POINT("slots.before_mark");
      if (mark.compare_exchange_weak(seen, slot + 1, std::memory_order_seq_cst)) break;
    }
  }

  const Segment& segment_;
  WorkerId worker_;
  std::vector<Atomic<std::uint64_t>> used_;
};

}  // namespace kvtrie
