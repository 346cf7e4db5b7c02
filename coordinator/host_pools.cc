// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/host_pools.h"

#include <fmt/format.h>

namespace kvtrie {

MaybeFailure HostPools::create(const std::string& cache, const Geometry& geometry, unsigned mode,
                               HostPools& pools) {
  pools.cache_ = cache;
  pools.size_bytes_ = pool_bytes(geometry);
  for (std::uint32_t plane = 0; plane < geometry.planes; ++plane) {
    const std::string name = pool_object_name(cache, plane);
    Result<FileDescriptor> fd = create_object(name, pools.size_bytes_, mode);
    if (!fd) {
      discard_pools(cache);  // gives back what the planes before it reserved
      pools.writable_.clear();
      return failure_of(fmt::format("/dev/shm/{} of {} bytes", name, pools.size_bytes_),
                        fd.error());
    }
    pools.writable_.push_back(std::move(*fd));
  }
  return {};
}

MaybeFailure HostPools::publish() const {
  for (std::uint32_t plane = 0; plane < count(); ++plane) {
    const std::string name = pool_object_name(cache_, plane);
    if (Status status = publish_object(name); !status)
      return failure_of("/dev/shm/" + name, status);
  }
  return {};
}

MaybeFailure HostPools::open(const std::string& cache, const Geometry& geometry, HostPools& pools) {
  pools.cache_ = cache;
  pools.size_bytes_ = pool_bytes(geometry);
  for (std::uint32_t plane = 0; plane < geometry.planes; ++plane) {
    const std::string name = pool_object_name(cache, plane);
    Result<FileDescriptor> fd = open_object(name, Access::kReadWrite);
    if (!fd) return failure_of("/dev/shm/" + name, fd.error());
    const Result<std::uint64_t> bytes = object_bytes(fd->get());
    if (!bytes) return failure_of("/dev/shm/" + name, bytes.error());
    if (*bytes != pools.size_bytes_) {
      return Failure{fmt::format("/dev/shm/{}: has {} bytes, the segment says {}", name, *bytes,
                                 pools.size_bytes_)};
    }
    pools.writable_.push_back(std::move(*fd));
  }
  return {};
}

MaybeFailure HostPools::open_read_only() {
  for (std::uint32_t plane = 0; plane < count(); ++plane) {
    const std::string name = pool_object_name(cache_, plane);
    Result<FileDescriptor> fd = open_object(name, Access::kReadOnly);
    if (!fd) return failure_of("/dev/shm/" + name, fd.error());
    read_only_.push_back(std::move(*fd));
  }
  return {};
}

void discard_pools(const std::string& cache) {
  for (std::uint32_t plane = 0; plane < kPlanesMax; ++plane) {
    (void)discard_object(pool_object_name(cache, plane));
  }
}

void remove_pools(const std::string& cache, std::uint32_t first_plane) {
  for (std::uint32_t plane = first_plane; plane < kPlanesMax; ++plane) {
    (void)remove_object(pool_object_name(cache, plane));
  }
}

}  // namespace kvtrie
