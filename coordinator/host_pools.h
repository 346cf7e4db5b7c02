// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The pools: page bytes on host memory, one object a plane. (A device's memory gets a sibling of
// this file.) The coordinator hands descriptors out and never looks at the bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/failure.h"
#include "shm/geometry.h"
#include "shm/shared_object.h"

namespace kvtrie {

class HostPools {
 public:
  // Under temporary names, memory reserved.
  static MaybeFailure create(const std::string& cache, const Geometry& geometry, unsigned mode,
                             HostPools& pools);
  MaybeFailure publish() const;
  // Those of an existing cache; each must have exactly the size that the segment states.
  static MaybeFailure open(const std::string& cache, const Geometry& geometry, HostPools& pools);

  std::uint32_t count() const { return static_cast<std::uint32_t>(writable_.size()); }
  std::uint64_t size_bytes() const { return size_bytes_; }  // of each
  int descriptor(std::uint32_t plane, Access access) const {
    return (access == Access::kReadWrite ? writable_ : read_only_)[plane].get();
  }
  // Observers get descriptors through which nothing can be written. After publish() or open().
  MaybeFailure open_read_only();

 private:
  std::string cache_;
  std::uint64_t size_bytes_ = 0;
  std::vector<FileDescriptor> writable_;
  std::vector<FileDescriptor> read_only_;
};

// Of this cache, whatever its number of planes was: the temporary ones; all from this plane on.
void discard_pools(const std::string& cache);
void remove_pools(const std::string& cache, std::uint32_t first_plane = 0);

}  // namespace kvtrie
