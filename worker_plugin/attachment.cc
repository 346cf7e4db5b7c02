// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/attachment.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "shm/geometry.h"
#include "shm/namespace_table.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

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

Result<std::vector<Mapping>> map_pools(const Attachment& grant) {
  std::vector<Mapping> pools;
  pools.reserve(grant.pools.size());
  for (const FileDescriptor& pool : grant.pools) {
    Result<Mapping> mapping = Mapping::map(pool.get(), grant.pool_bytes, Access::kReadWrite);
    if (!mapping) return mapping.error();
    pools.push_back(std::move(*mapping));
  }
  return pools;
}

}  // namespace

AttachedCache::AttachedCache(Segment segment, std::vector<Mapping> pools, SlotGrant grant,
                             CoordinatorAddress address)
    : segment_(std::move(segment)),
      pools_(std::move(pools)),
      grant_(grant),
      address_(std::move(address)),
      worker_(segment_, grant.slot),
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
  Result<std::vector<Mapping>> pools = map_pools(grant);
  if (!pools) return failed(pools.error());
  if (grant.grant.slot.value == 0 || grant.grant.slot.value >= segment->slot_count()) {
    return failed({Code::kCorrupt, "the coordinator gave a slot that the segment does not have"});
  }
  std::unique_ptr<AttachedCache> made(
      new AttachedCache(std::move(*segment), std::move(*pools), grant.grant, std::move(address)));
  // Nothing can fail after this: the slot is ours from here to leave().
  if (Status status = WorkerTable(made->segment_).confirm(grant.grant); !status) {
    return failed(status);
  }
  const WorkerRecord& record = made->segment_.worker(grant.grant.slot);
  for (std::size_t i = 0; i < kCounters; ++i) {
    made->at_attach_[i] = record.counters[i].load(std::memory_order_relaxed);
  }
  return made;
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
  const std::lock_guard<std::mutex> lock(opening_);
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
