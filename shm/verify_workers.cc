// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Checks of worker slots, their leases and their held counts; and who is excused on a live segment.

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "shm/counter_names.h"
#include "shm/pins.h"
#include "shm/prefix_hash.h"
#include "shm/process_identity.h"
#include "shm/verify_checks.h"
#include "shm/worker_table.h"

namespace kvtrie::verify_detail {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;

}  // namespace

bool process_runs(std::uint32_t pid, std::uint64_t start_time) {
  if (pid == 0) return false;
  std::FILE* file = std::fopen(fmt::format("/proc/{}/stat", pid).c_str(), "re");
  if (file == nullptr) return false;
  char text[1024];
  const std::size_t bytes = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  const std::string_view stat(text, bytes);
  const Result<std::uint64_t> started = parse_start_time(stat);
  if (!started || *started != start_time) return false;
  const std::size_t name_end = stat.rfind(')');  // "PID (name) S ..."
  const char state =
      name_end == std::string_view::npos || name_end + 2 >= stat.size() ? 'X' : stat[name_end + 2];
  return state != 'T' && state != 't' && state != 'X' && state != 'Z';
}

SlotState Checks::slot_state(WorkerId worker) const {
  if (worker.value == 0 || worker.value >= segment_.slot_count()) return SlotState::kFree;
  return static_cast<SlotState>(segment_.worker(worker).slot_state.load(kAcquire) & 0xFF);
}

bool Checks::slot_in_use(WorkerId worker) const { return slot_state(worker) != SlotState::kFree; }

bool Checks::excused(WorkerId worker) const {
  if (at_rest_ || !slot_in_use(worker)) return false;
  if (adopting_) return true;
  const WorkerRecord& record = segment_.worker(worker);
  const SlotState state = slot_state(worker);
  return (state != SlotState::kActive && state != SlotState::kAttaching) ||
         !process_runs(record.pid.load(kRelaxed), record.start_time.load(kRelaxed));
}

bool Checks::coordinator_excused() const {
  if (at_rest_) return false;
  if (adopting_) return true;
  const Superblock& block = segment_.superblock();
  return block.coordinator_state.load(kRelaxed) ==
             static_cast<std::uint32_t>(CoordinatorState::kAdopting) ||
         !process_runs(block.coordinator_pid.load(kRelaxed),
                       block.coordinator_start_time.load(kRelaxed));
}

void Checks::check_worker(WorkerId worker, Wrongs& wrongs) const {
  const WorkerRecord& r = segment_.worker(worker);
  const std::uint64_t word = r.slot_state.load(kAcquire);
  const SlotWord slot{word};
  auto add = [&](Invariant invariant, std::uint64_t key, std::string text) {
    wrongs.add(invariant, Subject::kWorker, worker.value, key ^ word, std::move(text));
  };
  if (std::string problem = WorkerTable(segment_).validate(worker); !problem.empty()) {
    const bool possible = slot.well_formed() && worker != kCoordinatorSlot;
    add(possible ? Invariant::kIdentity : Invariant::kSlot,
        hash_bytes(0, problem.data(), problem.size()), std::move(problem));
  }
  const std::uint32_t high_water = r.leases_high_water.load(kAcquire);
  if (high_water > segment_.geometry().leases_per_worker) {
    add(Invariant::kHighWater, high_water,
        fmt::format("high-water mark {} of {} leases", high_water,
                    segment_.geometry().leases_per_worker));
  }
  const std::uint32_t pid = r.pid.load(kRelaxed);
  const std::uint64_t start = r.start_time.load(kRelaxed);
  const bool free = slot.state() == SlotState::kFree;
  if (free && worker.value != 0 && at_rest_ && (pid != 0 || start != 0)) {
    add(Invariant::kIdentity, pid, fmt::format("free, but still pid {}", pid));
  }
  const std::uint32_t wanted = r.pages_wanted.load(kAcquire);
  if (free && (wanted != 0 || r.wait_ticket.load(kRelaxed) != 0 || r.wait_seen.load(kRelaxed) != 0)) {
    add(Invariant::kSlotHolds, wanted, fmt::format("free, but waits for {} pages", wanted));
  }
  if (worker.value == 0) {
    for (std::size_t i = 0; i < segment_.pins().size(); ++i) {
      std::string problem = PinTable(segment_).validate(static_cast<std::uint32_t>(i), at_rest_);
      if (!problem.empty()) wrongs.add(Invariant::kPin, Subject::kLease, i, 0, std::move(problem));
    }
  }
  check_leases(worker, word, wrongs);
  check_held(worker, free, wrongs);
  auto zero = [&](const void* from, const void* to) {
    expect_zero(from, to, Subject::kWorker, worker.value, "worker record", wrongs);
  };
  if (r.role.load(kRelaxed) != static_cast<std::uint32_t>(WorkerRole::kPlaneWriter)) {
    zero(&r.scheduler, end_of(r.scheduler));
    zero(&r.plane_mask, end_of(r.plane_mask));
  } else if (const std::uint32_t scheduler = r.scheduler.load(kRelaxed);
             slot.state() == SlotState::kActive && !slot_in_use(WorkerId{static_cast<std::uint16_t>(scheduler)})) {
    add(Invariant::kIdentity, scheduler, fmt::format("plane writer of worker slot {}, which is free", scheduler));
  }
  zero(&r.recorder_head, &r.image);
  for (std::size_t i = 0; i < kCounters; ++i) {
    if (name_of(static_cast<Counter>(i)) == nullptr) zero(&r.counters[i], end_of(r.counters[i]));
  }
  zero(&r.reserved_wait, end_of(r.reserved_wait));
  zero(&r.reserved, end_of(r.reserved));
}

