// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/page_checksum.h"

#include "shm/page_checksum.h"

namespace kvtrie {

std::uint64_t page_checksum(const PoolView& pool, std::uint32_t page) {
  return page_checksum(pool.planes, pool.page_bytes, page, [&](std::uint32_t plane) { return pool.plane[plane]; });
}

}  // namespace kvtrie
