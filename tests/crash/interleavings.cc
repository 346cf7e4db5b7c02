// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/interleavings.h"

#include <fmt/format.h>

#include <chrono>
#include <vector>

#include "coordinator/evictor.h"
#include "shm/crash_point.h"
#include "shm/waiting.h"
#include "tests/crash/scenario.h"
#include "tests/support/cache_oracle.h"
#include "tests/support/eventually.h"
#include "tests/support/party.h"

namespace kvtrie::test {
namespace {

// All but `free` pages are taken by a survivor, so that whoever takes a page gets the one that came
// free last.
void leave_free(CrashWorld& world, std::uint32_t free) {
  world.open(kOtherSurvivor, {99}, kWorldPages - free - 1);
}

// Begins `path` and stays at the place `after_page` of the walk until the story went on.
struct Walker {
  Walker(CrashWorld& world, const Path& path)
      : party([this, &world, path] { hits = world.engine(1).begin(sequence, path); }) {
    expect(party.run_to("walk.after_page"), "the walk found nothing");
  }
  Sequence sequence;
  std::uint32_t hits = 0;
  Party party;
};

// --- begin and lease ---

void a_parent_recycled_during_the_walk_has_no_child_of_ours(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Walker walker(world, {1, 2});
  world.evict(1);
  world.cache(kSurvivor, {9, 2});  // in the page of {1} and the next one
  walker.party.finish();
  expect(walker.hits == 0, "begin found {9,2} for {1,2}");
  check_all(world);
}

void a_page_recycled_during_the_walk_is_no_hit(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Walker walker(world, {1});
  world.evict(1);
  world.cache(kSurvivor, {9});  // in the same page
  walker.party.finish();
  expect(walker.hits == 0, "begin found {9} for {1}");
  check_all(world);
}

void a_page_recycled_during_the_walk_is_not_touched(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Walker walker(world, {1});
  world.evict(1);
  world.cache(kSurvivor, {9});
  const Descriptor& descriptor = world.segment().descriptor(world.page_of({9}));
  const std::uint64_t touch = descriptor.touch.load();
  walker.party.finish();
  expect(descriptor.touch.load() == touch, "a page that was not leased was touched");
}

void a_lease_after_the_evictor_read_the_slots_rescues(CrashWorld& world) {
  world.cache(kSurvivor, {1, 2});
  Party evictor([&] { (void)world.evict(2); });
  expect(evictor.run_to("evict.after_retire"),
         "nothing was evicted");  // {1,2} is gone, {1} Condemned
  Sequence sequence;
  const std::uint32_t hits = world.engine(1).begin(sequence, {1});
  evictor.finish();
  expect(hits == 1, "a Condemned page is no miss");
  check_all(world);
}

void a_rescue_after_the_page_is_past_return_fails(CrashWorld& world) {
  world.cache(kSurvivor, {1, 2});
  Party evictor([&] { (void)world.evict(2); });
  expect(evictor.run_to("evict.after_retire"), "nothing was evicted");
  Sequence sequence;
  std::uint32_t hits = 0;
  Party worker([&] { hits = world.engine(1).begin(sequence, {1}); });
  expect(worker.run_to("lease.before_rescue"), "nothing to rescue");
  evictor.finish();
  worker.finish();
  expect(hits == 0, "begin found a page that was evicted");
  check_all(world);
}

// Its word is looked at after the store, so what happened before the store is seen.
void a_page_evicted_before_the_lease_is_no_hit(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Sequence sequence;
  std::uint32_t hits = 0;
  Party worker([&] { hits = world.engine(1).begin(sequence, {1}); });
  expect(worker.run_to("lease.before_store"), "no lease");
  expect(world.evict(1) == 1, "not evicted");
  worker.finish();
  expect(hits == 0, "begin holds a page that was evicted before its lease");
  check_all(world);
}

void a_page_stays_while_its_child_is_leased(CrashWorld& world) {
  world.cache(kSurvivor, {1, 2});
  Sequence sequence;
  expect(world.engine(1).begin(sequence, {1, 2}) == 2, "not found");
  expect(world.evict(2) == 0, "the parent was evicted");
  check_all(world);
}

void a_new_slot_is_seen_by_the_evictor(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Sequence sequence;
  expect(world.engine(1).begin(sequence, {1}) == 1, "not found");
  expect(world.evict(kWorldPages) == 0, "a leased page was evicted");
  check_all(world);
}

// --- announce and publish ---

void another_workers_pending_page_is_no_parent(CrashWorld& world) {
  OpenSequence& first = world.open(kSurvivor, {1});
  OpenSequence& second = world.open(kOtherSurvivor, {1, 2});
  (void)world.engine(kOtherSurvivor).publish(second.sequence, 2);
  world.engine(kSurvivor).release(first.sequence);
  check_all(world);
}

void the_second_of_a_key_is_not_announced(CrashWorld& world) {
  OpenSequence& first = world.open(kSurvivor, {1});
  OpenSequence& second = world.open(kOtherSurvivor, {1});
  (void)world.engine(kSurvivor).publish(first.sequence, 1);
  (void)world.engine(kOtherSurvivor).publish(second.sequence, 1);
  check_all(world);
}

void an_announced_page_is_found_by_the_next_announcer(CrashWorld& world) {
  Party first([&] { world.open(kSurvivor, {1}); });
  expect(first.run_to("announce.after_unlock"), "not announced");
  Sequence sequence;
  (void)world.engine(1).prepare(sequence, {1});
  first.finish();
  check_all(world);
}

void a_child_of_a_page_that_is_evicted_rescues_it(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  Party evictor([&] {
    Evictor mine(world.segment());
    (void)mine.evict(
        1,
        [] {
          KVTRIE_CRASH_POINT("test.interrupted");
          return false;
        },
        [](double) {});
  });
  expect(evictor.run_to("test.interrupted", 4), "no scan");  // {1} is a leaf in it, not ranked yet
  // In the tick of {1}'s last touch, so that nothing but the announcement tells of it.
  Engine& other = world.engine(kOtherSurvivor);
  Sequence sequence;
  (void)other.prepare(sequence, {1, 2});
  (void)other.publish(sequence, 2);
  other.release(sequence);
  evictor.finish();
  check_all(world);
}

void what_is_published_is_under_a_lease_at_once(CrashWorld& world) {
  OpenSequence& open = world.open(kSurvivor, {1, 2});
  Party publisher([&] { (void)world.engine(kSurvivor).publish(open.sequence, 2); });
  expect(publisher.run_to("publish.after_live", 2), "nothing published");
  world.evict(kWorldPages);
  publisher.finish();
  check_all(world);
}

void a_link_to_a_page_that_went_is_no_link(CrashWorld& world) {
  OpenSequence& first = world.open(kSurvivor, {1});
  OpenSequence& second = world.open(kOtherSurvivor, {1, 2});
  (void)world.engine(kSurvivor).publish(first.sequence, 1);
  world.engine(kSurvivor).release(first.sequence);
  Party linker([&] { (void)world.engine(kOtherSurvivor).publish(second.sequence, 2); });
  expect(linker.run_to("announce.after_unlock"), "nothing announced");
  expect(world.evict(kWorldPages) == 1, "{1} is not leased yet");
  linker.finish();
  check_all(world);
}

// --- recycling ---

void an_aborted_page_takes_no_entry_of_the_next_owner(CrashWorld& world) {
  leave_free(world, 1);
  OpenSequence& open = world.open(kSurvivor, {1});
  Party aborter([&] { world.engine(kSurvivor).release(open.sequence); });
  expect(aborter.run_to("give_back.after_bits"), "nothing given back");
  world.engine(1).cache({1});
  aborter.finish();
  check_all(world);
}

void an_evicted_page_takes_no_entry_of_the_next_owner(CrashWorld& world) {
  leave_free(world, 1);
  world.cache(kSurvivor, {1});
  Party evictor([&] { (void)world.evict(1); });
  expect(evictor.run_to("finish.after_unindex"), "nothing evicted");
  Sequence sequence;
  (void)world.engine(1).begin(sequence, {1});
  if (world.engine(1).allocate(sequence, 1)) world.engine(1).compute(sequence, {1});
  evictor.finish();
  (void)world.engine(1).publish(sequence, 1);
  check_all(world);
}

// --- evict ---

void a_lease_between_two_condemnations_is_seen(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  world.cache(kSurvivor, {2});
  Party evictor([&] { (void)world.evict(2); });
  expect(evictor.run_to("evict.after_condemn"), "nothing condemned");  // {1}; {2} is next
  Sequence sequence;
  expect(world.engine(1).begin(sequence, {2}) == 1, "not found");
  evictor.finish();
  check_all(world);
}

void a_rescued_child_keeps_its_parent(CrashWorld& world) {
  world.cache(kSurvivor, {1, 2});
  Party evictor([&] { (void)world.evict(2); });
  expect(evictor.run_to("evict.after_condemn", 2), "nothing condemned");
  Sequence sequence;
  expect(world.engine(1).begin(sequence, {1, 2}) == 2, "a Condemned page is no miss");
  evictor.finish();
  check_all(world);
}

// --- wait ---

void pages_that_came_before_the_sleep_are_taken(CrashWorld& world) {
  constexpr std::chrono::nanoseconds kWait = std::chrono::seconds(2);
  leave_free(world, 1);
  Sequence sequence;
  (void)world.engine(1).begin(sequence, {1, 2});
  Status status;
  Party waiter([&] { status = world.engine(1).allocate(sequence, 2, kWait.count()); });
  expect(waiter.run_to("wait.after_wanted"), "it did not wait");
  world.engine(kOtherSurvivor)
      .release(world.opened().front().sequence);  // wakes nobody: nobody sleeps
  const auto start = std::chrono::steady_clock::now();
  waiter.finish();
  expect(status.ok(), "no pages");
  expect(std::chrono::steady_clock::now() - start < kWait / 2, "it slept beside free pages");
}

// Four pages are free; a survivor waits for six, stopped before its first look.
struct StoppedWaiter {
  explicit StoppedWaiter(CrashWorld& cache)
      : world(cache), party([this] {
          status = world.engine(kSurvivor).allocate(
              sequence, 6, std::chrono::nanoseconds(std::chrono::seconds(20)).count());
        }) {
    leave_free(world, 4);
    (void)world.engine(kSurvivor).begin(sequence, {1});
    expect(party.run_to("wait.after_wanted"), "it did not wait");
  }
  ~StoppedWaiter() { give_room(); }
  StoppedWaiter(const StoppedWaiter&) = delete;
  StoppedWaiter& operator=(const StoppedWaiter&) = delete;

