// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A recorded history: the calls of several processes on one cache, when each was invoked and when it responded, and
// what it answered. history_run.h records them, history_check.h decides them.
//
// Stamps are of CLOCK_MONOTONIC, one clock for all processes of a host: a reading that was made after another one, on
// whatever processor, is not smaller. So a call whose response has a smaller stamp than the invocation of another came
// before it; equal stamps say nothing, and the calls count as concurrent. What the processor reorders is kept out of
// the stamps (history_run.cc, Stamped): an invocation is stamped, and the stamp stored, before the call's first load,
// a response is stamped after its last store is seen by all.
//
// A *life* is one use of a page, from Free to Free: the page's handle names it (index and generation).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/ids.h"

namespace kvtrie::test {

inline constexpr std::uint32_t kHistoryPages = 64;     // the least that a cache has
inline constexpr std::uint32_t kHistoryPagesAway = 51;  // of these, all the time with somebody who does nothing
inline constexpr std::uint32_t kHistoryDepth = 4;  // of a path

using Life = std::uint64_t;  // Handle::page(...).raw; 0: none
constexpr Life life(std::uint32_t page, std::uint64_t generation) { return Handle::page({page}, generation).raw; }

enum class Call : std::uint8_t { kBegin, kAllocate, kPublish, kRelease, kEvict };

// What a sequence has at a position when a call is over.
enum class Kept : std::uint8_t { kShared, kPrivate, kAnnounced, kPublished };
struct Position {
  Life page = 0;  // that the sequence uses: a matched one or its own
  Life node = 0;  // canonical page of the position: matched, own announced or published, or another's that it was
                  // linked to; none: what follows is not announced
  Kept kept = Kept::kShared;
  bool before_other = false;  // its own, and another page of the same key was there first
};

struct Operation {
  Call call = Call::kBegin;
  std::uint8_t process = 0;
  std::uint8_t asked = 0;         // allocate: positions in all; publish: positions; evict: pages
  std::uint8_t path_pages = 0;    // of the sequence
  std::uint8_t positions = 0;     // afterwards
  bool done = true;               // allocate: false when there were not enough free pages
  bool passed_by = false;         // a stripe was busy or a bucket full: that page stays private, as rule 4 has it
  bool wrong_bytes = false;       // a shared page had bytes of another path
  std::uint32_t sequence = 0;     // of this process
  std::uint32_t evicted = 0;
  std::uint64_t invoked = 0;
  std::uint64_t responded = 0;
  Life pending = 0;               // begin: the next page, which another computes
  std::array<std::uint8_t, kHistoryDepth> path{};  // names of its pages
  std::array<Position, kHistoryDepth> after{};
  // evict: of each page, afterwards. A generation that is past a published life's says that it was evicted.
  std::array<std::uint16_t, kHistoryPages> generations{};
};

// All of one run: every sequence was released, and nothing ran any more when the cache was looked at.
struct History {
  std::vector<Operation> operations;  // in any order
  std::vector<Life> cached;           // Live at the end
  std::uint32_t free_pages = 0;       // by the count that allocation goes by
  std::uint32_t pages = kHistoryPages;
  std::uint32_t pages_away = kHistoryPagesAway;  // but not when it was over
};

}  // namespace kvtrie::test
