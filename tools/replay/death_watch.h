// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How long it takes from the kernel's report of a death (a pidfd of our own becomes readable) until everything that the
// dead process held is given back: its slots' words say so (WorkerTable, invariant W3), and they are read from outside,
// in the mapped segment. A thread of its own, so that whoever kills can go on.
//
// Thread safety: one thread calls, and the watch's own thread measures.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <stop_token>
#include <thread>
#include <vector>

#include "shm/segment.h"
#include "shm/shared_object.h"
#include "shm/worker_table.h"
#include "tools/replay/histogram.h"

namespace kvtrie::replay {

class DeathWatch {
 public:
  using Clock = std::chrono::steady_clock;

  // `priority` above 0: measures at SCHED_RR with it, where that is permitted.
  DeathWatch(const Segment& segment, int priority);
  DeathWatch(const DeathWatch&) = delete;
  DeathWatch& operator=(const DeathWatch&) = delete;
  ~DeathWatch();

  // A child that has not been waited for and that is about to be killed. Throws std::system_error.
  void expect(pid_t pid);
  // The coordinator serves from now on, or does not: deaths meanwhile are counted apart, since they wait for it.
  void coordinator_serves(bool serves);

  // A death that was expected and is not given back, though the coordinator has served for `limit` since; or nothing.
  [[nodiscard]] std::string overdue(std::chrono::milliseconds limit) const;
  [[nodiscard]] std::size_t pending() const;

  struct Result {
    Histogram served;       // the coordinator served all along
    Histogram disturbed;    // it was dead or stopped in between
    std::uint64_t unattached = 0;  // died without a slot
  };
  [[nodiscard]] Result result() const;

 private:
  struct Dying {
    pid_t pid;
    FileDescriptor pidfd;
    std::vector<SlotGrant> grants;
    bool reported = false;
    Clock::time_point since;         // the report
    std::uint64_t disturbances = 0;  // at the report
    Clock::duration served{};        // by the coordinator until the kill
  };

  void run(const std::stop_token& stop);
  void report(Dying& dying, Clock::time_point now) const;
  // True when all is given back.
  bool finish(const Dying& dying);
  void add_grants(Dying& dying) const;
  // How long the coordinator has served in all.
  [[nodiscard]] Clock::duration served() const;

  const Segment& segment_;
  const int priority_;
  mutable std::mutex lock_;
  std::vector<Dying> dying_;
  Result result_;
  Clock::time_point serves_since_ = Clock::now();
  Clock::duration served_before_{};  // that
  std::uint64_t disturbances_ = 0;  // odd while the coordinator does not serve
  FileDescriptor wake_;
  std::jthread thread_;
};

}  // namespace kvtrie::replay
