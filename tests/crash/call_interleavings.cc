// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Interleavings of the calls around a request's cycle: waiting for others' pages, forks, partial matches, batches.

#include <array>
#include <chrono>

#include "shm/pending_wait.h"
#include "shm/recovery.h"
#include "shm/stripe_index.h"
#include "tests/crash/aftermath.h"
#include "tests/crash/interleavings.h"
#include "tests/support/cache_oracle.h"
#include "tests/support/party.h"

namespace kvtrie::test {
namespace {

// --- waiting for a Pending page ---

// Waits for {1}, which a survivor computes; stopped at `place`.
struct PendingWaiter {
  PendingWaiter(CrashWorld& cache, std::string_view place)
      : world(cache), open(cache.open(kSurvivor, {1})), party([this] {
          BeginReport report;
          (void)world.engine(1).begin(sequence, {1});
          const auto start = std::chrono::steady_clock::now();
          status = world.engine(1).worker().wait_for_pending(sequence, 10 * kPendingLookNs, report);
          waited = std::chrono::steady_clock::now() - start;
          cached = report.cached_pages;
        }) {
    expect(party.run_to(place), "it did not wait");
  }
  void wakes() {
    party.finish();
    expect(status.ok(), "the wait failed");
    expect(waited < std::chrono::nanoseconds(kPendingLookNs) / 2, "it slept beside a page that came or went");
    world.engine(1).release(sequence);
  }

