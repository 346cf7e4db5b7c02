// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for pages: who may take free pages while somebody waits. Oldest first, so that a large request is not
// starved by small ones that never have to wait; and nobody for good, whoever dies or stops.
//
//   word                          what                                        written by
//   WorkerRecord::wait_ticket     ns at the start of the wait                 the waiter, 1st
//                 wait_seen       ns when it last came round to look          the waiter, 2nd and at each look
//                 pages_wanted    the wish; 0: does not wait                  the waiter, 3rd; 0 when it leaves
//                 wait_word       futex; a change is a call                   the coordinator
//   Superblock::reserved_until    ns until which wishes bind; 0: nobody waits the coordinator, at each pass
//
// All times are CLOCK_MONOTONIC. A *turn* is {ticket, slot}; the lower is older. A wish *binds* those with a later turn
// while reserved_until lies ahead and its waiter came round within kSilentAfterNs. There is no sum of reserved pages
// to keep: whoever takes adds up the wishes that bind it, so one that ends is gone with one store.
//
// States of a wait
//   none    -> waiting  the waiter: ticket, seen, then the wish (seq_cst); rings
//   waiting -> called   the coordinator: there are pages for it and for all older ones; wait_word + 1, wake
//   waiting -> none     its look found pages beyond the wishes that bind it; or time-out, poison: then it rings, since
//                       those behind it may be served now
//   called  -> none     its next look is bound by nobody
//   called  -> waiting  that look found too few pages all the same
//   any     -> none     reap
//
// Invariants
//   W1  While wishes bind, a request without pages takes only what is free beyond what the older wishes ask for
//       together. Takers that look at the same instant may go below that together; then the waiter waits on.
//   W2  A request that has pages of its own already is bound by nobody: older ones may wait for just those pages.
//   W3  Nothing binds for good. No coordinator: kReservedForNs. A waiter that stopped: kSilentAfterNs; one that was
//       called and does not come keeps other waiters for 5 ms. A reservation under which nothing came free for 2 s is
//       lifted for a while: requests may hold leases on what each other waits for (RoomKeeper has these two).
//   W4  A wish for more than the pool and a time too far ahead bind nobody (C7).
//
// Orders: none of this decides who owns a page, the state words do. A late look at reserved_until or at a wish only
// makes W1 softer. What must not be lost is a wake-up (rule 16): who is refused and means to wait has stored its wish
// (seq_cst) before it rings; the coordinator, rung, reads the wishes (seq_cst) and calls all that can be served; the
// futex compares the wait word that was read before the last look. Who gives pages back loads pages_waiters last; a pass
// stores it before it reads the wishes and counts (all seq_cst), so one of the two sees the other.
//
// Crash: died after / left behind / others meanwhile / repaired by / test
//   the wish stored, or pages taken and the wish still there / a wish of the dead / it binds until the reap,
//       kSilentAfterNs at most / reap / step_kill allocate.wait
//   leaving unserved, not rung / nothing / those behind it look every 50 ms / - / step_kill allocate.wait
//   standing back / nothing / - / - / step_kill allocate.behind_a_waiter
//   reserved_until stored (coordinator) / a reservation / it ends in kReservedForNs / the next RoomKeeper /
//       step_kill pass.for_a_waiter, WaitingTest.WithoutACoordinatorTheReservationEnds
//   some called (coordinator) / the others not / they look every 50 ms / the next pass / step_kill pass.for_a_waiter
//
// Cost: one load of a line that every allocation reads; while wishes bind a clock, a line for each worker slot and a
// count of the free bits.
#pragma once

#include <compare>
#include <cstdint>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

inline constexpr std::int64_t kLookAgainNs = 50'000'000;       // a waiter comes round at least that often
inline constexpr std::int64_t kSilentAfterNs = 200'000'000;    // four looks missed
inline constexpr std::int64_t kReservedForNs = 300'000'000;    // passes come every 64 ms while somebody waits

std::uint64_t monotonic_ns();

struct Turn {
  std::uint64_t ticket = 0;
  std::uint16_t slot = 0;

  static constexpr Turn first() { return {}; }  // bound by nobody
  static constexpr Turn last() { return {~std::uint64_t{0}, 0xFFFF}; }
  constexpr auto operator<=>(const Turn&) const = default;
};

// Its waiter is there: it came round lately.
bool shows_life(const WorkerRecord& waiter, std::uint64_t now_ns);

// Pages that must stay free for the wishes that bind `turn`.
std::uint64_t pages_due_before(const Segment& segment, Turn turn);

}  // namespace kvtrie
