// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Sleep on, and wake, a 32-bit word that processes share. No state of its own: whoever dies leaves
// nothing behind but a waiter count that is too high, which costs one spare system call.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdint>
#include <ctime>

#include "shm/format.h"

namespace kvtrie {

enum class FutexResult : std::uint8_t { kWoken, kChanged, kTimeout, kInterrupted };

// Sleeps while `word == expected`, at most `timeout_ns` (negative: without bound).
inline FutexResult futex_wait(AtomicU32& word, std::uint32_t expected, std::int64_t timeout_ns) {
  timespec limit{static_cast<time_t>(timeout_ns / 1'000'000'000),
                 static_cast<long>(timeout_ns % 1'000'000'000)};
  const long rc = ::syscall(SYS_futex, &word, FUTEX_WAIT, expected,
                            timeout_ns < 0 ? nullptr : &limit, nullptr, 0);
  if (rc == 0) return FutexResult::kWoken;
  if (errno == EAGAIN) return FutexResult::kChanged;
  return errno == ETIMEDOUT ? FutexResult::kTimeout : FutexResult::kInterrupted;
}

inline void futex_wake_all(AtomicU32& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Rings: the system call is made only when somebody sleeps. The fence between the bump and the load of
// `waiters` pairs with wait_on's increment before its own look at the word (rule 16).
inline void ring(WakeWord& bell) {
  bell.word.fetch_add(1, std::memory_order_seq_cst);
  if (bell.waiters.load(std::memory_order_seq_cst) != 0) futex_wake_all(bell.word);
}

inline FutexResult wait_on(WakeWord& bell, std::uint32_t seen, std::int64_t timeout_ns) {
  bell.waiters.fetch_add(1, std::memory_order_seq_cst);
  FutexResult result = FutexResult::kChanged;
  if (bell.word.load(std::memory_order_seq_cst) == seen) {
    result = futex_wait(bell.word, seen, timeout_ns);
  }
  bell.waiters.fetch_sub(1, std::memory_order_seq_cst);
  return result;
}

}  // namespace kvtrie
