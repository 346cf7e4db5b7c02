// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A look at the cache from outside, read-only: its counters, how many pages are in which state, and
// whether the evictor rests. Works without a coordinator.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>

#include "shm/segment.h"

namespace kvtrie::replay {

struct Census {
  std::array<std::uint64_t, kPageStates> pages{};  // by PageState
  std::uint64_t free_bits = 0;                     // pages that a worker would find free
  std::uint64_t impossible = 0;

  [[nodiscard]] std::uint64_t in(PageState state) const {
    return pages[static_cast<std::size_t>(state)];
  }
  // Pages that nobody can have: neither free and to be found, nor cached.
  [[nodiscard]] std::uint64_t lost() const;
};

class Observer {
 public:
  // Throws std::runtime_error when there is no such cache.
  explicit Observer(const std::string& cache);

  [[nodiscard]] const Segment& segment() const { return segment_; }
  [[nodiscard]] bool clock_is_driven() const;
  [[nodiscard]] std::uint32_t driven_tick() const;

  // All counters, summed over all worker slots.
  using Counters = std::array<std::uint64_t, kCounters>;
  [[nodiscard]] Counters counters() const;

  // Waits until the evictor has done all that the watermarks ask for: enough pages are free, or its
  // last pass found no more, and it rests. False when that took longer than `limit`.
  [[nodiscard]] bool settle(std::chrono::milliseconds limit) const;

  [[nodiscard]] Census census() const;
  // The census once nothing is on its way: no page is anybody's (of the detached and the dead the
  // coordinator takes back). When that takes longer than `limit`, as it is then.
  [[nodiscard]] Census census_at_rest(std::chrono::milliseconds limit) const;

 private:
  [[nodiscard]] bool rests() const;

  Segment segment_;
};

}  // namespace kvtrie::replay
