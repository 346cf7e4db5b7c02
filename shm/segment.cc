// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/segment.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "shm/free_pages.h"
#include "shm/futex.h"
#include "shm/lease_table.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/stripe_index.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

Status superblock_problem(const Superblock& block, std::uint64_t mapped_bytes) {
  if (block.magic != kSegmentMagic) {
    return {Code::kCorrupt, "not a kvtrie segment (magic)"};
  }
  if (block.layout_version != kLayoutVersion) {
    return {Code::kRefused,
            "the segment has another layout version; use the kvtrie build that made it"};
  }
  if (block.struct_fingerprint != struct_fingerprint()) {
    return {Code::kRefused,
            "the segment was made by a build with other struct sizes; use one build on this host"};
  }
  if (block.incompatible_features >= kDeviceKinds) {
    return {Code::kRefused, "the segment needs a feature that this build does not know"};
  }
  if (block.constant_bytes != offsetof(Superblock, constant_checksum) ||
      block.constant_checksum != constant_checksum(block)) {
    return {Code::kCorrupt, "superblock checksum does not match"};
  }
  const Geometry geometry = geometry_of(block);
  if (!geometry_problem(geometry).empty()) {
    return {Code::kCorrupt, "superblock states an impossible geometry"};
  }
  const SegmentLayout layout = layout_of(geometry);
  if (block.segment_bytes != layout.segment_bytes || mapped_bytes < layout.segment_bytes ||
      block.bucket_count != layout.bucket_count || block.area_count != layout.area_count) {
    return {Code::kCorrupt, "superblock sizes do not match its geometry"};
  }
  if (std::memcmp(block.areas, layout.areas.data(), sizeof block.areas) != 0) {
    return {Code::kCorrupt, "table of areas does not match the geometry"};
  }
  return {};
}

}  // namespace

Geometry geometry_of(const Superblock& block) {
  Geometry g;
  g.pages = block.page_count;
  g.tokens_per_page = block.tokens_per_page;
  g.page_bytes = block.page_bytes;
  g.planes = block.plane_count;
  g.workers = block.worker_count == 0 ? 0 : block.worker_count - 1;
  g.leases_per_worker = block.leases_per_worker;
  g.namespaces = block.namespace_count;
  g.stripes = block.stripe_count;
  return g;
}

Segment::Segment(Mapping mapping, const Geometry& geometry)
    : mapping_(std::move(mapping)), base_(mapping_.data()), geometry_(geometry) {
  lay_out();
}

void Segment::lay_out() {
  layout_ = layout_of(geometry_);
  page_count_ = static_cast<std::uint32_t>(geometry_.pages);
  descriptor_stride_ = layout_.descriptor_stride;
  auto area = [&](AreaKind kind) {
    const auto found = std::ranges::find(layout_.areas, static_cast<std::uint32_t>(kind),
                                         &AreaEntry::kind);
    return base_ + found->offset;
  };
  descriptors_ = area(AreaKind::kDescriptors);
  announce_ = reinterpret_cast<AtomicU32*>(area(AreaKind::kAnnounce));
  chunks_ = reinterpret_cast<ChunkRecord*>(area(AreaKind::kFreeBitmap));
  held_counts_ = reinterpret_cast<AtomicU16*>(area(AreaKind::kHeldCounts));
  leases_ = reinterpret_cast<LeaseSlot*>(area(AreaKind::kLeases));
  pins_ = reinterpret_cast<PinRecord*>(area(AreaKind::kPins));
  workers_ = reinterpret_cast<WorkerRecord*>(area(AreaKind::kWorkers));
  namespaces_ = reinterpret_cast<NamespaceRecord*>(area(AreaKind::kNamespaces));
  stripes_ = reinterpret_cast<StripeRecord*>(area(AreaKind::kStripes));
  buckets_ = reinterpret_cast<IndexBucket*>(area(AreaKind::kBuckets));
}

