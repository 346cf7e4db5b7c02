// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/host_device.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>

#include "coordinator/host_memory.h"

namespace kvtrie {

MaybeFailure HostDevice::make(const PlanesWanted& wanted) {
  if (std::string problem = host_memory_problem(memory_); !problem.empty()) return Failure{problem};
  wanted_ = wanted;
  plane_bytes_ = pool_bytes(wanted.geometry);
  for (std::uint32_t plane = 0; plane < wanted.geometry.planes; ++plane) {
    MaybeFailure failure = make_plane(plane);
    if (!failure) failure = lock_plane(plane);
    if (!failure) continue;
    locked_.clear();
    writable_.clear();
    discard_planes(wanted.cache);  // gives back what the planes before it reserved
    return failure;
  }
  return {};
}

MaybeFailure HostDevice::make_plane(std::uint32_t plane) {
  const std::string name = pool_object_name(wanted_.cache, plane);
  std::uint64_t huge_bytes = 0;
  Result<FileDescriptor> fd = create_object(name, plane_bytes_, wanted_.mode, [&](int empty) {
    return place_memory(empty, plane_bytes_, memory_, huge_bytes);
  });
  if (!fd) return failure_of(fmt::format("/dev/shm/{} of {} bytes", name, plane_bytes_), fd.error());
  huge_bytes_ += huge_bytes;
  writable_.push_back(std::move(*fd));
  return {};
}

MaybeFailure HostDevice::publish() {
  for (std::uint32_t plane = 0; plane < plane_count(); ++plane) {
    const std::string name = pool_object_name(wanted_.cache, plane);
    if (Status status = publish_object(name); !status) return failure_of("/dev/shm/" + name, status);
  }
  return {};
}

MaybeFailure HostDevice::adopt(const PlanesWanted& wanted) {
  wanted_ = wanted;
  adopted_ = true;
  plane_bytes_ = pool_bytes(wanted.geometry);
  for (std::uint32_t plane = 0; plane < wanted.geometry.planes; ++plane) {
    if (MaybeFailure failure = open_plane(plane)) return failure;
    if (MaybeFailure failure = lock_plane(plane)) return failure;
  }
  return {};
}

MaybeFailure HostDevice::open_plane(std::uint32_t plane) {
  const std::string name = pool_object_name(wanted_.cache, plane);
  Result<FileDescriptor> fd = open_object(name, Access::kReadWrite);
  if (!fd) return failure_of("/dev/shm/" + name, fd.error());
  const Result<std::uint64_t> bytes = object_bytes(fd->get());
  if (!bytes) return failure_of("/dev/shm/" + name, bytes.error());
  if (*bytes != plane_bytes_) {
    return Failure{
        fmt::format("/dev/shm/{}: has {} bytes, the segment says {}", name, *bytes, plane_bytes_)};
  }
  writable_.push_back(std::move(*fd));
  return {};
}

MaybeFailure HostDevice::lock_plane(std::uint32_t plane) {
  if (!memory_.lock) return {};
  Result<Mapping> mapping = Mapping::map(writable(plane), plane_bytes_, Access::kReadWrite);
  if (!mapping) return failure_of("mapping a plane to lock it", mapping.error());
  if (::mlock(mapping->data(), plane_bytes_) != 0) {
    Failure failure = system_failure(fmt::format("--mlock: locking {} bytes", plane_bytes_), errno);
    failure.text += "; raise the limit of locked memory (LimitMEMLOCK=infinity, ulimit -l) or give CAP_IPC_LOCK";
    return failure;
  }
  locked_.push_back(std::move(*mapping));
  return {};
}

MaybeFailure HostDevice::start() {
  for (std::uint32_t plane = 0; plane < plane_count(); ++plane) {
    const std::string name = pool_object_name(wanted_.cache, plane);
    Result<FileDescriptor> fd = open_object(name, Access::kReadOnly);
    if (!fd) return failure_of("/dev/shm/" + name, fd.error());
    read_only_.push_back(std::move(*fd));
  }
  return {};
}

std::string HostDevice::describe() const {
  std::string text = fmt::format("device=host planes={} plane_bytes={} locked={}", plane_count(), plane_bytes_,
                                 locked_.empty() ? 0 : 1);
  if (memory_.huge_pages) {
    text += adopted_ ? " huge_bytes=as_made" : fmt::format(" huge_bytes={}", huge_bytes_);
  }
  if (memory_.numa_node) {
    text += adopted_ ? " numa_node=as_made" : fmt::format(" numa_node={}", *memory_.numa_node);
  }
  return text;
}

}  // namespace kvtrie
