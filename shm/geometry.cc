// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/geometry.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <limits>

#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

constexpr std::uint64_t kPoolBytesMax = std::uint64_t{1} << 46;  // 64 TiB a plane

std::string out_of_range(const char* name, std::uint64_t value, std::uint64_t low,
                         std::uint64_t high) {
  return value < low || value > high
             ? fmt::format("{} is {}: must be {} to {}", name, value, low, high)
             : std::string{};
}

constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t to) {
  return (value + to - 1) / to * to;
}

// Entries for 1.6 times the pages that a stripe has on average, and eight standard deviations more: hashes spread them
// unevenly, which counts for small stripes. Both buckets of a key are then never full in practice.
std::uint64_t buckets_per_stripe(const Geometry& g) {
  const double pages = static_cast<double>(g.pages) / g.stripes;
  const double entries = 1.6 * pages + 8 * std::sqrt(pages) + 16;
  return static_cast<std::uint64_t>(std::ceil(entries / kBucketEntries));
}

}  // namespace

std::string geometry_problem(const Geometry& g) {
  for (const std::string& problem :
       {out_of_range("pages", g.pages, kPagesMin, kPagesMax),
        out_of_range("tokens-per-page", g.tokens_per_page, 1, kTokensPerPageMax),
        out_of_range("planes", g.planes, 1, kPlanesMax),
        out_of_range("workers", g.workers, 1, kWorkersMax),
        out_of_range("leases", g.leases_per_worker, 2, kLeasesMax),
        out_of_range("namespaces", g.namespaces, 1, kNamespacesMax),
        out_of_range("stripes", g.stripes, 1, kStripesMax),
        out_of_range("page-bytes", g.page_bytes, 8, kPoolBytesMax)}) {
    if (!problem.empty()) return problem;
  }
  if (g.page_bytes % 8 != 0) {
    return fmt::format("page-bytes is {}: must be a multiple of 8", g.page_bytes);
  }
  if (g.page_bytes > kPoolBytesMax / g.pages) {
    return fmt::format("pages x page-bytes is {} x {}: a plane holds at most {} bytes", g.pages,
                       g.page_bytes, kPoolBytesMax);
  }
  return {};
}

SegmentLayout layout_of(const Geometry& g) {
  SegmentLayout layout;
  layout.descriptor_stride = descriptor_stride(g.tokens_per_page);
  // A row a worker, from line to line: leases of two processes never share one (C9).
  const std::uint64_t lease_row_bytes = align_up(g.leases_per_worker * sizeof(LeaseSlot), kLineBytes);
  layout.lease_row_slots = lease_row_bytes / sizeof(LeaseSlot);
  layout.chunk_count = (g.pages + kChunkPages - 1) / kChunkPages;
  layout.bucket_count = buckets_per_stripe(g) * g.stripes;
  std::uint64_t offset = sizeof(Superblock);
  auto add = [&](AreaKind kind, std::uint64_t stride, std::uint64_t count) {
    layout.areas[layout.area_count++] = {static_cast<std::uint32_t>(kind), 0, offset, stride, count};
    offset = align_up(offset + stride * count, kAreaAlignment);
  };
  const std::uint64_t slots = std::uint64_t{g.workers} + 1;
  add(AreaKind::kNamespaces, sizeof(NamespaceRecord), g.namespaces);
  add(AreaKind::kWorkers, sizeof(WorkerRecord), slots);
  add(AreaKind::kLeases, lease_row_bytes, slots);
  add(AreaKind::kPins, sizeof(PinRecord), g.leases_per_worker);
  add(AreaKind::kHeldCounts, sizeof(std::uint16_t), slots * layout.chunk_count);
  add(AreaKind::kAnnounce, sizeof(std::uint32_t), g.pages);
  add(AreaKind::kFreeBitmap, sizeof(ChunkRecord), layout.chunk_count);
  add(AreaKind::kStripes, sizeof(StripeRecord), g.stripes);
  add(AreaKind::kBuckets, sizeof(IndexBucket), layout.bucket_count);
  add(AreaKind::kDescriptors, layout.descriptor_stride, g.pages);
  layout.segment_bytes = offset;
  return layout;
}

std::uint64_t struct_fingerprint() {
  // Where things are follows from the geometry: two builds must agree on that too.
  const SegmentLayout layout =
      layout_of({.pages = 1 << 20, .tokens_per_page = 16, .page_bytes = 4096, .planes = 2});
  const std::uint64_t sizes[] = {
      kLayoutVersion,          sizeof(Superblock),      alignof(Superblock),
      sizeof(AreaEntry),       sizeof(Descriptor),      sizeof(LeaseSlot),
      sizeof(PinRecord),       sizeof(WorkerRecord),    sizeof(NamespaceRecord),
      sizeof(StripeRecord),    sizeof(IndexBucket),     sizeof(pthread_mutex_t),
      sizeof(CopyQueueHeader), sizeof(CopyRing),        kCopyRingEntries,
      kCounters,               kChunkPages,             kBucketEntries,
      offsetof(Superblock, poison_state),               offsetof(Superblock, constant_checksum),
      offsetof(WorkerRecord, counters),                 offsetof(NamespaceRecord, fields),
      offsetof(Descriptor, scope),                      offsetof(Descriptor, checksum),
      layout.segment_bytes,    layout.bucket_count,     layout.descriptor_stride,
      layout.lease_row_slots,
      XXH_VERSION_NUMBER / 100,
  };
  return hash_bytes(kSegmentMagic, sizes, sizeof sizes);
}

std::uint64_t constant_checksum(const Superblock& superblock) {
  return hash_bytes(kSegmentMagic, &superblock, offsetof(Superblock, constant_checksum));
}

}  // namespace kvtrie
