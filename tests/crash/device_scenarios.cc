// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a process does with an attachment and dies in: attaching itself, the clock, its counters, copies by a queued
// device; and the coordinator's side of those: its copy engine, the reap of a scheduler and its plane writer.

#include <unistd.h>

#include <algorithm>
#include <array>

#include "coordinator/copy_engine.h"
#include "shm/geometry.h"
#include "shm/recovery.h"
#include "shm/worker_table.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kShortWaitMs = 2;
using PageBytes = std::array<std::byte, kWorldPageBytes>;

FileDescriptor again(int fd) { return FileDescriptor(::dup(fd)); }

// What the coordinator would send.
Attachment sent_to(const Victim& v) {
  Attachment sent;
  sent.grant = {kVictimSlot, 1};
  sent.segment = again(v.objects.segment_fd());
  sent.pools.push_back(again(v.objects.pool_fd()));
  sent.queue = again(v.objects.queue_fd());
  sent.segment_bytes = v.segment().size_bytes();
  sent.pool_bytes = pool_bytes(v.segment().geometry());
  sent.cache_id[0] = 1;
  return sent;
}

void attach(Victim& v) {
  std::string message;
  Result<std::unique_ptr<AttachedCache>> made = AttachedCache::make(sent_to(v), {"", "crash"}, message);
  if (!made) throw Violation("attach: " + message);
  v.cache = std::move(*made);
}

// Its slot is given, and it has not said that it has it.
void give_again(CrashWorld& world) {
  world.segment().worker(kVictimSlot).slot_state.store(SlotWord::make(SlotState::kAttaching, 1).raw);
}

// Two pages of its own, and the device that writes into them.
void attach_with_pages(Victim& v) {
  attach(v);
  (void)v.engine.prepare(v.sequence, {1, 2});
}

PageBytes bytes_of(std::uint32_t number) {
  PageBytes bytes;
  bytes.fill(static_cast<std::byte>(number));
  return bytes;
}

void queue_copy(Victim& v, std::uint32_t position) {
  if (!v.cache->queue_copy({v.sequence.page_at(position), 0, 0}, bytes_of(position + 1))) throw Violation("not queued");
}

CopyQueue queue_of(const CrashWorld& world) {
  const Geometry geometry = world.segment().geometry();
  Result<Mapping> mapping =
      Mapping::map(world.queue_fd(), CopyQueue::size_bytes(geometry), Access::kReadWrite);
  const std::uint64_t id[2] = {1, 0};
  Result<CopyQueue> queue = CopyQueue::open(std::move(*mapping), geometry, id);
  if (!queue) throw Violation("the queue");
  return std::move(*queue);
}

Mapping plane_of(const CrashWorld& world) {
  Result<Mapping> mapping =
      Mapping::map(world.pool_fd(), pool_bytes(world.segment().geometry()), Access::kReadWrite);
  if (!mapping) throw Violation("the plane");
  return std::move(*mapping);
}

// The device writes what the dead asked for, whole, in order, before anything of it goes back.
void write_what_was_asked(CrashWorld& world) {
  const Mapping plane = plane_of(world);
  std::uint32_t copies = 0;
  while (const std::optional<CopyWork> work = world.queue().next(kVictimSlot)) {
    const PageBytes asked = bytes_of(++copies);
    if (copies > 2 || !std::ranges::equal(work->bytes, asked)) throw Violation("half a copy");
    perform_copy(world.queue(), plane, kWorldPageBytes, kVictimSlot, *work);
  }
  if (!world.queue().idle(kVictimSlot)) throw Violation("the fence never ends");
}

void expect(const Status& status, Code code) {
  if (status.code() != code) throw Violation("the wait ended otherwise");
}

// The pages of a survivor are computed by the device, which has not written them yet.
void let_a_survivor_copy(CrashWorld& world) {
  OpenSequence& open = world.open(kSurvivor, {1, 2});
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::span<std::uint64_t> words = world.view().page_words(open.sequence.page_at(i));
    if (!world.queue().submit(WorkerId{kSurvivor}, {open.sequence.page_at(i), 0, 0}, std::as_bytes(words))) {
      throw Violation("not queued");
    }
    std::ranges::fill(words, 0);
  }
}

