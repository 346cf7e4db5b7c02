// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A mapped segment: typed, bounds-checked access to its areas. Sizes and offsets are copied out of the
// superblock and checked once when the segment is opened, so bytes that change later cannot lead outside.
//
// Life: built under a temporary name by one coordinator (`build`), renamed when whole, opened by everybody
// else (`open`, which validates). Thread-safe after construction; owns its mapping.
#pragma once

#include <array>
#include <cassert>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "shm/format.h"
#include "shm/geometry.h"
#include "shm/ids.h"
#include "shm/shared_object.h"
#include "shm/status.h"

namespace kvtrie {

struct SegmentIdentity {
  std::string cache_name;
  std::uint64_t cache_id[2] = {0, 0};
  std::uint64_t hash_secret = 0;
  std::uint8_t boot_id[16] = {};
  std::uint64_t pid_namespace = 0;
  ClockKind clock = ClockKind::kSystem;
  std::uint64_t tick_ns = 1'000'000'000;
  DeviceKind device = DeviceKind::kHost;
  bool page_checksums = false;
};

class Segment {
 public:
  // Fills a fresh, zeroed mapping: superblock, then each structure's init. The superblock's magic and checksum come last.
  static Result<Segment> build(Mapping mapping, const Geometry& geometry,
                               const SegmentIdentity& identity);
  // Checks magic, version, features, fingerprint, checksum, geometry and the area table (C7).
  static Result<Segment> open(Mapping mapping);

  Superblock& superblock() const { return *reinterpret_cast<Superblock*>(base_); }
  const Geometry& geometry() const { return geometry_; }
  const SegmentLayout& layout() const { return layout_; }
  std::uint32_t page_count() const { return page_count_; }
  std::uint32_t tokens_per_page() const { return geometry_.tokens_per_page; }
  std::uint32_t slot_count() const { return geometry_.workers + 1; }  // worker slots with slot 0
  std::uint32_t chunk_count() const { return static_cast<std::uint32_t>(layout_.chunk_count); }
  std::byte* data() const { return base_; }
  std::uint64_t size_bytes() const { return layout_.segment_bytes; }

  bool has(PageIndex page) const { return page.value < page_count_; }
  // Requires has(page).
  Descriptor& descriptor(PageIndex page) const {
    return *reinterpret_cast<Descriptor*>(descriptors_ + page.value * descriptor_stride_);
  }
  // The page's tokens as 64-bit words, two tokens each, the first in the low half.
  AtomicU64* token_words(PageIndex page) const {
    return reinterpret_cast<AtomicU64*>(descriptors_ + page.value * descriptor_stride_ +
                                        sizeof(Descriptor));
  }
  AtomicU32& announce_counter(PageIndex page) const { return announce_[page.value]; }
  AtomicU64& free_bits(std::uint32_t chunk) const { return chunks_[chunk].free_bits; }
  AtomicU64& owned_bits(std::uint32_t chunk) const { return chunks_[chunk].owned_bits; }
  AtomicU16& held_count(WorkerId worker, std::uint32_t chunk) const {
    return held_counts_[std::uint64_t{worker.value} * layout_.chunk_count + chunk];
  }
  std::span<LeaseSlot> leases(WorkerId worker) const {
    return {leases_ + std::uint64_t{worker.value} * layout_.lease_row_slots,
            geometry_.leases_per_worker};
  }
  WorkerRecord& worker(WorkerId worker) const { return workers_[worker.value]; }
  NamespaceRecord& name_space(NamespaceId id) const { return namespaces_[id.value]; }
  std::uint32_t namespace_count() const { return geometry_.namespaces; }
  StripeRecord& stripe(std::uint32_t index) const { return stripes_[index]; }
  IndexBucket& bucket(std::uint64_t index) const { return buckets_[index]; }
  std::span<PinRecord> pins() const { return {pins_, geometry_.leases_per_worker}; }

  void count(WorkerId worker, Counter counter, std::uint64_t by = 1) const {
    if (by == 0) return;  // an atomic addition is a tenth of what a call costs
    workers_[worker.value].counters[static_cast<std::size_t>(counter)].fetch_add(
        by, std::memory_order_relaxed);
  }
  // Sum over all slots. Monotone whoever comes and goes.
  std::uint64_t total(Counter counter) const;

  bool poisoned() const {
    return superblock().poison_state.load(std::memory_order_relaxed) != 0;
  }
  // Gives the segment up and wakes its coordinator; the first reason stands.
  void poison(PoisonReason reason) const;

  // A lock of it could not be given back; see Mapping::keep.
  void keep_mapped() const { mapping_.keep(); }

  std::uint32_t now_tick() const;
  std::uint64_t tick_ns() const { return tick_ns_; }
  const std::string& cache_name() const { return cache_name_; }
  DeviceKind device() const { return device_; }
  bool page_checksums() const { return page_checksums_; }

 private:
  Segment(Mapping mapping, const Geometry& geometry);
  void lay_out();

  Mapping mapping_;
  std::byte* base_ = nullptr;
  Geometry geometry_;
  SegmentLayout layout_;
  std::uint32_t page_count_ = 0;
  std::uint64_t descriptor_stride_ = 0;
  std::uint64_t tick_ns_ = 0;
  std::string cache_name_;
  ClockKind clock_ = ClockKind::kSystem;
  DeviceKind device_ = DeviceKind::kHost;
  bool page_checksums_ = false;
  std::byte* descriptors_ = nullptr;
  AtomicU32* announce_ = nullptr;
  ChunkRecord* chunks_ = nullptr;
  AtomicU16* held_counts_ = nullptr;
  LeaseSlot* leases_ = nullptr;
  PinRecord* pins_ = nullptr;
  WorkerRecord* workers_ = nullptr;
  NamespaceRecord* namespaces_ = nullptr;
  StripeRecord* stripes_ = nullptr;
  IndexBucket* buckets_ = nullptr;
};

// Reads the geometry that a superblock states; does not check it.
Geometry geometry_of(const Superblock& superblock);

// Opens `cache` by its object's name, without a coordinator.
Result<Segment> open_segment(const std::string& cache, Access access);

}  // namespace kvtrie
