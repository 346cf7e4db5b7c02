// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A mount namespace of this process's own with a small /dev/shm, which is filled up and emptied again and again: the
// machine's /dev/shm is all of its memory, so that one is never filled.
#pragma once

#include <chrono>
#include <cstdint>

#include "shm/shared_object.h"

namespace kvtrie::replay {

class SmallShm {
 public:
  static constexpr std::uint64_t kBytes = std::uint64_t{256} << 20;

  // This process and those that it starts later see the small one. Call it while there is one thread. Throws
  // std::runtime_error where neither root nor user namespaces are there for it.
  SmallShm();

  // Allocates some more, until nothing is left; stays full for a while; gives all of it back. Takes about a millisecond.
  void step();
  [[nodiscard]] std::uint32_t times_full() const { return times_full_; }

 private:
  FileDescriptor filler_;
  std::uint64_t size_ = 0;
  std::uint64_t piece_;
  std::chrono::steady_clock::time_point next_;  // nothing before that
  std::uint32_t times_full_ = 0;
};

}  // namespace kvtrie::replay