  CrashWorld& world;
  OpenSequence& open;
  Sequence sequence;
  Status status;
  std::uint32_t cached = 0;
  std::chrono::steady_clock::duration waited{};
  Party party;
};

void a_page_that_came_before_the_bit_is_seen(CrashWorld& world) {
  PendingWaiter waiter(world, "wait_pending.before_bit");
  (void)world.engine(kSurvivor).publish(waiter.open.sequence, 1);
  waiter.wakes();
  expect(waiter.cached == 1, "the page was not matched");
}

void who_waits_for_a_page_is_woken_when_it_comes(CrashWorld& world) {
  PendingWaiter waiter(world, "wait_pending.before_sleep");
  (void)world.engine(kSurvivor).publish(waiter.open.sequence, 1);
  waiter.wakes();
  expect(waiter.cached == 1, "the page was not matched");
}

void who_waits_for_a_page_is_woken_when_its_owner_gives_up(CrashWorld& world) {
  PendingWaiter waiter(world, "wait_pending.before_sleep");
  world.engine(kSurvivor).release(waiter.open.sequence);
  world.opened().clear();
  waiter.wakes();
  expect(waiter.cached == 0, "matched what is not there");
}

void who_waits_for_a_page_is_woken_when_its_owner_dies(CrashWorld& world) {
  PendingWaiter waiter(world, "wait_pending.before_sleep");
  reap_slot(world.segment(), WorkerId{kSurvivor});
  waiter.wakes();
  expect(waiter.cached == 0, "matched what is not there");
  world.opened().clear();
}

// --- fork, partial match, batch ---

void a_forks_lease_is_seen_by_an_evictor_that_passed_its_slot(CrashWorld& world) {
  Engine& engine = world.engine(kSurvivor);
  world.cache(kSurvivor, {1});
  world.cache(kSurvivor, {2});
  Sequence first;
  Sequence parent;
  Sequence child;
  (void)engine.begin(first, {7});  // has the lowest slot
  Party evictor([&] { (void)world.evict(2); });
  expect(evictor.run_to("evict.after_condemn"), "nothing condemned");  // {1}; {2} is next
  expect(engine.begin(parent, {2}) == 1, "not found");
  engine.release(first);
  expect(evictor.run_to("leases.after_slot"), "no slot read");  // the lowest, which is empty
  expect(engine.fork(parent, child).ok(), "no fork");
  engine.release(parent);
  evictor.finish();
  const Handle page = child.shared.front();
  const StateWord word{world.segment().descriptor(page.page_index()).state.load()};
  expect(word.state() == PageState::kLive && page.same_life(word), "the page was evicted under the child");
  engine.release(child);
  check_all(world);
}

void what_is_copied_from_stays_until_it_is_copied(CrashWorld& world) {
  world.cache(kSurvivor, {1, half(2)});
  Sequence sequence;
  SequenceOptions partial;
  partial.partial = true;
  expect(world.engine(1).begin(sequence, {1, 2}, partial) == 1, "not found");
  const Handle source = sequence.source.page;
  expect(sequence.source.any(), "no match inside the page");
  world.evict(kWorldPages);
  const StateWord word{world.segment().descriptor(source.page_index()).state.load()};
  expect(word.state() == PageState::kLive && source.same_life(word), "it was evicted before it was copied");
  world.engine(1).release(sequence);
  check_all(world);
}

void a_published_page_stays_for_all_of_its_batch(CrashWorld& world) {
  Engine& engine = world.engine(kSurvivor);
  std::array<Sequence, 2> batch;
  const std::array<Path, 2> paths{Path{1, 2}, Path{1, 3}};
  expect(engine.prepare_batch(batch, paths).ok(), "no batch");
  for (std::size_t i = 0; i < 2; ++i) engine.compute(batch[i], paths[i]);
  (void)engine.publish(batch[0], 2);
  const Handle common = batch[0].node_at(0);
  engine.release(batch[0]);
  (void)engine.worker().give_back(batch[1], 1, 1);  // no Pending child protects the common page
  world.evict(kWorldPages);
  const StateWord word{world.segment().descriptor(common.page_index()).state.load()};
  expect(word.state() == PageState::kLive && common.same_life(word), "evicted under the second sequence");
  engine.release(batch[1]);
  check_all(world);
}

// --- compare-and-swaps ---

// The next coordinator sets the bits of all Free pages, also of one that a worker is just taking.
void a_page_that_another_took_is_not_taken(CrashWorld& world) {
  world.open(kOtherSurvivor, {99}, kWorldPages - 2);
  Sequence sequence;
  Status status;
  Party taker([&] {
    (void)world.engine(1).begin(sequence, {1});
    status = world.engine(1).allocate(sequence, 1);
  });
  expect(taker.run_to("take.before_state"), "no page was taken");
  (void)adopt_pages(world.segment());
  world.open(kSurvivor, {5});
  taker.finish();
  expect(!status, "two have one page");
  world.engine(1).release(sequence);
  check_all(world);
}

// Somebody who sweeps the stripe takes a stale entry out, and another page's comes in its place.
void an_entry_that_became_anothers_stays(CrashWorld& world) {
  world.cache(kSurvivor, {1});
  const Segment& segment = world.segment();
  const PageIndex page = world.page_of({1});
  const StripeIndex index(segment);
  const std::uint64_t hash = segment.descriptor(page).prefix_hash.load();
  const IndexPlace place = index.place_of(hash);
  AtomicU64* entry = nullptr;
  for (const std::uint64_t bucket : place.bucket) {
    for (AtomicU64& slot : segment.bucket(bucket).entries) {
      if (slot.load() == (place.tagged | page.value)) entry = &slot;
    }
  }
  expect(entry != nullptr, "no entry");
  Party evictor([&] { (void)world.evict(1); });
  expect(evictor.run_to("unindex.before_remove"), "nothing was evicted");
  (void)index.recover(place.stripe);
  expect(entry->load() == 0, "the entry of a page past return was kept");
  for (std::uint32_t number = 100; entry->load() == 0 && number < 100 + kWorldPages - 2; ++number) {
    world.cache(kSurvivor, {number});
  }
  expect(entry->load() != 0, "nobody came into its place");
  evictor.finish();
  check_all(world);
}

// Two threads of one worker begin at once; the first one stands at `place`.
void begin_beside(CrashWorld& world, std::string_view place) {
  world.cache(kSurvivor, {1});
  Engine& engine = world.engine(1);
  Sequence first;
  Sequence second;
  Party thread([&] { (void)engine.begin(first, {1}); });
  expect(thread.run_to(place), "no slot was taken");
  (void)engine.begin(second, {1});
  thread.finish();
  expect(first.lease_slot != second.lease_slot, "two sequences have one lease slot");
  const std::uint32_t mark = world.segment().worker(WorkerId{1}).leases_high_water.load();
  expect(mark > first.lease_slot && mark > second.lease_slot, "a lease above the high-water mark");
  engine.release(first);
  engine.release(second);
  check_all(world);
}

void a_lease_slot_is_one_threads(CrashWorld& world) { begin_beside(world, "slots.before_take"); }
void the_high_water_mark_never_falls(CrashWorld& world) { begin_beside(world, "slots.before_mark"); }

#define KVTRIE_TOLD(story) \
  { #story, story }
constexpr Interleaving kCalls[] = {
    KVTRIE_TOLD(a_page_that_came_before_the_bit_is_seen),
    KVTRIE_TOLD(who_waits_for_a_page_is_woken_when_it_comes),
    KVTRIE_TOLD(who_waits_for_a_page_is_woken_when_its_owner_gives_up),
    KVTRIE_TOLD(who_waits_for_a_page_is_woken_when_its_owner_dies),
    KVTRIE_TOLD(a_forks_lease_is_seen_by_an_evictor_that_passed_its_slot),
    KVTRIE_TOLD(what_is_copied_from_stays_until_it_is_copied),
    KVTRIE_TOLD(a_published_page_stays_for_all_of_its_batch),
    KVTRIE_TOLD(a_page_that_another_took_is_not_taken),
    KVTRIE_TOLD(an_entry_that_became_anothers_stays),
    KVTRIE_TOLD(a_lease_slot_is_one_threads),
    KVTRIE_TOLD(the_high_water_mark_never_falls),
};
#undef KVTRIE_TOLD

}  // namespace

std::span<const Interleaving> call_interleavings() { return kCalls; }

}  // namespace kvtrie::test
