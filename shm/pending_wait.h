// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for a page that another worker computes (rule 16).
//
//   WorkerRecord::pending_word of the page's owner    {changes 31 | somebody waits 1}, a futex
//
//   waiter                                        owner, after it published or gave up Pending pages;
//   1 word |= 1               (RMW, acq_rel)      reaper, after it freed those of a dead owner
//   2 read the page again     (acquire)             1 page := Live or Free      (release)
//   3 sleep while the word is what it set           2 word += 0                 (RMW, acq_rel)
//                                                   3 bit set: word += 1, which clears the bit; wake all
//
// Both read-modify-write the same word, so one comes first. The waiter's: the owner sees the bit and wakes, and the
// word has changed for one that does not sleep yet. The owner's: the waiter acquires it, and reads the page changed.
// So nobody sleeps on a page that is Pending no more, and no fence is needed. Only those who wait for pages of this
// worker are woken, and a worker on whose pages nobody waits touches a line of its own alone (C10).
// The word only grows, also from one worker of the slot to the next: a sleeper never takes another life's value for its own.
//
// Crash: died after / left behind / repaired by / test
//   waiter, 1 to 3 / a bit / the owner's next change makes one spare system call / step_kill wait.pending
//   owner, 1 or 2 / sleepers / reap wakes whatever the bit says; without a coordinator they sleep on to their time-out,
//       looking at each kPendingLookNs / step_kill publish.wakes
//   reaper, before it woke / sleepers / the next reap of the slot, or adoption, which wakes all / step_kill reap
// The model is tests/model/waiting.pml.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shm/crash_point.h"
#include "shm/futex.h"
#include "shm/mutant.h"
#include "shm/segment.h"

namespace kvtrie {

// A waiter looks that often whether the cache was given up; what it waits for wakes it.
inline constexpr std::int64_t kPendingLookNs = 2'000'000'000;

// By the owner, after its Pending pages changed. A system call only when somebody waits.
inline void wake_waiters_on(const Segment& segment, WorkerId owner) {
  AtomicU32& word = segment.worker(owner).pending_word;
  std::uint32_t seen = word.fetch_add(0, std::memory_order_acq_rel);
  while ((seen & 1) != 0) {
    if (!word.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    KVTRIE_CRASH_POINT("wake.before_call");
    futex_wake_all(word);
    return;
  }
}

// By reaper and adopter: whatever the bit says.
inline void wake_waiters_on_dead(const Segment& segment, WorkerId dead) {
  AtomicU32& word = segment.worker(dead).pending_word;
  word.fetch_add(2, std::memory_order_acq_rel);
  futex_wake_all(word);
}

// Sleeps until the owner says that its pages changed, at most limit_ns; at once when `page` is not Pending in this life.
inline void sleep_while_pending(const Segment& segment, Handle page, WorkerId owner,
                                std::int64_t limit_ns) {
  AtomicU32& word = segment.worker(owner).pending_word;
  KVTRIE_CRASH_POINT("wait_pending.before_bit");
  const std::uint32_t set = word.fetch_or(1, std::memory_order_acq_rel) | 1;
  KVTRIE_CRASH_POINT("wait_pending.after_bit");
  const StateWord now{segment.descriptor(page.page_index()).state.load(std::memory_order_acquire)};
  const bool pending = now.state() == PageState::kPending && page.same_life(now);
  if (!pending && !KVTRIE_MUTANT(pending_wait_without_recheck)) return;
  KVTRIE_CRASH_POINT("wait_pending.before_sleep");
  futex_wait(word, set, std::min(limit_ns, kPendingLookNs));
}

}  // namespace kvtrie
