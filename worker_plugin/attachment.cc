// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/attachment.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "shm/crash_point.h"
#include "shm/geometry.h"
#include "shm/namespace_table.h"
#include "shm/page_checksum.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

constexpr std::int64_t kPrivateWaitNs = 5'000'000'000;  // what is done under these locks takes microseconds
constexpr std::uint64_t kRecordBits = 16;
constexpr std::uint64_t kRecordMask = (std::uint64_t{1} << kRecordBits) - 1;

// The objects that came must be those of one cache.
Status objects_problem(const Segment& segment, const Attachment& grant) {
  const Superblock& block = segment.superblock();
  if (!std::equal(grant.cache_id, grant.cache_id + 2, block.cache_id)) {
    return {Code::kCorrupt, "the coordinator sent the segment of another cache"};
  }
  if (grant.pools.size() != segment.geometry().planes ||
      grant.pool_bytes != pool_bytes(segment.geometry())) {
    return {Code::kCorrupt, "the coordinator sent pools that do not fit the segment"};
  }
  if (segment.poisoned()) {
    return {Code::kPoisoned, "the cache was given up; kvtried is making its successor, attach again"};
  }
  return {};
}

// Planes that may be written are mapped so where workers write them themselves.
Result<std::vector<Mapping>> map_pools(const Attachment& grant, DeviceKind device) {
  std::vector<Mapping> pools;
  if (device == DeviceKind::kCuda) return pools;
  pools.reserve(grant.pools.size());
  for (std::size_t plane = 0; plane < grant.pools.size(); ++plane) {
    const bool writable = device == DeviceKind::kHost && (grant.writable_planes >> plane & 1) != 0;
    Result<Mapping> mapping = Mapping::map(grant.pools[plane].get(), grant.pool_bytes,
                                           writable ? Access::kReadWrite : Access::kReadOnly);
    if (!mapping) return mapping.error();
    pools.push_back(std::move(*mapping));
  }
  return pools;
}

Result<std::optional<CopyQueue>> map_queue(const Attachment& grant, const Segment& segment) {
  if (segment.device() != DeviceKind::kQueued) return std::optional<CopyQueue>();
  Result<Mapping> mapping =
      Mapping::map(grant.queue.get(), CopyQueue::size_bytes(segment.geometry()), Access::kReadWrite);
  if (!mapping) return mapping.error();
  Result<CopyQueue> queue = CopyQueue::open(std::move(*mapping), segment.geometry(), grant.cache_id);
  if (!queue) return queue.error();
  return std::optional<CopyQueue>(std::move(*queue));
}

}  // namespace

struct AttachedCache::Parts {
  Segment segment;
  std::vector<Mapping> pools;
  std::vector<FileDescriptor> device_planes;
  std::optional<CopyQueue> queue;
  SlotGrant grant;
  std::uint64_t writable_planes = 0;
};

AttachedCache::AttachedCache(Parts parts, CoordinatorAddress address)
    : segment_(std::move(parts.segment)),
      pools_(std::move(parts.pools)),
      device_planes_(std::move(parts.device_planes)),
      queue_(std::move(parts.queue)),
      grant_(parts.grant),
      writable_planes_(parts.writable_planes),
      plane_writer_(segment_.worker(grant_.slot).role.load(std::memory_order_relaxed) ==
                    static_cast<std::uint32_t>(WorkerRole::kPlaneWriter)),
      address_(std::move(address)),
      worker_(segment_, grant_.slot, page_sum()),
      opened_(std::make_unique<OpenedNamespace[]>(segment_.namespace_count())) {}