  void give_room() {
    for (OpenSequence& open : world.opened()) world.engine(kOtherSurvivor).release(open.sequence);
    world.opened().clear();
  }
  void comes_round() const {
    world.segment().worker(WorkerId{kSurvivor}).wait_seen.store(monotonic_ns());
  }
  void reservation_is_renewed() const {
    world.segment().superblock().reserved_until.store(monotonic_ns() + kReservedForNs);
  }
  // One that comes new and wants two of the four.
  bool newcomer_takes() {
    Sequence newcomer;
    (void)world.engine(1).begin(newcomer, {2});
    const Status taken = world.engine(1).allocate(newcomer, 2);
    world.engine(1).release(newcomer);
    return taken.ok();
  }
  void serve_and_check() {
    give_room();
    party.finish();
    expect(status.ok(), "the waiter got no pages");
    world.engine(kSurvivor).release(sequence);
    check_all(world);
  }

  CrashWorld& world;
  Sequence sequence;
  Status status;
  Party party;
};

void a_newcomer_leaves_the_free_pages_to_a_waiter(CrashWorld& world) {
  StoppedWaiter waiter(world);
  waiter.reservation_is_renewed();
  waiter.comes_round();
  expect(!waiter.newcomer_takes(), "it overtook a waiter");
  waiter.serve_and_check();
}

void a_reservation_ends_without_a_coordinator(CrashWorld& world) {
  StoppedWaiter waiter(world);
  waiter.reservation_is_renewed();
  expect(eventually([&] {
           waiter.comes_round();
           return waiter.newcomer_takes();
         }, std::chrono::seconds(5)),
         "two pages cannot be had for good");
  waiter.serve_and_check();
}

void the_wish_of_a_stopped_waiter_binds_nobody(CrashWorld& world) {
  StoppedWaiter waiter(world);
  expect(eventually([&] {
           waiter.reservation_is_renewed();
           return waiter.newcomer_takes();
         }, std::chrono::seconds(5)),
         "a stopped process keeps two pages from others");
  waiter.serve_and_check();
}

#define KVTRIE_TOLD(story) \
  { #story, story }
constexpr Interleaving kAll[] = {
    KVTRIE_TOLD(a_parent_recycled_during_the_walk_has_no_child_of_ours),
    KVTRIE_TOLD(a_page_recycled_during_the_walk_is_no_hit),
    KVTRIE_TOLD(a_page_recycled_during_the_walk_is_not_touched),
    KVTRIE_TOLD(a_lease_after_the_evictor_read_the_slots_rescues),
    KVTRIE_TOLD(a_rescue_after_the_page_is_past_return_fails),
    KVTRIE_TOLD(a_page_evicted_before_the_lease_is_no_hit),
    KVTRIE_TOLD(a_page_stays_while_its_child_is_leased),
    KVTRIE_TOLD(a_new_slot_is_seen_by_the_evictor),
    KVTRIE_TOLD(another_workers_pending_page_is_no_parent),
    KVTRIE_TOLD(the_second_of_a_key_is_not_announced),
    KVTRIE_TOLD(an_announced_page_is_found_by_the_next_announcer),
    KVTRIE_TOLD(a_child_of_a_page_that_is_evicted_rescues_it),
    KVTRIE_TOLD(what_is_published_is_under_a_lease_at_once),
    KVTRIE_TOLD(a_link_to_a_page_that_went_is_no_link),
    KVTRIE_TOLD(an_aborted_page_takes_no_entry_of_the_next_owner),
    KVTRIE_TOLD(an_evicted_page_takes_no_entry_of_the_next_owner),
    KVTRIE_TOLD(a_lease_between_two_condemnations_is_seen),
    KVTRIE_TOLD(a_rescued_child_keeps_its_parent),
    KVTRIE_TOLD(pages_that_came_before_the_sleep_are_taken),
    KVTRIE_TOLD(a_newcomer_leaves_the_free_pages_to_a_waiter),
    KVTRIE_TOLD(a_reservation_ends_without_a_coordinator),
    KVTRIE_TOLD(the_wish_of_a_stopped_waiter_binds_nobody),
};
#undef KVTRIE_TOLD

}  // namespace

void expect(bool holds, const char* what) {
  if (!holds) throw Violation(what);
}

void check_all(const CrashWorld& world) {
  check_at_rest(world.view());
  (void)cached_paths(world.view());
}

std::span<const Interleaving> all_interleavings() {
  static const std::vector<Interleaving> all = [] {
    std::vector<Interleaving> list(std::begin(kAll), std::end(kAll));
    for (const std::span<const Interleaving> part : {call_interleavings(), flush_interleavings()}) {
      list.insert(list.end(), part.begin(), part.end());
    }
    return list;
  }();
  return all;
}

}  // namespace kvtrie::test
