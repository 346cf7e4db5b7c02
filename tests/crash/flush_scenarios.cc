// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What ends with a flush or with its time, and who dies in it: calls of sequences that began before, pins, the pass that
// takes the pages of a flushed namespace.

#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

void flush(CrashWorld& world) {
  const NamespaceRef name_space = world.view().name_space();
  if (!NamespaceTable(world.segment()).flush(name_space.id, name_space.fields_hash)) throw Violation("flush");
}

void expect_flushed(const Status& status) {
  if (status.code() != Code::kFlushed) throw Violation("it did not see the flush");
}

// What the judge cannot tell from pages of the new generation: the next pass takes all that nobody leases.
void take_flushed_pages(CrashWorld& world) {
  for (OpenSequence& open : world.opened()) {
    for (const Handle& shared : open.sequence.shared) {
      if (!shared.same_life(PageTable(world.segment()).state(shared.page_index()))) {
        throw Violation("a page of a flushed namespace went under a lease");
      }
    }
    world.engine(open.slot.value).release(open.sequence);
  }
  world.opened().clear();
  RoomKeeper keeper(world.segment(), {0, 0});
  (void)keeper.pass([] { return false; });
  if (PageTable(world.segment()).stats().of(PageState::kLive) != 0) {
    throw Violation("pages of a flushed namespace are left");
  }
}

}  // namespace

std::vector<Scenario> flush_scenarios() {
  const auto cache_12 = [](CrashWorld& w) { w.cache(kSurvivor, {1, 2}); };
  return {
      {.name = "begin.flushed",
       .setup =
           [cache_12](CrashWorld& w) {
             cache_12(w);
             flush(w);
           },
       .operate =
           [](Victim& v) {
             if (v.engine.begin(v.sequence, {1, 2}) != 0) throw Violation("a hit after the flush");
           },
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .again = {3},
       .recovered = take_flushed_pages},
      {.name = "wait.flushed",
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1});
             w.open(kSurvivor, {1, 2});
           },
       .prepare = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2}); },
       .meanwhile =
           [](CrashWorld& w) {
             OpenSequence& open = w.opened().front();
             (void)w.engine(open.slot.value).publish(open.sequence, 2);
             w.engine(open.slot.value).release(open.sequence);
             w.opened().clear();
             flush(w);
           },
       .operate =
           [](Victim& v) {
             BeginReport report;
             expect_flushed(v.engine.worker().wait_for_pending(v.sequence, 0, report));
           },
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .again = {3},
       .recovered = take_flushed_pages},
      {.name = "allocate.flushed",  // announces what nobody will match
       .setup = cache_12,
       .prepare = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}); },
       .meanwhile = flush,
       .operate =
           [](Victim& v) {
             if (!v.engine.allocate(v.sequence, 3)) throw Violation("no pages");
           },
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .again = {3},
       .recovered = take_flushed_pages},
      {.name = "publish.flushed",
       .prepare = [](Victim& v) { (void)v.engine.prepare(v.sequence, {1, 2, 3}); },
       .meanwhile = flush,
       .operate =
           [](Victim& v) {
             PublishReport report;
             expect_flushed(v.engine.worker().publish(v.sequence, std::uint64_t{3} * kWorldTokens, report));
             v.engine.release(v.sequence);
           },
       .again = {1, 2, 3}},
      {.name = "pass.after_flush",  // {3,4} is leased
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             w.cache(kSurvivor, {3, 4});
             w.open(kOtherSurvivor, {3, 4, 5});
             flush(w);
           },
       .prepare =
           [](Victim& v) {
             v.keeper = std::make_unique<RoomKeeper>(v.segment(), Watermarks{0, 0});
           },
       .operate =
           [](Victim& v) {
             (void)v.keeper->pass([] { return false; });
             if (PageTable(v.segment()).stats().of(PageState::kLive) != 2) throw Violation("what is leased stays");
           },
       .cached = {{1, 2}, {3, 4}},
       .may_go = {{1, 2}, {1}, {3, 4}, {3}},
       .again = {1, 2},
       .sparse = 4,
       .recovered = take_flushed_pages},
      {.name = "admin.pins_end",  // that of {1,2} had its time, that of {3} has no end
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             w.cache(kSurvivor, {3});
             const PinTable pins(w.segment());
             const std::uint32_t soon = w.segment().now_tick() + 1;
             if (!pins.pin(w.handle_of({1, 2}), "soon", soon) || !pins.pin(w.handle_of({3}), "ever", 0)) {
               throw Violation("pin");
             }
             w.tick();
           },
       .operate =
           [](Victim& v) {
             if (PinTable(v.segment()).drop_ended(v.segment().now_tick()) != 1) throw Violation("one has ended");
           },
       .cached = {{1, 2}, {3}},
       .again = {1, 2},
       .recovered =
           [](CrashWorld& w) {
             const PinTable pins(w.segment());
             (void)pins.drop_ended(w.segment().now_tick());
             const std::vector<Pin> left = pins.list();
             if (left.size() != 1 || left[0].reason != "ever") throw Violation("the pins that are left");
             if (!pins.unpin(left[0].number, left[0].page)) throw Violation("unpin");
           }},
  };
}

}  // namespace kvtrie::test
