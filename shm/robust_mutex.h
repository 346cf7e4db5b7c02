// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A process-shared, robust mutex in the segment, with every result of pthread as a Status.
//
//   acquire  Ok             held
//            OwnerDied      held, and the last owner died inside: repair what this lock protects (only that),
//                           then mark_consistent(). Dying before that leaves the next owner the same task.
//            Busy           not had within the bound, its holder lives (C5: pass by)
//            Poisoned       ENOTRECOVERABLE: somebody unlocked without marking it consistent. Give the segment up
//            Corrupt        the lock's bytes were overwritten (C7)
//            System         a bug of ours (EDEADLK, EPERM); errno says which
//
// What the kernel demands and how it is kept (measured; each has a test in robust_mutex_test.cc or a refusal):
//   * the mutex's page must stay mapped writable in its holder till the end: a process maps the segment once
//     and unmaps when no thread is inside (Segment, worker_plugin).
//   * at most 2,048 held robust mutexes a thread are recovered: we hold at most kHeldMax, acquire refuses more.
//   * threads of a raw clone() have no robust list: has_robust_list() is asked at attach.
//   * a thread's exit or execve reports OwnerDied while its process lives: repair does not assume a dead process.
//   * a forked child does not own its parent's locks: the mapping is not inherited (MADV_DONTFORK).
//   * between PID namespaces it is no mutual exclusion at all: attach from another one is refused.
//   * lock memory is never used for anything else.
//   * the C library's list of held locks goes through the locks themselves: release puts its links back (C7).
#pragma once

#include <pthread.h>

#include <cstdint>

#include "shm/status.h"

namespace kvtrie {

class RobustMutex {
 public:
  static constexpr unsigned kHeldMax = 2;
  static constexpr std::int64_t kWaitNs = 1'000'000;  // C5: then it is passed by

  // Once, in fresh zeroed memory.
  static Status init(pthread_mutex_t& mutex);
  // Waits at most `wait_ns`; 0: tries once.
  static Status acquire(pthread_mutex_t& mutex, std::int64_t wait_ns = kWaitNs);
  // After a repair, while holding it.
  static Status mark_consistent(pthread_mutex_t& mutex);
  // A failure leaves the mutex on this thread's list of robust mutexes: its memory must stay mapped for good.
  static Status release(pthread_mutex_t& mutex);
  // Read-only, of anybody's lock: Corrupt when its bytes are not of such a lock, Poisoned when it cannot be had.
  static Status validate(const pthread_mutex_t& mutex);

  // Whether the kernel would recover this thread's locks.
  static bool has_robust_list();
  static unsigned held_by_this_thread();
};

}  // namespace kvtrie