void perform_all(const CopyQueue& queue, const CrashWorld& world) {
  const Mapping plane = plane_of(world);
  while (const std::optional<CopyWork> work = queue.next(WorkerId{kSurvivor})) {
    perform_copy(queue, plane, kWorldPageBytes, WorkerId{kSurvivor}, *work);
  }
}

void give_to_writer(CrashWorld& world, WorkerId scheduler) {
  WorkerIdentity identity{7, 7, 0, WorkerRole::kPlaneWriter, "rank", 1};
  identity.scheduler = scheduler;
  if (!WorkerTable(world.segment()).give(identity)) throw Violation("no slot");
}

}  // namespace

std::vector<Scenario> device_scenarios() {
  return {
      {.name = "attach.map",
       .setup = give_again,
       .operate = [](Victim& v) { attach(v); },
       .again = {1},
       .sparse = 8},
      {.name = "clock.drive",
       .setup = give_again,
       .prepare = [](Victim& v) { attach(v); },
       .operate =
           [](Victim& v) {
             if (!v.cache->drive_clock(100)) throw Violation("the clock is driven");
           },
       .again = {1}},
      {.name = "counters",
       .setup = give_again,
       .prepare = [](Victim& v) { attach(v); },
       .operate =
           [](Victim& v) {
             for (std::size_t i = 0; i < kCounters; ++i) (void)v.cache->counted(static_cast<Counter>(i));
           },
       .again = {1}},
      {.name = "copy.queue",
       .setup = give_again,
       .prepare = attach_with_pages,
       .operate =
           [](Victim& v) {
             queue_copy(v, 0);
             queue_copy(v, 1);
           },
       .again = {1, 2},
       .fence = write_what_was_asked},
      {.name = "copy.wait",
       .setup = give_again,
       .prepare =
           [](Victim& v) {
             attach_with_pages(v);
             queue_copy(v, 0);
           },
       .operate = [](Victim& v) { expect(v.cache->wait_copies(kShortWaitMs), Code::kTimeout); },
       .again = {1, 2},
       .sleeps = true,
       .fence = write_what_was_asked},
      {.name = "copy.waited",
       .setup = give_again,
       .prepare =
           [](Victim& v) {
             attach_with_pages(v);
             queue_copy(v, 0);
           },
       .meanwhile = write_what_was_asked,
       .operate = [](Victim& v) { expect(v.cache->wait_copies(kShortWaitMs), Code::kOk); },
       .again = {1, 2}},
      {.name = "copy.perform",
       .role = Role::kCoordinator,
       .setup = let_a_survivor_copy,
       .prepare = [](Victim& v) { v.queue = std::make_unique<CopyQueue>(queue_of(v.objects)); },
       .operate = [](Victim& v) { perform_all(*v.queue, v.objects); },
       .again = {1, 2, 3},
       .recovered =
           [](CrashWorld& w) {
             perform_all(w.queue(), w);
             if (!w.queue().idle(WorkerId{kSurvivor})) throw Violation("copies are left");
           }},
      {.name = "reap.with_its_writer",  // the scheduler died, then its rank
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             Engine scheduler(w.view(), kVictimSlot);
             Sequence pending;
             (void)scheduler.prepare(pending, {1, 2});
             give_to_writer(w, kVictimSlot);
             (void)WorkerTable(w.segment()).confirm({kSpareSlot, 1});
           },
       .operate =
           [](Victim& v) {
             const WorkerTable table(v.segment());
             const SlotWord scheduler = table.word(kVictimSlot);
             if (!table.begin_reap(kVictimSlot, scheduler)) throw Violation("reap");
             if (!table.has_plane_writers(kVictimSlot)) throw Violation("it has a plane writer");
             if (!reap_slot(v.segment(), kSpareSlot, table.word(kSpareSlot), true)) throw Violation("reap");
             if (table.has_plane_writers(kVictimSlot)) throw Violation("its plane writer is over");
             if (!reap_slot(v.segment(), kVictimSlot, scheduler.with(SlotState::kReaping), true)) {
               throw Violation("reap");
             }
           },
       .again = {1, 2},
       .dead = {kVictimSlot, kSpareSlot}},
  };
}

}  // namespace kvtrie::test
