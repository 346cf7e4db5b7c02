// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How large a cache is, and where each area of its segment lies. Pure arithmetic: every limit and overflow
// is found here, before anything is made.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "shm/format.h"
#include "shm/status.h"

namespace kvtrie {

struct Geometry {
  std::uint64_t pages = 0;
  std::uint32_t tokens_per_page = 16;
  std::uint64_t page_bytes = 0;         // of one page in one plane, a multiple of 8
  std::uint32_t planes = 1;
  std::uint32_t workers = 64;           // inference processes; slot 0 is the coordinator's and not counted
  std::uint32_t leases_per_worker = 1024;
  std::uint32_t namespaces = 1024;
  std::uint32_t stripes = 1024;
  bool operator==(const Geometry&) const = default;
};

struct SegmentLayout {
  std::array<AreaEntry, kAreasMax> areas{};
  std::uint32_t area_count = 0;
  std::uint64_t segment_bytes = 0;
  std::uint64_t descriptor_stride = 0;
  std::uint64_t lease_row_slots = 0;  // from one worker's first lease slot to the next one's
  std::uint64_t bucket_count = 0;
  std::uint64_t chunk_count = 0;
};

// Limit that a value breaks, in words, or empty when the geometry is possible.
std::string geometry_problem(const Geometry& geometry);

// Requires geometry_problem(geometry).empty().
SegmentLayout layout_of(const Geometry& geometry);

// Bytes of a pool object (one plane).
constexpr std::uint64_t pool_bytes(const Geometry& geometry) {
  return geometry.pages * geometry.page_bytes;
}

constexpr std::uint64_t descriptor_stride(std::uint32_t tokens_per_page) {
  return sizeof(Descriptor) + (std::uint64_t{tokens_per_page} * 4 + 63) / 64 * 64;
}

// Of all sizes and alignments of format.h: two builds that differ refuse each other.
std::uint64_t struct_fingerprint();

// Of the constant part of a superblock.
std::uint64_t constant_checksum(const Superblock& superblock);

}  // namespace kvtrie
