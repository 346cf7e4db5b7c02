// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Operations that another process interferes with at a certain place. The victim plays that process
// too, at a crash point, so these run only in builds that have them.

#include "shm/page_table.h"
#include "shm/recovery.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

// The coordinator, which read the victim's slot before the lease was in it, goes on and evicts the
// page.
void evict_what_is_being_leased(Victim& v, std::string_view place) {
  if (place != "lease.after_store" || v.interfered) return;
  v.interfered = true;
  const Handle page{v.segment().leases(kVictimSlot)[0].handle.load()};
  const PageTable pages(v.segment());
  if (!pages.move(page, PageState::kLive, PageState::kCondemned) ||
      !pages.move(page, PageState::kCondemned, PageState::kRetiring)) {
    throw Violation("the page was not Live");
  }
  finish_page(v.segment(), page.page_index());
}

// A worker leases the child after both pages of the chain were condemned. It dies too.
void rescue_the_child(Victim& v, std::string_view place) {
  if (place != "evict.after_condemn" || ++v.passed != 2) return;
  Engine other(v.view, WorkerId{kOtherSurvivor});
  if (other.begin(v.sequence, {1, 2}) != 2) throw Violation("a Condemned page was not found");
}

// A worker publishes a child below a page that the scan saw as a leaf, and lets go of it.
void publish_a_child(Victim& v, std::string_view place) {
  if (place != "evict.after_condemn" || ++v.passed != 1) return;
  Engine other(v.view, WorkerId{kOtherSurvivor});
  other.cache({1, 2});
}

}  // namespace

std::vector<Scenario> interleaved_scenarios() {
  return {
      {.name = "begin.fallback",
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2, 3});
           },
       .operate =
           [](Victim& v) {
             (void)v.engine.begin(v.sequence, {1, 2, 3});
           },
       .cached = {{1}, {1, 2}, {1, 2, 3}},
       .may_go = {{1, 2, 3}},
       .done_go = {{1, 2, 3}},
       .again = {1, 2, 3},
       .adopts = true,
       .at_place = evict_what_is_being_leased},
      {.name = "evict.rescued_child",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
           },
       .prepare = [](Victim& v) { v.evictor = std::make_unique<Evictor>(v.segment()); },
       .operate = [](Victim& v) { (void)v.evict(2); },
       .cached = {{1}, {1, 2}},
       .again = {1, 2},
       .dead = {WorkerId{kOtherSurvivor}},
       .at_place = rescue_the_child},
      {.name = "evict.new_child",
       .role = Role::kCoordinator,
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1}); },
       .prepare = [](Victim& v) { v.evictor = std::make_unique<Evictor>(v.segment()); },
       .operate = [](Victim& v) { (void)v.evict(1); },
       .cached = {{1}},
       .may_come = {{1}, {1, 2}},
       .done_come = {{1}, {1, 2}},
       .again = {1, 2},
       .dead = {WorkerId{kOtherSurvivor}},
       .at_place = publish_a_child},
  };
}

}  // namespace kvtrie::test
