// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Has the kernel make the memory of segment and pools ready in the background, so that no worker pays for the first
// touch of a page (3 to 5 us per 4 KiB). The memory is reserved anyhow; this clears it. No byte is written:
// MADV_POPULATE_WRITE (Linux 5.14) does what a write fault does, without the write, so it may run beside everybody
// who uses the memory.
//
// One thread of lowest priority, which maps a piece at a time. It ends by itself, or after its piece when it is to
// stop. Thread-safe: figures() may be called by any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/failure.h"
#include "shm/shared_object.h"

namespace kvtrie {

struct PrefaultObject {
  FileDescriptor memory;  // open for writing
  std::uint64_t size_bytes = 0;
};

struct PrefaultFigures {
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
};

class Prefault {
 public:
  Prefault() = default;
  ~Prefault();
  Prefault(const Prefault&) = delete;
  Prefault& operator=(const Prefault&) = delete;

  MaybeFailure start(std::vector<PrefaultObject> objects);
  // Waits for the piece that is being made ready, some milliseconds.
  void stop();
  // Readable once it has ended by itself: then result() may be called.
  int event_fd() const { return ended_.get(); }
  // "event=prefault ..." for the log: done, or why it gave up.
  std::string result() const;
  PrefaultFigures figures() const {
    return {done_.load(std::memory_order_relaxed), total_.load(std::memory_order_relaxed)};
  }

 private:
  void run();
  int populate(const PrefaultObject& object);  // errno

  std::vector<PrefaultObject> objects_;
  FileDescriptor ended_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> done_{0};
  std::atomic<std::uint64_t> total_{0};
  int error_ = 0;               // both: written by the thread before its event
  std::int64_t took_ms_ = 0;
  std::thread thread_;
};

}  // namespace kvtrie
