// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/page_checksum.h"

#include "shm/prefix_hash.h"

namespace kvtrie {

std::uint64_t page_checksum(const PoolView& pool, std::uint32_t page) {
  std::uint64_t sum = 0;
  for (std::uint32_t plane = 0; plane < pool.planes; ++plane) {
    sum = hash_bytes(sum, pool.plane[plane] + page * pool.page_bytes, pool.page_bytes);
  }
  return sum == 0 ? 1 : sum;
}

}  // namespace kvtrie