Result<std::unique_ptr<AttachedCache>> AttachedCache::make(Attachment grant,
                                                           CoordinatorAddress address,
                                                           std::string& message) {
  const std::string cache = address.cache;
  const auto failed = [&](Status status) {
    message = fmt::format("cache '{}': {}{}{}", cache, status.what(),
                          status.system_errno() != 0 ? ": " : "",
                          status.system_errno() != 0 ? ::strerror(status.system_errno()) : "");
    return status;
  };
  Result<Mapping> mapping =
      Mapping::map(grant.segment.get(), grant.segment_bytes, Access::kReadWrite);
  if (!mapping) return failed(mapping.error());
  Result<Segment> segment = Segment::open(std::move(*mapping));
  if (!segment) return failed(segment.error());
  if (Status status = objects_problem(*segment, grant); !status) return failed(status);
  Result<std::vector<Mapping>> pools = map_pools(grant, segment->device());
  if (!pools) return failed(pools.error());
  Result<std::optional<CopyQueue>> queue = map_queue(grant, *segment);
  if (!queue) return failed(queue.error());
  if (grant.grant.slot.value == 0 || grant.grant.slot.value >= segment->slot_count()) {
    return failed({Code::kCorrupt, "the coordinator gave a slot that the segment does not have"});
  }
  const bool device_memory = segment->device() == DeviceKind::kCuda;
  Parts parts{std::move(*segment), std::move(*pools), {}, std::move(*queue), grant.grant, grant.writable_planes};
  if (device_memory) parts.device_planes = std::move(grant.pools);
  std::unique_ptr<AttachedCache> made(new AttachedCache(std::move(parts), std::move(address)));
  KVTRIE_CRASH_POINT("attach.before_confirm");
  // Nothing can fail after this: the slot is ours from here to leave().
  if (Status status = WorkerTable(made->segment_).confirm(grant.grant); !status) {
    return failed(status);
  }
  KVTRIE_CRASH_POINT("attach.after_confirm");
  const WorkerRecord& record = made->segment_.worker(grant.grant.slot);
  for (std::size_t i = 0; i < kCounters; ++i) {
    made->at_attach_[i] = record.counters[i].load(std::memory_order_relaxed);
  }
  return made;
}

PageSum AttachedCache::page_sum() const {
  if (!segment_.page_checksums() || pools_.empty()) return {};
  return [pool = pool_view()](PageIndex page) {
    return page_checksum(pool.planes, pool.page_bytes, page.value, [&](std::uint32_t plane) { return pool.plane[plane]; });
  };
}

PoolView AttachedCache::pool_view() const {
  PoolView view;
  view.pages = segment_.page_count();
  view.page_bytes = segment_.geometry().page_bytes;
  view.planes = static_cast<std::uint32_t>(pools_.size());
  for (std::size_t plane = 0; plane < pools_.size(); ++plane) {
    view.plane[plane] = pools_[plane].data();
  }
  return view;
}

Result<std::uint64_t> AttachedCache::open_namespace(HandleTable& table, std::string_view fields,
                                                    std::string_view label, std::string& message) {
  if (plane_writer_) {
    message = "a plane writer has no namespaces and no sequences: it fills pages of its scheduler";
    return Status{Code::kInvalid, "plane writer"};
  }
  Result<OpenNamespace> found = kvtrie::find_namespace(segment_, fields);
  if (!found && found.error().code() == Code::kNotFound) {
    if (segment_.poisoned()) {
      message = "this cache was given up: detach and attach again";
      return Status{Code::kPoisoned, "poisoned"};
    }
    const Result<OpenNamespace> made = request_namespace(address_, fields, label, message);
    if (!made) return made.error();
    // What counts is our segment: the coordinator that answered may serve a newer one of this name.
    found = kvtrie::find_namespace(segment_, fields);
  }
  if (!found && found.error().code() == Code::kNotFound && !segment_.poisoned()) {
    // It was made here, had no page yet, and so its place went to the next that asked.
    message = fmt::format(
        "cache '{}' has places for {} namespaces and others take them: make it anew with more --namespaces",
        address_.cache, segment_.namespace_count());
    return Status{Code::kFull, "namespaces full"};
  }
  if (!found || found->id.value >= segment_.namespace_count()) {
    message = fmt::format(
        "the coordinator of cache '{}' serves another segment by now: detach and attach again",
        address_.cache);
    return Status{Code::kStale, "not in this segment"};
  }
  const PrivateLock lock(opening_, kPrivateWaitNs);
  if (!lock.status()) {
    message = "other threads are opening namespaces for long: ask again";
    return lock.status();
  }
  OpenedNamespace& entry = opened_[found->id.value];
  std::uint64_t handle = entry.handle.load(std::memory_order_relaxed);
  if (handle == 0 || entry.fields_hash.load(std::memory_order_relaxed) != found->fields_hash) {
    handle = table.next_generation() << kRecordBits | found->id.value;
    // No moment with one's handle and the other's hash: see find_namespace.
    entry.handle.store(0, std::memory_order_seq_cst);
    entry.fields_hash.store(found->fields_hash, std::memory_order_seq_cst);
    entry.handle.store(handle, std::memory_order_seq_cst);
  }
  return handle;
}