Result<Segment> Segment::build(Mapping mapping, const Geometry& geometry,
                               const SegmentIdentity& identity) {
  if (!geometry_problem(geometry).empty()) {
    return Status{Code::kInvalid, "impossible geometry (see geometry_problem)"};
  }
  if (identity.tick_ns == 0 || identity.clock > ClockKind::kDriven) {
    return Status{Code::kInvalid, "impossible clock"};
  }
  if (identity.cache_name.size() >= sizeof Superblock::cache_name) {
    return Status{Code::kInvalid, "cache name longer than 63 bytes"};
  }
  Segment segment(std::move(mapping), geometry);
  if (segment.mapping_.size_bytes() < segment.layout_.segment_bytes) {
    return Status{Code::kInvalid, "mapping smaller than the segment"};
  }
  Superblock& block = segment.superblock();
  block.layout_version = kLayoutVersion;
  block.constant_bytes = offsetof(Superblock, constant_checksum);
  block.incompatible_features = static_cast<std::uint64_t>(identity.device);
  block.compatible_features = identity.page_checksums ? kFeaturePageChecksums : 0;
  block.struct_fingerprint = struct_fingerprint();
  block.segment_bytes = segment.layout_.segment_bytes;
  block.page_count = geometry.pages;
  block.page_bytes = geometry.page_bytes;
  block.tokens_per_page = geometry.tokens_per_page;
  block.plane_count = geometry.planes;
  block.worker_count = geometry.workers + 1;
  block.leases_per_worker = geometry.leases_per_worker;
  block.namespace_count = geometry.namespaces;
  block.stripe_count = geometry.stripes;
  block.bucket_count = segment.layout_.bucket_count;
  block.hash_secret = identity.hash_secret;
  std::copy_n(identity.cache_id, 2, block.cache_id);
  block.pid_namespace = identity.pid_namespace;
  std::copy_n(identity.boot_id, sizeof block.boot_id, block.boot_id);
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  block.created_realtime_ns = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
                              static_cast<std::uint64_t>(now.tv_nsec);
  block.clock_kind = static_cast<std::uint32_t>(identity.clock);
  block.tick_ns = identity.tick_ns;
  std::strncpy(block.cache_name, identity.cache_name.c_str(), sizeof block.cache_name - 1);
  block.area_count = segment.layout_.area_count;
  std::copy(segment.layout_.areas.begin(), segment.layout_.areas.end(), block.areas);

  PageTable(segment).init();
  FreePages(segment).init();
  if (Status status = StripeIndex(segment).init(); !status) return status;
  WorkerTable(segment).init();
  LeaseTable(segment).init();
  NamespaceTable(segment).init();
  // Magic last: a half-built segment is no segment. (It is also not at its name until it is whole.)
  block.magic = kSegmentMagic;
  block.constant_checksum = constant_checksum(block);
  segment.tick_ns_ = block.tick_ns;
  segment.cache_name_ = block.cache_name;
  segment.clock_ = identity.clock;
  segment.device_ = identity.device;
  segment.page_checksums_ = identity.page_checksums;
  return segment;
}

Result<Segment> Segment::open(Mapping mapping) {
  if (mapping.size_bytes() < sizeof(Superblock)) {
    return Status{Code::kCorrupt, "object smaller than a superblock"};
  }
  // One copy: what is checked is what is used, whoever writes meanwhile (C7).
  Superblock block{};
  std::memcpy(static_cast<void*>(&block), mapping.data(),
              offsetof(Superblock, constant_checksum) + sizeof block.constant_checksum);
  if (Status status = superblock_problem(block, mapping.size_bytes()); !status) return status;
  if (block.tick_ns == 0 || block.clock_kind > 1) {
    return Status{Code::kCorrupt, "superblock states an impossible clock"};
  }
  if (block.cache_name[sizeof block.cache_name - 1] != '\0') {
    return Status{Code::kCorrupt, "superblock holds a cache name without an end"};
  }
  Segment segment(std::move(mapping), geometry_of(block));
  segment.tick_ns_ = block.tick_ns;
  segment.cache_name_ = block.cache_name;
  segment.clock_ = static_cast<ClockKind>(block.clock_kind);
  segment.device_ = static_cast<DeviceKind>(block.incompatible_features);
  segment.page_checksums_ = (block.compatible_features & kFeaturePageChecksums) != 0;
  return segment;
}

std::uint64_t Segment::total(Counter counter) const {
  std::uint64_t sum = 0;
  for (std::uint32_t slot = 0; slot < slot_count(); ++slot) {
    sum += workers_[slot].counters[static_cast<std::size_t>(counter)].load(std::memory_order_relaxed);
  }
  return sum;
}

void Segment::poison(PoisonReason reason) const {
  std::uint32_t none = 0;
  superblock().poison_reason.compare_exchange_strong(none, static_cast<std::uint32_t>(reason));
  superblock().poison_state.store(1, std::memory_order_release);
  ring(superblock().doorbell);  // the coordinator makes a successor
}

std::uint32_t Segment::now_tick() const {
  if (clock_ == ClockKind::kDriven) {
    return superblock().driven_tick.load(std::memory_order_relaxed);
  }
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
                                     static_cast<std::uint64_t>(now.tv_nsec)) /
                                    tick_ns_);
}

Result<Segment> open_segment(const std::string& cache, Access access) {
  Result<FileDescriptor> fd = open_object(segment_object_name(cache), access);
  if (!fd) return fd.error();
  const Result<std::uint64_t> bytes = object_bytes(fd->get());
  if (!bytes) return bytes.error();
  Result<Mapping> mapping = Mapping::map(fd->get(), *bytes, access);
  if (!mapping) return mapping.error();
  return Segment::open(std::move(*mapping));
}

}  // namespace kvtrie
