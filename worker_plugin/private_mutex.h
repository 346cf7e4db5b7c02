// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A lock among the threads of this process that outlives a thread which ends while it holds it: the next one simply has
// it. So only for what is right at every instruction, whoever went on no further. (batch.h has one whose data is not.)
#pragma once

#include <pthread.h>

#include <cstdint>

#include "shm/robust_mutex.h"
#include "shm/status.h"

namespace kvtrie {

class PrivateMutex {
 public:
  PrivateMutex() : init_(RobustMutex::init(mutex_)) {}
  PrivateMutex(const PrivateMutex&) = delete;
  PrivateMutex& operator=(const PrivateMutex&) = delete;

  // kBusy: not had in that time.
  Status lock(std::int64_t wait_ns) {
    if (!init_) return init_;
    const Status status = RobustMutex::acquire(mutex_, wait_ns);
    return status.code() == Code::kOwnerDied ? RobustMutex::mark_consistent(mutex_) : status;
  }
  void unlock() { (void)RobustMutex::release(mutex_); }

 private:
  pthread_mutex_t mutex_{};
  Status init_;
};

// Held from its construction, if status() says so, to its end.
class PrivateLock {
 public:
  PrivateLock(PrivateMutex& mutex, std::int64_t wait_ns) : mutex_(mutex), status_(mutex.lock(wait_ns)) {}
  ~PrivateLock() {
    if (status_) mutex_.unlock();
  }
  PrivateLock(const PrivateLock&) = delete;
  PrivateLock& operator=(const PrivateLock&) = delete;

  const Status& status() const { return status_; }

 private:
  PrivateMutex& mutex_;
  Status status_;
};

}  // namespace kvtrie
