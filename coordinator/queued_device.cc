// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/queued_device.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "shm/mutant.h"

namespace kvtrie {

MaybeFailure QueuedDevice::make(const PlanesWanted& wanted) {
  if (MaybeFailure failure = HostDevice::make(wanted)) return failure;
  const std::string name = queue_object_name(wanted.cache);
  const std::uint64_t bytes = CopyQueue::size_bytes(wanted.geometry);
  Result<FileDescriptor> fd = create_object(name, bytes, wanted.mode);
  if (!fd) {
    discard_planes(wanted.cache);
    return failure_of(fmt::format("/dev/shm/{} of {} bytes", name, bytes), fd.error());
  }
  queue_fd_ = std::move(*fd);
  return open_queue(false);
}

MaybeFailure QueuedDevice::adopt(const PlanesWanted& wanted) {
  if (MaybeFailure failure = HostDevice::adopt(wanted)) return failure;
  const std::string name = queue_object_name(wanted.cache);
  Result<FileDescriptor> fd = open_object(name, Access::kReadWrite);
  if (!fd) return failure_of("/dev/shm/" + name, fd.error());
  queue_fd_ = std::move(*fd);
  return open_queue(true);
}

MaybeFailure QueuedDevice::open_queue(bool built) {
  const std::string what = "/dev/shm/" + queue_object_name(wanted().cache);
  const Geometry& geometry = wanted().geometry;
  Result<Mapping> mapping = Mapping::map(queue_fd_.get(), CopyQueue::size_bytes(geometry), Access::kReadWrite);
  if (!mapping) return failure_of(what, mapping.error());
  if (!built) {
    queue_.emplace(CopyQueue::build(std::move(*mapping), geometry, wanted().cache_id));
    return {};
  }
  Result<CopyQueue> queue = CopyQueue::open(std::move(*mapping), geometry, wanted().cache_id);
  if (!queue) return failure_of(what, queue.error());
  queue_.emplace(std::move(*queue));
  return {};
}

MaybeFailure QueuedDevice::publish() {
  if (MaybeFailure failure = HostDevice::publish()) return failure;
  const std::string name = queue_object_name(wanted().cache);
  if (Status status = publish_object(name); !status) return failure_of("/dev/shm/" + name, status);
  return {};
}

MaybeFailure QueuedDevice::start() {
  if (MaybeFailure failure = HostDevice::start()) return failure;
  std::vector<Mapping> planes;
  for (std::uint32_t plane = 0; plane < plane_count(); ++plane) {
    Result<Mapping> mapping = Mapping::map(writable(plane), plane_bytes(), Access::kReadWrite);
    if (!mapping) return failure_of("mapping a plane for the copy engine", mapping.error());
    planes.push_back(std::move(*mapping));
  }
  engine_.emplace(*queue_, std::move(planes), wanted().geometry.page_bytes, delay_ms_);
  return {};
}

bool QueuedDevice::fence(WorkerId gone) { return KVTRIE_MUTANT(no_device_fence) || queue_->idle(gone); }

std::string QueuedDevice::describe() const {
  return fmt::format("{} queued=1 delay_ms={}", HostDevice::describe(), delay_ms_);
}

}  // namespace kvtrie
