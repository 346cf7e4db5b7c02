// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/robust_mutex.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

namespace kvtrie {
namespace {

// The C library's list of the robust mutexes that a thread holds goes through the mutexes, so through the segment, and
// an unlock writes to where they point. What was written over them meanwhile must not lead there (C7), so they are put
// back first. A write within the unlock itself is not met.
struct Links {
  pthread_mutex_t* mutex = nullptr;  // null: not used
  __pthread_internal_list* previous = nullptr;
  __pthread_internal_list* next = nullptr;
};

// One object, so that a call asks once where the thread has it.
struct Held {
  unsigned count = 0;
  Links links[RobustMutex::kHeldMax];
};
constinit thread_local Held held_by_thread;

// Not inline: else the compiler asks again at each use, by a call of the C library.
[[gnu::noinline]] Held& held_here() { return held_by_thread; }

__pthread_internal_list& links_in(pthread_mutex_t& mutex) { return mutex.__data.__list; }

// How its neighbours in the list name it: by the address of its link to the next.
__pthread_internal_list* named(pthread_mutex_t& mutex) {
  return reinterpret_cast<__pthread_internal_list*>(&links_in(mutex).__next);
}

void note_links(Held& held, pthread_mutex_t& mutex) {
  Links* free = nullptr;
  for (Links& links : held.links) {
    if (links.mutex == nullptr || links.mutex == &mutex) free = &links;
    else if (named(*links.mutex) == links_in(mutex).__next) links.previous = named(mutex);
  }
  if (free != nullptr) *free = {&mutex, links_in(mutex).__prev, links_in(mutex).__next};
}

// True: they were what they should be.
bool put_links_back(Held& held, pthread_mutex_t& mutex) {
  bool good = true;
  for (Links& mine : held.links) {
    if (mine.mutex != &mutex) continue;
    good = links_in(mutex).__prev == mine.previous && links_in(mutex).__next == mine.next;
    links_in(mutex).__prev = mine.previous;
    links_in(mutex).__next = mine.next;
    for (Links& other : held.links) {
      if (other.mutex == nullptr || &other == &mine) continue;
      if (other.previous == named(mutex)) other.previous = mine.previous;
      if (other.next == named(mutex)) other.next = mine.next;
    }
    mine = {};
  }
  return good;
}

timespec deadline_after(std::int64_t wait_ns) {
  timespec limit{};
  ::clock_gettime(CLOCK_MONOTONIC, &limit);
  const std::int64_t ns = limit.tv_nsec + wait_ns;
  limit.tv_sec += static_cast<time_t>(ns / 1'000'000'000);
  limit.tv_nsec = static_cast<long>(ns % 1'000'000'000);
  return limit;
}

// Fields of the C library's mutex. The kind is constant after init, so another one is not our lock
// any more, and the library would assert on some (C7).
constexpr int kKind = PTHREAD_MUTEX_ERRORCHECK_NP | 16 /* robust */ | 128 /* process-shared */;

constexpr int kNotRecoverable = std::numeric_limits<int>::max() - 1;  // as the owner

bool intact(const pthread_mutex_t& mutex) {
  return __atomic_load_n(&mutex.__data.__kind, __ATOMIC_RELAXED) == kKind;
}

// Asked before and after each try: glibc's trylock on a lock that is not recoverable says so once
// and leaves it locked by the caller, so that everybody else would get Busy for ever.
bool given_up(const pthread_mutex_t& mutex) {
  return __atomic_load_n(&mutex.__data.__owner, __ATOMIC_RELAXED) == kNotRecoverable;
}

int wait_for(pthread_mutex_t& mutex, const timespec& limit) {
#ifdef KVTRIE_TSAN
  // The thread sanitizer does not know clocklock, and then takes the release for a fault.
  int rc = EBUSY;
  timespec now{};
  do {
    ::sched_yield();
    rc = ::pthread_mutex_trylock(&mutex);
    ::clock_gettime(CLOCK_MONOTONIC, &now);
  } while (rc == EBUSY &&
           (now.tv_sec != limit.tv_sec ? now.tv_sec < limit.tv_sec : now.tv_nsec < limit.tv_nsec));
  return rc;
#else
  return ::pthread_mutex_clocklock(&mutex, CLOCK_MONOTONIC, &limit);
#endif
}

}  // namespace

Status RobustMutex::init(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  if (const int rc = ::pthread_mutexattr_init(&attributes); rc != 0) {
    return {Code::kSystem, "pthread_mutexattr_init", rc};
  }
  int rc = ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  if (rc == 0) rc = ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  // Of this type, taking it twice is EDEADLK and not a wait for oneself.
  if (rc == 0) rc = ::pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
  if (rc == 0) rc = ::pthread_mutex_init(&mutex, &attributes);
  ::pthread_mutexattr_destroy(&attributes);
  if (rc != 0) return {Code::kSystem, "making a robust mutex", rc};
  if (!intact(mutex)) return {Code::kSystem, "the C library's mutex is not as expected", ENOSYS};
  return {};
}

Status RobustMutex::validate(const pthread_mutex_t& mutex) {
  if (!intact(mutex))
    return {Code::kCorrupt, "the bytes of a shared lock were overwritten", EINVAL};
  if (given_up(mutex)) return {Code::kPoisoned, "the lock is not recoverable", ENOTRECOVERABLE};
  return {};
}

#ifdef KVTRIE_UNSYNCHRONIZED  // plain_atomic.h
Status RobustMutex::acquire(pthread_mutex_t&, std::int64_t) { return {}; }
Status RobustMutex::release(pthread_mutex_t&) { return {}; }
#else
Status RobustMutex::acquire(pthread_mutex_t& mutex, std::int64_t wait_ns) {
  Held& held = held_here();
  if (held.count >= kHeldMax) return {Code::kSystem, "too many shared locks held by one thread", EAGAIN};
  if (Status status = validate(mutex); !status) return status;
  int rc = ::pthread_mutex_trylock(&mutex);
  if (rc == EBUSY && wait_ns > 0) rc = wait_for(mutex, deadline_after(wait_ns));
  if ((rc == EBUSY || rc == ETIMEDOUT) && given_up(mutex)) rc = ENOTRECOVERABLE;
  switch (rc) {
    case 0:
      ++held.count;
      note_links(held, mutex);
      return {};
    case EOWNERDEAD:
      ++held.count;
      note_links(held, mutex);
      return {Code::kOwnerDied, "the lock's last owner died inside", rc};
    case EBUSY:
    case ETIMEDOUT:
      return {Code::kBusy, "the lock was not had in time", rc};
    case ENOTRECOVERABLE:
      return {Code::kPoisoned, "the lock is not recoverable", rc};
    default:
      return {Code::kSystem, "acquiring a robust mutex", rc};
  }
}

Status RobustMutex::release(pthread_mutex_t& mutex) {
  Held& held = held_here();
  if (held.count > 0) --held.count;  // whatever comes of it, it is not tried again
  const bool good = put_links_back(held, mutex);
  if (!intact(mutex))
    return {Code::kCorrupt, "the bytes of a shared lock were overwritten", EINVAL};
  if (const int rc = ::pthread_mutex_unlock(&mutex); rc != 0) {
    return {Code::kSystem, "releasing a robust mutex", rc};
  }
  if (!good) return {Code::kCorrupt, "the bytes of a shared lock were overwritten while it was held", EINVAL};
  return {};
}
#endif

Status RobustMutex::mark_consistent(pthread_mutex_t& mutex) {
  if (const int rc = ::pthread_mutex_consistent(&mutex); rc != 0) {
    return {Code::kSystem, "pthread_mutex_consistent", rc};
  }
  return {};
}

bool RobustMutex::has_robust_list() {
  robust_list_head* head = nullptr;
  std::size_t bytes = 0;
  return ::syscall(SYS_get_robust_list, 0, &head, &bytes) == 0 && head != nullptr;
}

unsigned RobustMutex::held_by_this_thread() { return held_by_thread.count; }

}  // namespace kvtrie
