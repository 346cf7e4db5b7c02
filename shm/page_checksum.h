// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The sum that Descriptor::checksum holds in caches with kFeaturePageChecksums: XXH3-64 over the page's bytes in plane 0,
// which seeds the one over plane 1, and so on. Never 0: that stands for "not computed", as in pages of a save file.
//
// The publisher computes it before the page is Live, and everybody compares it who is about to hand the page out. It finds
// bytes that changed after they were published: of a worker that writes where it must not, or of bad memory. Not found:
// bytes that were wrong when they were published.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shm/prefix_hash.h"

namespace kvtrie {

// `plane_at(i)` gives the first byte of plane i, for i below `planes`; each plane has page `page`.
template <typename PlaneAt>
std::uint64_t page_checksum(std::uint32_t planes, std::uint64_t page_bytes, std::uint32_t page, PlaneAt plane_at) {
  std::uint64_t sum = 0;
  for (std::uint32_t plane = 0; plane < planes; ++plane) {
    sum = hash_bytes(sum, plane_at(plane) + page * page_bytes, page_bytes);
  }
  return sum == 0 ? 1 : sum;
}

}  // namespace kvtrie
