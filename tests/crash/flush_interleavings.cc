// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Interleavings of flushes and pins with those who match, publish and evict.

#include "coordinator/room_keeper.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "tests/crash/interleavings.h"
#include "tests/crash/scenario.h"
#include "tests/support/cache_oracle.h"
#include "tests/support/party.h"

namespace kvtrie::test {
namespace {

void flush(CrashWorld& world) {
  const NamespaceRef name_space = world.view().name_space();
  expect(NamespaceTable(world.segment()).flush(name_space.id, name_space.fields_hash).has_value(), "no flush");
}

bool is_there(const CrashWorld& world, Handle page) {
  const StateWord word = PageTable(world.segment()).state(page.page_index());
  return page.same_life(word) && word.state() == PageState::kLive;
}

// --- flush ---

void a_flushed_root_has_no_pages(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  flush(world);
  Sequence sequence;
  expect(world.engine(1).begin(sequence, {1}) == 0, "a page of a flushed root was found");
}

void a_root_flushed_during_the_walk_has_no_pages(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Sequence sequence;
  std::uint32_t hits = 0;
  Party walker([&] { hits = world.engine(1).begin(sequence, {1}); });
  expect(walker.run_to("walk.after_page"), "the walk found nothing");
  flush(world);
  walker.finish();
  expect(hits == 0, "begin found a page after the flush");
  check_at_rest(world.view());
}

void what_began_before_a_flush_is_not_published(CrashWorld& world) {
  OpenSequence& open = world.open(kSurvivor, {1});
  flush(world);
  PublishReport report;
  const Status status = world.engine(kSurvivor).worker().publish(open.sequence, kWorldTokens, report);
  expect(status.code() == Code::kFlushed, "published after the flush");
  expect(cached_paths(world.view()).empty(), "a page of the generation before went Live");
  world.engine(kSurvivor).release(open.sequence);
  check_at_rest(world.view());
}

// Though one of the present generation was used longer ago.
void pages_of_a_flushed_root_go_first(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const Handle old = world.handle_of({1});
  flush(world);
  world.cache(kSurvivor, {2});
  const Handle present = world.handle_of({2});
  const TouchWord used{world.segment().descriptor(present.page_index()).touch.load()};
  world.segment().descriptor(old.page_index()).touch.store(TouchWord::make(used.tick() + 1, 0, 1, 0).raw);
  expect(world.evict(1) == 1, "nothing was evicted");
  expect(is_there(world, present) && !is_there(world, old), "what can be matched went first");
}

void a_flush_gives_no_generation_that_a_page_has(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const Segment& segment = world.segment();
  const std::uint32_t scope = segment.descriptor(world.page_of({1})).scope.load();
  segment.name_space({0}).root_generation.store((std::uint64_t{1} << 16) + (scope & 0xFFFF) - 1);
  flush(world);
  expect(!scope_is_current(segment, scope), "a page of long ago seems to be of the present root");
}

// --- pins ---

void a_pinned_page_stays(CrashWorld& world) {
  world.cache(kSurvivor, {1, 2});
  const Handle page = world.handle_of({1, 2});
  expect(PinTable(world.segment()).pin(page, "because", 0).has_value(), "no pin");
  expect(world.evict(kWorldPages) == 0, "a pinned path was evicted");
  expect(PinTable(world.segment()).unpin(0, page).ok(), "no unpin");
  expect(world.evict(kWorldPages) == 2, "it stays after its pin");
  check_all(world);
}

void a_pin_of_a_page_that_went_is_no_pin(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const Handle page = world.handle_of({1});
  bool pinned = false;
  Party operator_of_it([&] { pinned = PinTable(world.segment()).pin(page, "because", 0).has_value(); });
  expect(operator_of_it.run_to("lease.before_store"), "no lease");
  expect(world.evict(1) == 1, "not evicted");
  operator_of_it.finish();
  expect(!pinned && PinTable(world.segment()).list().empty(), "a pin of a page that is not there");
  check_all(world);
}

// As the next coordinator sees it, if this one dies just there.
void a_pin_holds_from_its_lease_on(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const Handle page = world.handle_of({1});
  Party operator_of_it([&] { (void)PinTable(world.segment()).pin(page, "because", 0); });
  expect(operator_of_it.run_to("pin.after_lease"), "no pin");
  expect(world.evict(kWorldPages) == 0, "the evictor did not see the pin");
  operator_of_it.finish();
  check_all(world);
}

void a_lease_that_protects_nothing_is_no_pin_after_a_death(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const Handle page = world.handle_of({1});
  const PinTable pins(world.segment());
  Party operator_of_it([&] { (void)pins.pin(page, "because", 0); });
  expect(operator_of_it.run_to("lease.before_store"), "no lease");
  expect(world.evict(1) == 1, "not evicted");
  expect(operator_of_it.run_to("lease.after_store"), "no lease");  // and dies
  pins.recover();
  expect(pins.list().empty(), "a pin of a page that is not there");
  operator_of_it.finish();
  check_all(world);
}

void a_pin_ends_in_time(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const PinTable pins(world.segment());
  const std::uint32_t expiry = world.segment().now_tick() + 1;
  expect(pins.pin(world.handle_of({1}), "because", expiry).has_value(), "no pin");
  expect(pins.drop_ended(expiry - 1) == 0 && world.evict(1) == 0, "it ended before its time");
  expect(pins.drop_ended(expiry) == 1 && world.evict(1) == 1, "it holds its page after its time");
  check_all(world);
}

void a_pin_ends_with_a_flush(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const PinTable pins(world.segment());
  expect(pins.pin(world.handle_of({1}), "because", 0).has_value(), "no pin");
  flush(world);
  (void)pins.drop_ended(world.segment().now_tick());
  expect(world.evict(1) == 1, "a page that nobody can match is held by its pin");
  check_all(world);
}

#define KVTRIE_TOLD(story) \
  { #story, story }
constexpr Interleaving kFlushes[] = {
    KVTRIE_TOLD(a_flushed_root_has_no_pages),
    KVTRIE_TOLD(what_began_before_a_flush_is_not_published),
    KVTRIE_TOLD(a_root_flushed_during_the_walk_has_no_pages),
    KVTRIE_TOLD(pages_of_a_flushed_root_go_first),
    KVTRIE_TOLD(a_flush_gives_no_generation_that_a_page_has),
    KVTRIE_TOLD(a_pinned_page_stays),
    KVTRIE_TOLD(a_pin_of_a_page_that_went_is_no_pin),
    KVTRIE_TOLD(a_pin_holds_from_its_lease_on),
    KVTRIE_TOLD(a_lease_that_protects_nothing_is_no_pin_after_a_death),
    KVTRIE_TOLD(a_pin_ends_in_time),
    KVTRIE_TOLD(a_pin_ends_with_a_flush),
};
#undef KVTRIE_TOLD

}  // namespace

std::span<const Interleaving> flush_interleavings() { return kFlushes; }

}  // namespace kvtrie::test
