// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A writer: a process of its own that caches fresh prompts of 256 pages, one after the other, so
// that the coordinator evicts all the time. Starts and stops as its owner likes.
//
// Where there are processors enough, writer and coordinator are kept off the one that the owner is
// put on: what is measured there is what they do to its memory, not how the kernel shares out
// processors.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <cstdint>

#include "tools/bench/workload.h"

namespace kvtrie::bench {

class Churn {
 public:
  // Stopped. The calling process must not be attached and must have no other thread.
  Churn(const Settings& settings, const BenchCache& cache);
  Churn(const Churn&) = delete;
  Churn& operator=(const Churn&) = delete;
  ~Churn();

  // Returns when pages are evicted. Throws std::runtime_error when none are.
  void go_on() const;
  // Returns when the writer has stopped and the evictor rests.
  void stop() const;

 private:
  std::uint64_t evictions() const;  // since the cache was made
  void await_stop() const;
  void place(const cpu_set_t& writers) const;

  const replay::Observer observer_;
  cpu_set_t allowed_{};
  pid_t pid_ = -1;
};

}  // namespace kvtrie::bench
