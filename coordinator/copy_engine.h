// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The copy engine of a queued device: the one thread that writes into the planes what workers put into the copy queue
// (shm/copy_queue.h), each copy at least `delay_ms` after it was asked for, a worker's in their order.
//
// It sleeps on the queue's doorbell and looks at all rings each time it wakes, and every 50 ms in any case: a worker may
// have died between its copy and the ring. It ends between two copies; what is left stays in the queue for the engine
// of the next coordinator.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#include "shm/copy_queue.h"
#include "shm/shared_object.h"

namespace kvtrie {

// Writes the copy's bytes into its page of `plane` and counts it as done. Whoever dies in it leaves it to be performed
// again.
void perform_copy(const CopyQueue& queue, const Mapping& plane, std::uint64_t page_bytes, WorkerId slot,
                  const CopyWork& work);

class CopyEngine {
 public:
  // Starts at once. `planes` are writable mappings; `queue` must outlive the engine.
  CopyEngine(const CopyQueue& queue, std::vector<Mapping> planes, std::uint64_t page_bytes, std::uint32_t delay_ms);

 private:
  void run(const std::stop_token& stop);
  // Performs what is due; nanoseconds until the next copy is, at most 50 ms.
  std::int64_t perform_due(const std::stop_token& stop);

  const CopyQueue& queue_;
  const std::vector<Mapping> planes_;
  const std::uint64_t page_bytes_;
  const std::uint64_t delay_ns_;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace kvtrie
