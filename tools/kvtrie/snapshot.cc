// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/snapshot.h"

#include <algorithm>

#include "shm/free_pages.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {


WorkerId slot_id(std::uint32_t slot) { return {static_cast<std::uint16_t>(slot)}; }

LeaseTarget target_of(const Segment& segment, Handle handle) {
  if (!handle.is_page() || !segment.has(handle.page_index())) return LeaseTarget::kImpossible;
  const StateWord word{
      segment.descriptor(handle.page_index()).state.load(std::memory_order_acquire)};
  return handle.same_life(word) ? LeaseTarget::kPage : LeaseTarget::kOtherLife;
}

WorkerView read_worker(const Segment& segment, const HostView& host, WorkerId slot) {
  const WorkerRecord& record = segment.worker(slot);
  WorkerView view;
  view.slot = slot;
  view.word = {record.slot_state.load(std::memory_order_acquire)};
  view.pid = record.pid.load(kRelaxed);
  view.start_time = record.start_time.load(kRelaxed);
  view.uid = record.uid.load(kRelaxed);
  view.role = static_cast<WorkerRole>(record.role.load(kRelaxed));
  view.name = printable(record.name, sizeof record.name);
  view.liveness = host.liveness(view.pid, view.start_time);
  view.stopped = view.liveness == Liveness::kAlive && host.stopped(view.pid);
  view.attach_tick = record.attach_tick.load(kRelaxed);
  view.leases_high_water = record.leases_high_water.load(kRelaxed);
  view.pages_wanted = record.pages_wanted.load(kRelaxed);
  view.wait_ticket = record.wait_ticket.load(kRelaxed);
  view.awaited = (record.pending_word.load(kRelaxed) & 1) != 0;
  view.scheduler = static_cast<std::uint16_t>(record.scheduler.load(kRelaxed));
  view.plane_mask = record.plane_mask.load(kRelaxed);
  for (std::size_t i = 0; i < kCounters; ++i)
    view.counters[i] = record.counters[i].load(kRelaxed);
  return view;
}

// Of two leases the one that was taken first; ticks are compared modulo 2^32.
bool older(const LeaseView& a, const LeaseView& b) {
  return static_cast<std::int32_t>(a.since_tick - b.since_tick) < 0;
}

}  // namespace

std::vector<LeaseView> read_leases(const Segment& segment) {
  std::vector<LeaseView> leases;
  for (std::uint32_t slot = 0; slot < segment.slot_count(); ++slot) {
    const WorkerId id = slot_id(slot);
    const std::uint32_t high_water =
        segment.worker(id).leases_high_water.load(std::memory_order_acquire);
    std::uint32_t index = 0;
    for (const LeaseSlot& lease : segment.leases(id)) {
      const Handle handle{lease.handle.load(std::memory_order_acquire)};
      if (!handle.none()) {
        leases.push_back({id, index, handle, target_of(segment, handle),
                          lease.since_tick.load(kRelaxed), lease.request_tag.load(kRelaxed),
                          index >= high_water});
      }
      ++index;
    }
  }
  return leases;
}

std::vector<WorkerView> read_workers(const Segment& segment, const HostView& host,
                                     const PageStats& pages,
                                     const std::vector<LeaseView>& leases) {
  std::vector<WorkerView> workers;
  workers.reserve(segment.slot_count());
  const FreeStats held = FreePages(segment).stats();
  for (std::uint32_t slot = 0; slot < segment.slot_count(); ++slot) {
    WorkerView view = read_worker(segment, host, slot_id(slot));
    view.writing = pages.writing_of[slot];
    view.pending = pages.pending_of[slot];
    view.held_hint = held.held_of[slot];
    workers.push_back(std::move(view));
  }
  const CoordinatorView coordinator = read_coordinator(segment, host);
  workers[0].pid = coordinator.pid;
  workers[0].start_time = coordinator.start_time;
  workers[0].liveness = coordinator.liveness;
  for (const LeaseView& lease : leases) {
    WorkerView& holder = workers[lease.slot.value];
    if (lease.target != LeaseTarget::kPage) {
      ++holder.stale_leases;
      continue;
    }
    ++holder.leases;
    if (!holder.oldest_lease || older(lease, *holder.oldest_lease)) holder.oldest_lease = lease;
  }
  return workers;
}

std::vector<OldestOwnPages> read_oldest_own_pages(const Segment& segment) {
  std::vector<OldestOwnPages> oldest(segment.slot_count());
  for (std::uint32_t page = 0; page < segment.page_count(); ++page) {
    const Descriptor& descriptor = segment.descriptor({page});
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    if (!word.owned() || word.owner().value >= segment.slot_count()) continue;
    OldestOwnPages& own = oldest[word.owner().value];
    auto& tick = word.state() == PageState::kWriting ? own.writing_tick : own.pending_tick;
    const std::uint32_t since = descriptor.since_tick.load(kRelaxed);
    if (!tick || static_cast<std::int32_t>(since - *tick) < 0) tick = since;
  }
  return oldest;
}

CoordinatorView read_coordinator(const Segment& segment, const HostView& host) {
  const Superblock& block = segment.superblock();
  CoordinatorView view;
  view.pid = block.coordinator_pid.load(kRelaxed);
  view.start_time = block.coordinator_start_time.load(kRelaxed);
  view.epoch = block.coordinator_epoch.load(kRelaxed);
  view.state = block.coordinator_state.load(kRelaxed);
  view.liveness = host.liveness(view.pid, view.start_time);
  return view;
}

const char* coordinator_state_name(std::uint32_t state) {
  constexpr const char* kNames[] = {"none", "adopting", "serving", "stopped", "draining"};
  return state < std::size(kNames) ? kNames[state] : "impossible";
}

NamespaceView read_namespace(const Segment& segment, NamespaceId id) {
  const NamespaceRecord& record = segment.name_space(id);
  NamespaceView view;
  view.id = id;
  view.open = record.state.load(std::memory_order_acquire) ==
              static_cast<std::uint32_t>(NamespaceState::kOpen);
  view.root_generation = record.root_generation.load(kRelaxed);
  view.label = printable(record.label, sizeof record.label);
  std::string fields(record.fields, std::min<std::size_t>(record.fields_bytes.load(kRelaxed),
                                                          sizeof record.fields));
  std::ranges::replace(fields, '\n', ' ');
  if (!fields.empty() && fields.back() == ' ') fields.pop_back();
  view.fields = printable(fields.data(), fields.size());
  return view;
}

}  // namespace kvtrie::inspect
