// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/worker_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "shm/crash_point.h"
#include "shm/futex.h"

namespace kvtrie {
namespace {

void store_name(WorkerRecord& record, std::string_view name) {
  std::memset(record.name, 0, sizeof record.name);
  std::copy_n(name.data(), std::min(name.size(), sizeof record.name - 1), record.name);
}

void clear_identity(WorkerRecord& record) {
  record.pid.store(0, std::memory_order_relaxed);
  record.start_time.store(0, std::memory_order_relaxed);
  record.uid.store(0, std::memory_order_relaxed);
  record.role.store(0, std::memory_order_relaxed);
  record.attach_tick.store(0, std::memory_order_relaxed);
  record.plane_mask.store(0, std::memory_order_relaxed);
  record.scheduler.store(0, std::memory_order_relaxed);
  record.image.store(0, std::memory_order_relaxed);
  store_name(record, {});
}

}  // namespace

SlotWord WorkerTable::word(WorkerId slot) const {
  return {segment_.worker(slot).slot_state.load(std::memory_order_acquire)};
}

Result<SlotGrant> WorkerTable::give(const WorkerIdentity& identity,
                                    const std::function<bool(WorkerId)>& taken) const {
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const SlotWord old = word(slot);
    if (old.state() != SlotState::kFree || taken(slot)) continue;
    WorkerRecord& record = segment_.worker(slot);
    record.pid.store(identity.pid, std::memory_order_relaxed);
    record.start_time.store(identity.start_time, std::memory_order_relaxed);
    record.uid.store(identity.uid, std::memory_order_relaxed);
    record.role.store(static_cast<std::uint32_t>(identity.role), std::memory_order_relaxed);
    record.attach_tick.store(segment_.now_tick(), std::memory_order_relaxed);
    record.plane_mask.store(identity.plane_mask, std::memory_order_relaxed);
    record.scheduler.store(identity.scheduler.value, std::memory_order_relaxed);
    record.image.store(identity.image, std::memory_order_relaxed);
    store_name(record, identity.name);
    KVTRIE_CRASH_POINT("attach.after_identity");
    const SlotWord given = SlotWord::make(SlotState::kAttaching, old.incarnation() + 1);
    record.slot_state.store(given.raw, std::memory_order_release);
    KVTRIE_CRASH_POINT("attach.after_attaching");
    return SlotGrant{slot, given.incarnation()};
  }
  return Status{Code::kFull, "every worker slot is taken"};
}

bool WorkerTable::begin_reap(WorkerId slot, SlotWord expected) const {
  if (!expected.well_formed() || expected.state() == SlotState::kFree) return false;
  std::uint64_t raw = expected.raw;
  const bool taken = segment_.worker(slot).slot_state.compare_exchange_strong(
      raw, expected.with(SlotState::kReaping).raw, std::memory_order_acq_rel);
  KVTRIE_CRASH_POINT("reap.after_reaping");
  return taken;
}

void WorkerTable::finish_reap(WorkerId slot) const {
  WorkerRecord& record = segment_.worker(slot);
  clear_identity(record);
  KVTRIE_CRASH_POINT("reap.after_identity_cleared");
  record.slot_state.store(word(slot).with(SlotState::kFree).raw, std::memory_order_release);
}

void WorkerTable::recover() const {
  for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    if (word(slot).state() == SlotState::kFree) clear_identity(segment_.worker(slot));
  }
}

Status WorkerTable::confirm(SlotGrant grant) const {
  if (grant.slot.value == 0 || grant.slot.value >= segment_.slot_count()) {
    return {Code::kCorrupt, "the coordinator gave a slot that the segment does not have"};
  }
  std::uint64_t raw = SlotWord::make(SlotState::kAttaching, grant.incarnation).raw;
  const std::uint64_t active = SlotWord::make(SlotState::kActive, grant.incarnation).raw;
  if (!segment_.worker(grant.slot)
           .slot_state.compare_exchange_strong(raw, active, std::memory_order_acq_rel)) {
    return {Code::kStale, "the coordinator gave the worker slot up meanwhile; attach again"};
  }
  segment_.count(grant.slot, Counter::kAttaches);
  return {};
}

Status WorkerTable::leave(SlotGrant grant) const {
  if (grant.slot.value == 0 || grant.slot.value >= segment_.slot_count()) {
    return {Code::kInvalid, "no such worker slot"};
  }
  std::uint64_t raw = SlotWord::make(SlotState::kActive, grant.incarnation).raw;
  const std::uint64_t leaving = SlotWord::make(SlotState::kLeaving, grant.incarnation).raw;
  if (!segment_.worker(grant.slot)
           .slot_state.compare_exchange_strong(raw, leaving, std::memory_order_acq_rel)) {
    return {Code::kStale, "the worker slot is no longer this worker's"};
  }
  ring(segment_.superblock().doorbell);
  return {};
}

bool WorkerTable::has_plane_writers(WorkerId scheduler) const {
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const WorkerRecord& record = segment_.worker(slot);
    if (word(slot).state() != SlotState::kFree &&
        record.role.load(std::memory_order_relaxed) == static_cast<std::uint32_t>(WorkerRole::kPlaneWriter) &&
        record.scheduler.load(std::memory_order_relaxed) == scheduler.value) {
      return true;
    }
  }
  return false;
}

bool WorkerTable::over(SlotGrant grant) const {
  if (grant.slot.value == 0 || grant.slot.value >= segment_.slot_count()) return true;
  const SlotWord now = word(grant.slot);
  return now.state() == SlotState::kFree || now.incarnation() != grant.incarnation;
}

std::string WorkerTable::validate(WorkerId slot) const {
  const SlotWord now = word(slot);
  const WorkerRecord& record = segment_.worker(slot);
  if (slot == kCoordinatorSlot && now.state() != SlotState::kFree) {
    return fmt::format("the coordinator's and never given, but its word is {:#x}", now.raw);
  }
  if (!now.well_formed()) return fmt::format("impossible state {}", now.raw & 0xFF);
  // Reaping: the identity may be cleared already.
  const bool named = now.state() == SlotState::kAttaching || now.state() == SlotState::kActive ||
                     now.state() == SlotState::kLeaving;
  if (named && (now.incarnation() == 0 || record.pid.load(std::memory_order_relaxed) == 0 ||
                record.start_time.load(std::memory_order_relaxed) == 0) &&
      word(slot) == now) {  // else it is reaped just now
    return fmt::format("{} without an identity", name_of(now.state()));
  }
  if (record.role.load(std::memory_order_relaxed) > static_cast<std::uint32_t>(WorkerRole::kAdmin))
    return "impossible role";
  if (record.scheduler.load(std::memory_order_relaxed) >= segment_.slot_count())
    return "impossible scheduler";
  const char* last = record.name + sizeof record.name - 1;
  if (__atomic_load_n(last, __ATOMIC_RELAXED) != '\0') return "name without an end";
  return {};
}

std::string WorkerTable::validate() const {
  for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
    const std::string problem = validate(WorkerId{static_cast<std::uint16_t>(i)});
    if (!problem.empty()) return fmt::format("worker slot {}: {}", i, problem);
  }
  return {};
}

WorkerTableStats WorkerTable::stats() const {
  WorkerTableStats stats;
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const SlotWord now = word({static_cast<std::uint16_t>(i)});
    if (now.well_formed()) {
      ++stats.slots[now.raw & 0xFF];
    } else {
      ++stats.impossible;
    }
  }
  return stats;
}

}  // namespace kvtrie