std::optional<NamespaceRef> AttachedCache::find_namespace(std::uint64_t handle) const {
  const std::uint64_t record = handle & kRecordMask;
  if (handle == 0 || record >= segment_.namespace_count()) return std::nullopt;
  const OpenedNamespace& entry = opened_[record];
  if (entry.handle.load(std::memory_order_seq_cst) != handle) return std::nullopt;
  const std::uint64_t fields_hash = entry.fields_hash.load(std::memory_order_seq_cst);
  if (entry.handle.load(std::memory_order_seq_cst) != handle) return std::nullopt;
  return NamespaceRef{{static_cast<std::uint16_t>(record)}, fields_hash};
}

Result<int> AttachedCache::plane_descriptor(std::uint32_t plane) const {
  if (plane >= segment_.geometry().planes) return Status{Code::kInvalid, "there is no such plane"};
  if (device_planes_.empty()) {
    return Status{Code::kInvalid, "the planes are in host memory: use kvtrie_page_address"};
  }
  const int fd = ::fcntl(device_planes_[plane].get(), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return Status{Code::kSystem, "duplicating a plane's descriptor", errno};
  return fd;
}

Status AttachedCache::queue_copy(const CopyTarget& target, std::span<const std::byte> bytes) {
  if (!queue_) return {Code::kInvalid, "this cache has no copy queue: write to kvtrie_page_address()"};
  if (target.plane < kPlanesMax && (writable_planes_ >> target.plane & 1) == 0) {
    return {Code::kInvalid, "this plane is not in the plane writer's mask"};
  }
  const PrivateLock lock(copying_, kPrivateWaitNs);
  if (!lock.status()) return {Code::kNotNow, "other threads are queueing copies for long: ask again"};
  return queue_->submit(grant_.slot, target, bytes);
}

Status AttachedCache::wait_copies(std::uint32_t timeout_ms) const {
  if (!queue_) return {};
  constexpr std::int64_t kLookNs = 50'000'000;  // in between: is there still somebody to write them?
  for (std::int64_t left_ns = std::int64_t{timeout_ms} * 1'000'000;; left_ns -= kLookNs) {
    const Status status = queue_->wait_idle(grant_.slot, std::min(left_ns, kLookNs));
    if (status.code() != Code::kTimeout || left_ns <= kLookNs) return status;
    if (segment_.poisoned()) return {Code::kPoisoned, "the segment was given up: detach and attach again"};
  }
}

std::uint64_t AttachedCache::counted(Counter counter) const {
  const auto i = static_cast<std::size_t>(counter);
  return segment_.worker(grant_.slot).counters[i].load(std::memory_order_relaxed) - at_attach_[i];
}

bool AttachedCache::drive_clock(std::uint32_t tick) const {
  Superblock& block = segment_.superblock();
  if (block.clock_kind != static_cast<std::uint32_t>(ClockKind::kDriven)) return false;
  std::uint32_t now = block.driven_tick.load(std::memory_order_relaxed);
  while (now < tick &&
         !block.driven_tick.compare_exchange_weak(now, tick, std::memory_order_relaxed)) {
  }
  return true;
}

void AttachedCache::leave() {
  // Stale only if the coordinator took the slot back: nothing to do then.
  (void)WorkerTable(segment_).leave(grant_);
}

}  // namespace kvtrie
