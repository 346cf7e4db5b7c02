// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/pools.h"

#include <fmt/format.h>

#include <cstring>

namespace kvtrie::inspect {

std::string in_words(const std::string& what, const Status& status) {
  std::string text = fmt::format("{}: {}", what, status.what());
  if (status.system_errno() != 0) text += fmt::format(": {}", std::strerror(status.system_errno()));
  return text;
}

Pools::Pools(const Segment& segment, const std::string& cache) {
  std::vector<int> descriptors;
  for (std::uint32_t plane = 0; plane < segment.geometry().planes; ++plane) {
    Result<FileDescriptor> fd = open_object(pool_object_name(cache, plane), Access::kReadOnly);
    Status status = fd.error();
    if (status.code() == Code::kNotFound) status = {Code::kCorrupt, "the segment's pool is gone"};
    if (status) {
      const Result<std::uint64_t> bytes = object_bytes(fd->get());
      if (!bytes || *bytes != pool_bytes(segment.geometry())) {
        status = {Code::kCorrupt, "the pool has not the size that the segment states"};
      }
    }
    if (!status) {
      problem_ = in_words("/dev/shm/" + pool_object_name(cache, plane), status);
      code_ = exit_of(status);
      return;
    }
    descriptors.push_back(fd->get());
    pools_.push_back(std::move(*fd));
  }
  planes_.emplace(std::move(descriptors), segment.geometry().page_bytes);
}

}  // namespace kvtrie::inspect
