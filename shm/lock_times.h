// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How long stripe locks are waited for and held, told to kvtrie-bench (section locks) by a plugin
// that is built for it, with KVTRIE_TIME_LOCKS. In every other build the calls are empty. For one
// thread: it holds one stripe at a time.
#pragma once

#include <cstdint>
#include <ctime>

namespace kvtrie {

// Of the processor's own counter where it has one, since a call of the clock takes as long as a
// lock.
inline std::uint64_t lock_ticks() {
#ifdef __x86_64__
  return __builtin_ia32_rdtsc();
#else
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U +
         static_cast<std::uint64_t>(now.tv_nsec);
#endif
}

// The library's symbol kvtrie_lock_observer; set before the first call.
struct LockObserver {
  void (*waited)(std::uint64_t ticks);  // until it was had, or passed by
  void (*held)(std::uint64_t ticks);
};

#ifdef KVTRIE_TIME_LOCKS
extern "C" __attribute__((visibility("default")))
LockObserver kvtrie_lock_observer;  // stripe_index.cc

class LockTimes {
 public:
  static void asked() { since_ = lock_ticks(); }
  static void answered() { tell(kvtrie_lock_observer.waited); }
  static void released() { tell(kvtrie_lock_observer.held); }

 private:
  static void tell(void (*observer)(std::uint64_t)) {
    const std::uint64_t now = lock_ticks();
    if (observer != nullptr) observer(now - since_);
    since_ = lock_ticks();  // without what the observer took
  }
  static inline std::uint64_t since_ = 0;
};
#else
class LockTimes {
 public:
  static void asked() {}
  static void answered() {}
  static void released() {}
};
#endif

}  // namespace kvtrie
