// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Turns the segment's doorbell, a futex word that workers ring, into an eventfd that the loop's
// epoll understands. A thread of its own, which touches nothing but the
// bell.
#pragma once

#include <atomic>
#include <thread>

#include "coordinator/failure.h"
#include "shm/segment.h"
#include "shm/shared_object.h"

namespace kvtrie {

class DoorbellWatcher {
 public:
  explicit DoorbellWatcher(const Segment& segment) : segment_(segment) {}
  ~DoorbellWatcher();
  DoorbellWatcher(const DoorbellWatcher&) = delete;
  DoorbellWatcher& operator=(const DoorbellWatcher&) = delete;

  // Forgets the waiter that a dead coordinator left on the bell. Signals are blocked in the new
  // thread.
  MaybeFailure start();
  int event_fd() const { return event_.get(); }
  // Empties the eventfd; what was rung before is to be looked after now.
  void clear() const;

 private:
  void watch();
  void signal_loop() const;

  const Segment& segment_;
  FileDescriptor event_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvtrie
