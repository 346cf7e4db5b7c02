// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Operations of a worker that dies in them: begin, allocate, publish, release.

#include "shm/lease.h"
#include "shm/page_table.h"
#include "shm/recovery.h"
#include "shm/waiting.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

void condemn(CrashWorld& world, const Path& path) {
  const PageIndex page = world.page_of(path);
  const PageTable pages(world.segment());
  if (!pages.move(Handle::page(page, pages.state(page)), PageState::kLive, PageState::kCondemned)) {
    throw Violation("could not condemn " + to_text(path));
  }
}

// Entries that cannot come from a crash, but from whatever broke a bucket: of a Free page, and in a
// wrong bucket.
void plant_stale_entries(const Segment& segment) {
  const StripeIndex index(segment);
  for (std::uint32_t stripe = 0; stripe < segment.geometry().stripes; ++stripe) {
    IndexBucket& bucket = segment.bucket(index.first_bucket(stripe));
    bucket.entries[6].store(StripeIndex::kValid | 0x1234'0000'0000 | (kWorldPages - 1));
    bucket.entries[7].store(StripeIndex::kValid | 0x1234'0000'0000 | segment.page_count());
  }
}

// Ten pages are free, and a survivor that lives waits for eight of them.
void let_a_survivor_wait(CrashWorld& world) {
  world.open(kSurvivor, {9}, kWorldPages - 11);
  WorkerRecord& record = world.segment().worker(WorkerId{kOtherSurvivor});
  record.wait_ticket.store(1);
  record.wait_seen.store(monotonic_ns() + kSilentAfterNs / 2);  // stepping takes its time
  record.pages_wanted.store(8);
  world.segment().superblock().reserved_until.store(monotonic_ns() + kReservedForNs);
}

}  // namespace

std::vector<Scenario> begin_scenarios() {
  const auto begin_123 = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}); };
  const auto cache_123 = [](CrashWorld& w) { w.cache(kSurvivor, {1, 2, 3}); };
  return {
      {.name = "begin.miss", .operate = begin_123, .again = {1, 2, 3}},
      {.name = "begin.hit",
       .setup = cache_123,
       .operate =
           [](Victim& v) {
             (void)v.engine.begin(v.sequence, {1, 2, 3, 4});
           },
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3, 4}},
      {.name = "begin.hit_through_index",
       .setup =
           [](CrashWorld& w) {
             for (const Path& path :
                  {Path{1}, {8}, {1, 2}, {1, 7}, {9}, {1, 2, 3}, {1, 2, 6}, {1, 7, 5}}) {
               w.cache(kSurvivor, path);
             }
           },
       .operate = begin_123,
       .cached = {{8}, {9}, {1, 2, 3}, {1, 2, 6}, {1, 7, 5}},
       .again = {1, 2, 3}},
      {.name = "begin.stops_at_pending",
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1});
             w.open(kSurvivor, {1, 2, 3});
           },
       .operate = begin_123,
       .cached = {{1}},
       .again = {1, 2, 3}},
      {.name = "begin.rescue",
       .setup =
           [cache_123](CrashWorld& w) {
             cache_123(w);
             condemn(w, {1, 2, 3});
             w.tick();
           },
       .operate = begin_123,
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3},
       .adopts = true},
      {.name = "begin.over_condemned",  // the deepest is Live, all above it Condemned
       .setup =
           [cache_123](CrashWorld& w) {
             cache_123(w);
             condemn(w, {1});
             condemn(w, {1, 2});
           },
       .operate = begin_123,
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3},
       .adopts = true},
  };
}

std::vector<Scenario> allocate_scenarios() {
  const auto begin_1234 = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3, 4}); };
  const auto allocate_4 = [](Victim& v) { (void)v.engine.allocate(v.sequence, 4); };
  return {
      {.name = "allocate.fresh",
       .prepare = begin_1234,
       .operate = allocate_4,
       .again = {1, 2, 3, 4}},
      {.name = "allocate.extend",
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
           },
       .prepare = begin_1234,
       .operate = [](Victim& v) { (void)v.engine.allocate(v.sequence, 6); },
       .cached = {{1, 2}},
       .again = {1, 2, 3, 4}},
      {.name = "allocate.fragments",  // no runs: several claims in two chunks
       .setup =
           [](CrashWorld& w) {
             for (std::uint32_t i = 0; i < 36; ++i) {
               w.open(kSurvivor, {100 + i});
               w.open(kOtherSurvivor, {200 + i});
             }
             for (auto open = w.opened().begin(); open != w.opened().end();) {
               if (open->slot.value == kOtherSurvivor) {
                 w.engine(kOtherSurvivor).release(open->sequence);
                 open = w.opened().erase(open);
               } else {
                 ++open;
               }
             }
           },
       .prepare =
           [](Victim& v) {
             (void)v.engine.begin(v.sequence, {1, 2});
           },
       .operate = [](Victim& v) { (void)v.engine.allocate(v.sequence, 24); },
       .again = {1, 2}},
      {.name = "allocate.duplicate",
       .setup =
           [](CrashWorld& w) {
             w.open(kSurvivor, {1, 2});
           },
       .prepare = begin_1234,
       .operate = allocate_4,
       .again = {1, 2, 3, 4}},
      {.name = "allocate.not_now",
       .setup = [](CrashWorld& w) { w.open(kSurvivor, {9}, kWorldPages - 3); },
       .prepare = begin_1234,
       .operate = allocate_4,
       .again = {1, 2}},
      {.name = "allocate.wait",
       .setup = [](CrashWorld& w) { w.open(kSurvivor, {9}, kWorldPages - 3); },
       .prepare = begin_1234,
       .operate = [](Victim& v) { (void)v.engine.allocate(v.sequence, 4, 2'000'000); },
       .again = {1, 2},
       .sleeps = true},
      {.name = "allocate.behind_a_waiter",
       .setup = let_a_survivor_wait,
       .prepare = begin_1234,
       .operate =
           [](Victim& v) {
             if (v.engine.allocate(v.sequence, 4)) throw Violation("it overtook a waiter");
           },
       .again = {1, 2}},
      {.name = "allocate.wait_behind_a_waiter",
       .setup = let_a_survivor_wait,
       .prepare = begin_1234,
       .operate = [](Victim& v) { (void)v.engine.allocate(v.sequence, 4, 2'000'000); },
       .again = {1, 2},
       .sleeps = true},
      {.name =
           "allocate.sweep",  // both stripes were left locked by a dead worker, with stale entries
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1});
             w.open(kOtherSurvivor, {7, 8});
             w.die_holding_stripes();
             plant_stale_entries(w.segment());
           },
       .prepare = begin_1234,
       .operate = allocate_4,
       .cached = {{1}},
       .again = {1, 2, 3, 4}},
  };
}