void Checks::check_leases(WorkerId worker, std::uint64_t slot_word, Wrongs& wrongs) const {
  const WorkerRecord& record = segment_.worker(worker);
  const std::span<LeaseSlot> slots = segment_.leases(worker);
  const bool free = worker.value != 0 && SlotWord{slot_word}.state() == SlotState::kFree;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Handle handle{slots[i].handle.load(kAcquire)};
    if (handle.none()) continue;
    const std::uint64_t number = std::uint64_t{worker.value} * slots.size() + i;
    const std::uint32_t high_water = record.leases_high_water.load(kAcquire);
    if (i >= high_water) {
      wrongs.add(Invariant::kHighWater, Subject::kLease, number, handle.raw,
                 fmt::format("lease {} of worker {} is above its high-water mark {}", i,
                             worker.value, high_water));
    }
    if (free) {
      wrongs.add(Invariant::kSlotHolds, Subject::kLease, number, handle.raw,
                 fmt::format("lease {} of worker slot {}, which is free", i, worker.value));
      continue;
    }
    check_lease(worker, number, handle, wrongs);
  }
  expect_zero(slots.data() + slots.size(), slots.data() + segment_.layout().lease_row_slots,
              Subject::kWorker, worker.value, "the rest of its row of leases", wrongs);
}

void Checks::check_lease(WorkerId worker, std::uint64_t number, Handle handle,
                         Wrongs& wrongs) const {
  auto add = [&](std::uint64_t key, std::string text) {
    wrongs.add(Invariant::kLease, Subject::kLease, number, handle.raw ^ key, std::move(text));
  };
  if (!handle.is_page() || !segment_.has(handle.page_index())) {
    add(0, fmt::format("worker {} leases {:#x}, which is no page", worker.value, handle.raw));
    return;
  }
  const StateWord word{segment_.descriptor(handle.page_index()).state.load(kAcquire)};
  const bool own =
      word.state() == PageState::kPending && word.owner() == worker && worker.value != 0;
  if (handle.same_life(word) && (word.readable() || own)) return;
  // Between its store and its second look, or between its pages and its leases in a reap.
  if (worker.value == 0 ? coordinator_excused() : excused(worker)) return;
  add(word.raw, fmt::format("worker {} leases page {} of generation {}, which is {} in {}",
                            worker.value, handle.page_index().value, handle.generation(),
                            name_of(word.state()), word.generation()));
}

void Checks::check_held(WorkerId worker, bool free, Wrongs& wrongs) const {
  if (!free && !at_rest_) return;  // F1 is checked chunk by chunk, for those who own pages
  for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
    const unsigned held = segment_.held_count(worker, chunk).load(kAcquire);
    if (held == 0) continue;
    if (free) {
      wrongs.add(Invariant::kSlotHolds, Subject::kWorker, worker.value,
                 chunk ^ std::uint64_t{held} << 32,
                 fmt::format("free, but held count of chunk {} is {}", chunk, held));
      return;
    }
    unsigned owned = 0;
    const std::uint32_t first = chunk * kChunkPages;
    const std::uint32_t end = std::min(first + kChunkPages, segment_.page_count());
    for (std::uint32_t i = first; i < end; ++i) {
      const StateWord word{segment_.descriptor({i}).state.load(kRelaxed)};
      if (word.owned() && word.owner() == worker) ++owned;
    }
    if (held > owned) {
      wrongs.add(Invariant::kHeldExact, Subject::kWorker, worker.value,
                 chunk ^ std::uint64_t{held} << 32,
                 fmt::format("held count of chunk {} is {}, it owns {} pages", chunk, held, owned));
    }
  }
}

}  // namespace kvtrie::verify_detail
