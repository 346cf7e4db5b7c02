// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Planes in host memory that workers map to read only: they ask for writes through the copy queue (shm/copy_queue.h),
// and the copy engine, a thread of the coordinator, performs them later. So it has what real devices have: writes that
// outlive the process that asked for them, and a fence that has to be waited for.
//
// The queue is an object beside the planes. What a dead coordinator left in it the next one's engine goes on with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "coordinator/copy_engine.h"
#include "coordinator/host_device.h"
#include "shm/copy_queue.h"

namespace kvtrie {

class QueuedDevice final : public HostDevice {
 public:
  QueuedDevice(const HostMemory& memory, std::uint32_t delay_ms) : HostDevice(memory), delay_ms_(delay_ms) {}

  MaybeFailure make(const PlanesWanted& wanted) override;
  MaybeFailure publish() override;
  MaybeFailure adopt(const PlanesWanted& wanted) override;
  MaybeFailure start() override;

  // Nobody but the engine writes.
  int descriptor(std::uint32_t plane, Access) const override {
    return HostDevice::descriptor(plane, Access::kReadOnly);
  }
  int queue_descriptor() const override { return queue_fd_.get(); }
  bool fence(WorkerId gone) override;
  std::string describe() const override;

 private:
  MaybeFailure open_queue(bool built);

  const std::uint32_t delay_ms_;
  FileDescriptor queue_fd_;
  std::optional<CopyQueue> queue_;
  std::optional<CopyEngine> engine_;  // after queue_: it ends first
};

}  // namespace kvtrie
