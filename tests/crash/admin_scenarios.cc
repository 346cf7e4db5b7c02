// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the coordinator does for an operator and dies in: pin, unpin, flush, evict of one
// namespace's pages.

#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

std::uint32_t pin(const Segment& segment, Handle page) {
  const Result<std::uint32_t> made = PinTable(segment).pin(page, "because", 0);
  if (!made) throw Violation("the pin was refused");
  return *made;
}

// The page of the only path of one page with this number, as the victim sees it: it holds nothing
// from before the fork.
Handle find_page(const Segment& segment, std::uint32_t number) {
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const StateWord word = PageTable(segment).state({i});
    if (word.readable() && (segment.token_words({i})[0].load() & 0xFFFF'FFFF) == number * 1000) {
      return Handle::page({i}, word);
    }
  }
  throw Violation("the page is not there");
}

// What the judge cannot empty otherwise: an operator ends what pins the death left.
void end_pins(const Segment& segment) {
  for (const Pin& left : PinTable(segment).list()) {
    if (left.reason != "because") throw Violation("a pin without its reason");
    if (!PinTable(segment).unpin(left.number, left.page))
      throw Violation("a pin that cannot be ended");
  }
}

}  // namespace

std::vector<Scenario> admin_scenarios() {
  return {
      {.name = "admin.pin",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
           },
       .operate = [](Victim& v) { (void)pin(v.segment(), find_page(v.segment(), 2)); },
       .cached = {{1, 2}},
       .again = {1, 2, 3},
       .recovered = [](CrashWorld& w) { end_pins(w.segment()); }},
      {.name = "admin.pin_rescues",  // a page that the coordinator before left condemned
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             if (!PageTable(w.segment())
                      .move(w.handle_of({1, 2}), PageState::kLive, PageState::kCondemned)) {
               throw Violation("condemn");
             }
           },
       .operate = [](Victim& v) { (void)pin(v.segment(), find_page(v.segment(), 2)); },
       .cached = {{1, 2}},
       .again = {1, 2, 3},
       .recovered = [](CrashWorld& w) { end_pins(w.segment()); }},
      {.name = "admin.unpin",
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             (void)pin(w.segment(), w.handle_of({1, 2}));
           },
       .operate =
           [](Victim& v) {
             if (!PinTable(v.segment()).unpin(0, find_page(v.segment(), 2)))
               throw Violation("unpin");
           },
       .cached = {{1, 2}},
       .again = {1, 2, 3},
       .recovered = [](CrashWorld& w) { end_pins(w.segment()); }},
      {.name = "admin.flush",  // the pages stay until somebody evicts them, and nobody finds them
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
           },
       .operate =
           [](Victim& v) {
             const NamespaceRef name_space = v.view.name_space();
             if (!NamespaceTable(v.segment()).flush(name_space.id, name_space.fields_hash))
               throw Violation("flush");
           },
       .cached = {{1, 2}},
       .may_go = {{1, 2}, {1}},
       .again = {3},
       .recovered =
           [](CrashWorld& w) {
             RoomKeeper keeper(w.segment(), {0, 0});
             (void)keeper.pass([] { return false; });
             const bool flushed = w.segment().name_space({0}).root_generation.load() == 2;
             const bool gone = PageTable(w.segment()).stats().of(PageState::kLive) == 0;
             if (flushed != gone)
               throw Violation("pages of a flushed namespace are left, or others went");
           }},
      {.name = "admin.evict",  // all that can go, in one namespace, around a pin and a lease
       .role = Role::kCoordinator,
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1, 2});
             w.cache(kSurvivor, {3, 4});
             w.cache(kSurvivor, {5, 6});
             (void)pin(w.segment(), w.handle_of({3}));
             w.open(kOtherSurvivor, {5});
           },
       .prepare =
           [](Victim& v) {
             v.keeper = std::make_unique<RoomKeeper>(v.segment(), Watermarks{0, 0});
           },
       .operate =
           [](Victim& v) {
             std::optional<EvictLeft> left;
             (void)v.keeper->evict(
                 kWorldPages, {EvictChoice::Of::kNamespace, {0}}, std::chrono::seconds(60),
                 [] { return false; }, left);
             if (!left || left->pinned != 1 || left->leased != 1 || left->all() != 2)
               throw Violation("what stayed");
           },
       .cached = {{1, 2}, {3, 4}, {5, 6}},
       .may_go = {{1, 2}, {1}, {3, 4}, {5, 6}},
       .done_go = {{1, 2}, {1}, {3, 4}, {5, 6}},
       .again = {1, 2},
       .recovered = [](CrashWorld& w) { end_pins(w.segment()); }},
  };
}

}  // namespace kvtrie::test