std::vector<Scenario> publish_scenarios() {
  const auto prepare_1234 = [](Victim& v) { (void)v.engine.prepare(v.sequence, {1, 2, 3, 4}); };
  const auto publish_4 = [](Victim& v) { (void)v.engine.publish(v.sequence, 4); };
  const auto open_12 = [](CrashWorld& w) { w.open(kSurvivor, {1, 2}); };
  return {
      {.name = "publish.fresh",
       .prepare = prepare_1234,
       .operate = publish_4,
       .may_come = {{1, 2, 3, 4}},
       .done_come = {{1, 2, 3, 4}},
       .again = {1, 2, 3, 4}},
      {.name = "publish.below",
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
           },
       .prepare = prepare_1234,
       .operate = publish_4,
       .cached = {{1, 2}},
       .may_come = {{1, 2, 3, 4}},
       .done_come = {{1, 2, 3, 4}},
       .again = {1, 2, 3, 4}},
      {.name = "publish.second_time",
       .prepare =
           [prepare_1234](Victim& v) {
             prepare_1234(v);
             (void)v.engine.publish(v.sequence, 2);
           },
       .operate = publish_4,
       .cached = {{1, 2}},
       .may_come = {{1, 2, 3, 4}},
       .done_come = {{1, 2, 3, 4}},
       .again = {1, 2, 3, 4}},
      {.name = "publish.still_pending",
       .setup = open_12,
       .prepare = prepare_1234,
       .operate = publish_4,
       .again = {1, 2, 3, 4}},
      {.name = "publish.link",  // the other's pages are Live now: linked, the rest announced and
                                // published below them
       .setup = open_12,
       .prepare = prepare_1234,
       .meanwhile =
           [](CrashWorld& w) {
             (void)w.engine(kSurvivor).publish(w.opened().front().sequence, 2);
             w.engine(kSurvivor).release(w.opened().front().sequence);
             w.opened().clear();
           },
       .operate = publish_4,
       .cached = {{1, 2}},
       .may_come = {{1, 2, 3, 4}},
       .done_come = {{1, 2, 3, 4}},
       .again = {1, 2, 3, 4}},
      {.name = "publish.take_over",  // the other gave up: its own pages are announced
       .setup = open_12,
       .prepare = prepare_1234,
       .meanwhile =
           [](CrashWorld& w) {
             w.engine(kSurvivor).release(w.opened().front().sequence);
             w.opened().clear();
           },
       .operate = publish_4,
       .may_come = {{1, 2, 3, 4}},
       .done_come = {{1, 2, 3, 4}},
       .again = {1, 2, 3, 4}},
  };
}

std::vector<Scenario> release_scenarios() {
  const auto release = [](Victim& v) { v.engine.release(v.sequence); };
  return {
      {.name = "release.published",
       .prepare =
           [](Victim& v) {
             (void)v.engine.prepare(v.sequence, {1, 2, 3});
             (void)v.engine.publish(v.sequence, 3);
           },
       .operate = release,
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "release.pending",
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1}); },
       .prepare =
           [](Victim& v) {
             (void)v.engine.prepare(v.sequence, {1, 2, 3});
           },
       .operate = release,
       .cached = {{1}},
       .again = {1, 2, 3}},
      {.name = "release.mixed",  // Live, Pending and private pages
       .setup =
           [](CrashWorld& w) {
             w.open(kSurvivor, {1, 2, 3});
           },
       .prepare =
           [](Victim& v) {
             (void)v.engine.prepare(v.sequence, {5, 6, 7}, 70 - 6);
             (void)v.engine.publish(v.sequence, 1);
           },
       .operate = release,
       .cached = {{5}},
       .again = {5, 6, 7}},
      {.name = "release.linked",
       .setup =
           [](CrashWorld& w) {
             w.open(kSurvivor, {1, 2});
           },
       .prepare =
           [](Victim& v) {
             (void)v.engine.prepare(v.sequence, {1, 2, 3}, 1);
           },
       .meanwhile =
           [](CrashWorld& w) { (void)w.engine(kSurvivor).publish(w.opened().front().sequence, 2); },
       .operate =
           [](Victim& v) {
             (void)v.engine.publish(v.sequence, 3);
             v.engine.release(v.sequence);
           },
       .cached = {{1, 2}},
       .may_come = {{1, 2, 3}},
       .done_come = {{1, 2, 3}},
       .again = {1, 2, 3}},
  };
}

}  // namespace kvtrie::test
