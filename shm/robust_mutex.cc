// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/robust_mutex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

namespace kvtrie {
namespace {

thread_local unsigned held = 0;

timespec deadline_after(std::int64_t wait_ns) {
  timespec limit{};
  ::clock_gettime(CLOCK_MONOTONIC, &limit);
  const std::int64_t ns = limit.tv_nsec + wait_ns;
  limit.tv_sec += static_cast<time_t>(ns / 1'000'000'000);
  limit.tv_nsec = static_cast<long>(ns % 1'000'000'000);
  return limit;
}

}  // namespace

Status RobustMutex::init(pthread_mutex_t& mutex) {
  pthread_mutexattr_t attributes;
  if (const int rc = ::pthread_mutexattr_init(&attributes); rc != 0) {
    return {Code::kSystem, "pthread_mutexattr_init", rc};
  }
  int rc = ::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  if (rc == 0) rc = ::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  if (rc == 0) rc = ::pthread_mutex_init(&mutex, &attributes);
  ::pthread_mutexattr_destroy(&attributes);
  if (rc != 0) return {Code::kSystem, "making a robust mutex", rc};
  return {};
}

Status RobustMutex::acquire(pthread_mutex_t& mutex, std::int64_t wait_ns) {
  if (held >= kHeldMax) return {Code::kSystem, "too many shared locks held by one thread", EAGAIN};
  int rc = ::pthread_mutex_trylock(&mutex);
  if (rc == EBUSY && wait_ns > 0) {
    const timespec limit = deadline_after(wait_ns);
    rc = ::pthread_mutex_clocklock(&mutex, CLOCK_MONOTONIC, &limit);
  }
  switch (rc) {
    case 0:
      ++held;
      return {};
    case EOWNERDEAD:
      ++held;
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

Status RobustMutex::mark_consistent(pthread_mutex_t& mutex) {
  if (const int rc = ::pthread_mutex_consistent(&mutex); rc != 0) {
    return {Code::kSystem, "pthread_mutex_consistent", rc};
  }
  return {};
}

Status RobustMutex::release(pthread_mutex_t& mutex) {
  if (const int rc = ::pthread_mutex_unlock(&mutex); rc != 0) {
    return {Code::kSystem, "releasing a robust mutex", rc};
  }
  --held;
  return {};
}

bool RobustMutex::has_robust_list() {
  robust_list_head* head = nullptr;
  std::size_t bytes = 0;
  return ::syscall(SYS_get_robust_list, 0, &head, &bytes) == 0 && head != nullptr;
}

unsigned RobustMutex::held_by_this_thread() { return held; }

}  // namespace kvtrie
