// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Operations of the coordinator that dies in them: evict, a pass for room, reap, adopt, and giving
// a worker slot; and the worker's side of its slot.

#include <unistd.h>

#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/recovery.h"
#include "shm/waiting.h"
#include "shm/worker_table.h"
#include "tests/crash/aftermath.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

void make_evictor(Victim& v) { v.evictor = std::make_unique<Evictor>(v.segment()); }

// Slot 1 in the state of a worker that died in the middle of everything.
void leave_a_dead_worker(CrashWorld& world) {
  Engine dead(world.view(), kVictimSlot);
  world.tick();
  Sequence live, pending, mixed;
  (void)dead.prepare(live, {1, 2, 3});
  (void)dead.publish(live, 3);
  (void)dead.prepare(pending, {1, 2, 4, 5}, 2);
  (void)dead.prepare(mixed, {6, 7});
  // A claim that stopped after its free bits, a give-back that stopped before them, a wish for
  // pages.
  const Segment& segment = world.segment();
  segment.held_count(kVictimSlot, 1).fetch_add(3);
  segment.free_bits(1).fetch_and(~std::uint64_t{7});
  const PageIndex given = mixed.page_at(1);
  (void)StripeIndex(segment).remove(segment.descriptor(given).prefix_hash.load(), given);
  segment.descriptor(given).state.store(
      StateWord{segment.descriptor(given).state.load()}.recycled().raw);
  segment.worker(kVictimSlot).pages_wanted.store(70);
  segment.worker(kVictimSlot).wait_ticket.store(1);
  segment.worker(kVictimSlot).wait_seen.store(monotonic_ns());
  world.die_holding_stripes();
}

// A coordinator that died in the middle of a round: Condemned, Retiring with and without its index
// entry, Free without its bit.
void leave_a_dead_coordinator(CrashWorld& world) {
  for (const Path& path : {Path{1, 2, 3}, {4, 5}, {6, 7}, {8, 9}})
    world.cache(kSurvivor, path);
  const Segment& segment = world.segment();
  const PageTable pages(segment);
  const auto move = [&](const Path& path, PageState to) {
    const PageIndex page = world.page_of(path);
    const Handle handle = Handle::page(page, pages.state(page));
    if (!pages.move(handle, PageState::kLive, PageState::kCondemned)) throw Violation("condemn");
    if (to == PageState::kRetiring &&
        !pages.move(handle, PageState::kCondemned, PageState::kRetiring)) {
      throw Violation("retire");
    }
    return page;
  };
  (void)move({1, 2, 3}, PageState::kCondemned);
  (void)move({1, 2}, PageState::kCondemned);
  (void)move({4, 5}, PageState::kRetiring);
  const PageIndex unindexed = move({6, 7}, PageState::kRetiring);
  (void)StripeIndex(segment).remove(segment.descriptor(unindexed).prefix_hash.load(), unindexed);
  const PageIndex freed = move({8, 9}, PageState::kRetiring);
  finish_page(segment, freed);
  segment.free_bits(freed.value / kChunkPages)
      .fetch_and(~(std::uint64_t{1} << freed.value % kChunkPages));
}

}  // namespace

