// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/copy_queue.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "shm/crash_point.h"
#include "shm/futex.h"

namespace kvtrie {
namespace {

constexpr std::uint64_t kHeaderBytes = 4096;

std::uint64_t staging_bytes(const Geometry& geometry) {
  return (geometry.page_bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

std::uint64_t ring_stride(const Geometry& geometry) {
  return sizeof(CopyRing) + kCopyRingEntries * staging_bytes(geometry);
}

std::uint64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

std::uint64_t CopyQueue::size_bytes(const Geometry& geometry) {
  return kHeaderBytes + (std::uint64_t{geometry.workers} + 1) * ring_stride(geometry);
}

CopyQueue CopyQueue::build(Mapping mapping, const Geometry& geometry, const std::uint64_t (&cache_id)[2]) {
  CopyQueue queue(std::move(mapping), geometry);
  CopyQueueHeader& header = queue.header();
  header.layout_version = kLayoutVersion;
  header.ring_count = queue.ring_count();
  header.page_bytes = geometry.page_bytes;
  header.ring_stride = ring_stride(geometry);
  std::copy_n(cache_id, 2, header.cache_id);
  header.magic = kCopyQueueMagic;
  return queue;
}

Result<CopyQueue> CopyQueue::open(Mapping mapping, const Geometry& geometry, const std::uint64_t (&cache_id)[2]) {
  if (mapping.size_bytes() < size_bytes(geometry)) {
    return Status{Code::kCorrupt, "the copy queue is smaller than the segment says"};
  }
  CopyQueue queue(std::move(mapping), geometry);
  const CopyQueueHeader& header = queue.header();
  if (header.magic != kCopyQueueMagic || header.layout_version != kLayoutVersion ||
      header.ring_count != queue.ring_count() || header.page_bytes != geometry.page_bytes ||
      header.ring_stride != ring_stride(geometry) || !std::equal(cache_id, cache_id + 2, header.cache_id)) {
    return Status{Code::kCorrupt, "the copy queue does not belong to the segment"};
  }
  return queue;
}

CopyRing& CopyQueue::ring_of(WorkerId slot) const {
  return *reinterpret_cast<CopyRing*>(mapping_.data() + kHeaderBytes + slot.value * ring_stride(geometry_));
}

std::byte* CopyQueue::staging(WorkerId slot, std::uint32_t number) const {
  return reinterpret_cast<std::byte*>(&ring_of(slot)) + sizeof(CopyRing) +
         (number % kCopyRingEntries) * staging_bytes(geometry_);
}

bool CopyQueue::fits(const CopyTarget& target, std::uint64_t bytes) const {
  return target.page.value < geometry_.pages && target.plane < geometry_.planes &&
         target.offset <= geometry_.page_bytes && bytes <= geometry_.page_bytes - target.offset;
}

Status CopyQueue::submit(WorkerId me, const CopyTarget& target, std::span<const std::byte> bytes) const {
  if (!fits(target, bytes.size())) return {Code::kInvalid, "not inside a page of this cache"};
  CopyRing& ring = ring_of(me);
  const std::uint32_t number = ring.submitted.load(std::memory_order_relaxed);
  if (number - ring.done.load(std::memory_order_acquire) >= kCopyRingEntries) {
    return {Code::kNotNow, "as many copies as the queue holds are on their way: wait for some"};
  }
  std::copy(bytes.begin(), bytes.end(), staging(me, number));
  CopyEntry& entry = ring.entries[number % kCopyRingEntries];
  entry.page.store(target.page.value, std::memory_order_relaxed);
  entry.plane.store(target.plane, std::memory_order_relaxed);
  entry.offset.store(target.offset, std::memory_order_relaxed);
  entry.bytes.store(bytes.size(), std::memory_order_relaxed);
  entry.submitted_ns.store(now_ns(), std::memory_order_relaxed);
  KVTRIE_CRASH_POINT("copy.before_submitted");
  ring.submitted.store(number + 1, std::memory_order_release);
  kvtrie::ring(header().doorbell);
  return {};
}

bool CopyQueue::idle(WorkerId slot) const {
  const CopyRing& ring = ring_of(slot);
  return ring.done.load(std::memory_order_acquire) == ring.submitted.load(std::memory_order_acquire);
}

Status CopyQueue::wait_idle(WorkerId me, std::int64_t timeout_ns) const {
  CopyRing& ring = ring_of(me);
  const std::uint64_t start = now_ns();
  for (;;) {
    const std::uint32_t done = ring.done.load(std::memory_order_acquire);
    if (done == ring.submitted.load(std::memory_order_relaxed)) return {};
    const auto passed = static_cast<std::int64_t>(now_ns() - start);
    if (timeout_ns >= 0 && passed >= timeout_ns) return {Code::kTimeout, "copies are still on their way: wait again"};
    (void)futex_wait(ring.done, done, timeout_ns < 0 ? -1 : timeout_ns - passed);
  }
}

std::optional<CopyWork> CopyQueue::next(WorkerId slot) const {
  CopyRing& ring = ring_of(slot);
  // Who writes entries that do not fit faster than they are dropped waits for the next look, with all others (C7).
  for (std::uint32_t dropped = 0; dropped < kCopyRingEntries; ++dropped) {
    const std::uint32_t submitted = ring.submitted.load(std::memory_order_acquire);
    const std::uint32_t done = ring.done.load(std::memory_order_relaxed);
    if (submitted == done) return std::nullopt;
    if (submitted - done > kCopyRingEntries) {
      ring.done.store(submitted, std::memory_order_release);
      futex_wake_all(ring.done);
      return std::nullopt;
    }
    const CopyEntry& entry = ring.entries[done % kCopyRingEntries];
    CopyWork work;
    work.target.page = {entry.page.load(std::memory_order_relaxed)};
    work.target.plane = entry.plane.load(std::memory_order_relaxed);
    work.target.offset = entry.offset.load(std::memory_order_relaxed);
    work.submitted_ns = entry.submitted_ns.load(std::memory_order_relaxed);
    const std::uint64_t bytes = entry.bytes.load(std::memory_order_relaxed);
    if (fits(work.target, bytes)) {
      work.bytes = {staging(slot, done), static_cast<std::size_t>(bytes)};
      return work;
    }
    finish(slot);
  }
  return std::nullopt;
}

void CopyQueue::finish(WorkerId slot) const {
  CopyRing& ring = ring_of(slot);
  ring.done.store(ring.done.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  futex_wake_all(ring.done);
}

}  // namespace kvtrie