std::vector<Scenario> evict_scenarios() {
  return {
      {.name = "evict.leaf",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             w.cache(kSurvivor, {3});
           },
       .prepare = make_evictor,
       .operate = [](Victim& v) { (void)v.evict(1); },
       .cached = {{1, 2}, {3}},
       .may_go = {{1, 2}},
       .done_go = {{1, 2}},
       .again = {1, 2}},
      {.name = "evict.chain",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2, 3});
             w.cache(kSurvivor, {1, 2, 4});
             w.cache(kSurvivor, {5});
           },
       .prepare = make_evictor,
       .operate = [](Victim& v) { (void)v.evict(4); },
       .cached = {{1, 2, 3}, {1, 2, 4}, {5}},
       .may_go = {{1, 2, 3}, {1, 2, 4}, {1, 2}, {1}},
       .done_go = {{1, 2, 3}, {1, 2, 4}, {1, 2}, {1}},
       .again = {1, 2, 3}},
      {.name = "evict.around_lease",  // {1} is leased, {5} has a Pending child; both stay
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             w.cache(kSurvivor, {5, 6});
             w.cache(kSurvivor, {3, 4});
             w.open(kSurvivor, {1});
             w.open(kOtherSurvivor, {5, 7});
           },
       .prepare = make_evictor,
       .operate = [](Victim& v) { (void)v.evict(kWorldPages); },
       .cached = {{1, 2}, {5, 6}, {3, 4}},
       .may_go = {{1, 2}, {5, 6}, {3, 4}, {3}},
       .done_go = {{1, 2}, {5, 6}, {3, 4}, {3}},
       .again = {1, 2}},
      {.name = "pass.for_a_waiter",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2, 3});
             w.open(kOtherSurvivor, {9}, kWorldPages - 5);
             w.segment().worker(WorkerId{kOtherSurvivor}).pages_wanted.store(3);
             w.segment().worker(WorkerId{kOtherSurvivor}).wait_ticket.store(1);
             w.segment().worker(WorkerId{kOtherSurvivor}).wait_seen.store(monotonic_ns());
           },
       .prepare =
           [](Victim& v) {
             v.keeper = std::make_unique<RoomKeeper>(v.segment(), Watermarks{0, 0});
           },
       .operate = [](Victim& v) { (void)v.keeper->pass([] { return false; }); },
       .cached = {{1, 2, 3}},
       .may_go = {{1, 2, 3}, {1, 2}},
       .done_go = {{1, 2, 3}, {1, 2}},
       .again = {1, 2, 3}},
  };
}

std::vector<Scenario> recovery_scenarios() {
  return {
      {.name = "reap",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.open(kSurvivor, {6, 8});
             leave_a_dead_worker(w);
           },
       .operate = [](Victim& v) { reap_slot(v.segment(), kVictimSlot); },
       .cached = {{1, 2, 3}},
       .again = {1, 2, 4, 5},
       .dead = {kVictimSlot}},
      {.name = "adopt",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             leave_a_dead_coordinator(w);
             w.open(kSurvivor, {1, 8});
             w.open(kOtherSurvivor, {4, 6});
           },
       .operate = [](Victim& v) { take_over(v.segment(), {}); },
       .cached = {{1, 2, 3}, {4}, {6}, {8}},
       .again = {1, 2, 3}},
      {.name = "adopt.with_the_dead",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             leave_a_dead_coordinator(w);
             leave_a_dead_worker(w);
           },
       .operate =
           [](Victim& v) {
             const WorkerId dead[] = {kVictimSlot};
             take_over(v.segment(), dead);
           },
       .cached = {{1, 2, 3}, {4}, {6}, {8}},
       .again = {1, 2, 3},
       .dead = {kVictimSlot}},
      {.name = "namespace.open",
       .role = Role::kCoordinator,
       .operate = [](Victim& v) { (void)NamespaceTable(v.segment()).open("model=b\n", "b"); },
       .again = {1}},
      {.name = "namespace.reuse",  // none is left: the empty one is given away
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1});
             if (!NamespaceTable(w.segment()).open("model=b\n", "b")) throw Violation("full");
           },
       .operate = [](Victim& v) { (void)NamespaceTable(v.segment()).open("model=c\n", "c"); },
       .cached = {{1}},
       .again = {1}},
      {.name = "attach.give",
       .role = Role::kCoordinator,
       .operate =
           [](Victim& v) {
             (void)WorkerTable(v.segment()).give({7, 7, 0, WorkerRole::kWorker, "new", 0});
           },
       .again = {1}},
      {.name = "attach.confirm",
       .setup =
           [](CrashWorld& w) {
             (void)WorkerTable(w.segment()).give({7, 7, 0, WorkerRole::kWorker, "new", 0});
           },
       .operate =
           [](Victim& v) {
             (void)WorkerTable(v.segment()).confirm({kSpareSlot, 1});
           },
       .again = {1},
       .dead = {kSpareSlot}},
      {.name = "detach",
       .operate =
           [](Victim& v) {
             (void)WorkerTable(v.segment()).leave({kVictimSlot, 1});
           },
       .again = {1}},
  };
}

}  // namespace kvtrie::test
