// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Each protection of shm/mutant.h is needed: with it, the check named beside it passes; with it
// taken out, the check fails. A check is a scenario that dies at each of its crash points
// (scenario.h) or an interleaving. Protections that only a weaker memory order shows are in the
// models (tests/model).

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <string>

#include "shm/mutant.h"
#include "tests/crash/aftermath.h"
#include "tests/crash/interleavings.h"
#include "tests/crash/victim.h"

namespace kvtrie::test {
namespace {

struct Catch {
  Mutant mutant;
  std::string_view check;  // "crash:SCENARIO", or an interleaving's name
};

void PrintTo(const Catch& caught, std::ostream* out) { *out << caught.check; }

constexpr Catch kCatches[] = {
    {Mutant::k_walk_ignores_generation, "a_parent_recycled_during_the_walk_has_no_child_of_ours"},
    {Mutant::k_lease_without_recheck, "a_lease_after_the_evictor_read_the_slots_rescues"},
    {Mutant::k_rescue_by_store, "a_rescue_after_the_page_is_past_return_fails"},
    {Mutant::k_parent_of_other_worker, "another_workers_pending_page_is_no_parent"},
    {Mutant::k_announce_without_lookup, "the_second_of_a_key_is_not_announced"},
    {Mutant::k_index_before_pending, "an_announced_page_is_found_by_the_next_announcer"},
    {Mutant::k_no_announce_counter, "a_child_of_a_page_that_is_evicted_rescues_it"},
    {Mutant::k_lease_after_live, "what_is_published_is_under_a_lease_at_once"},
    {Mutant::k_publish_children_first, "crash:publish.fresh"},
    {Mutant::k_move_by_overwrite, "a_link_to_a_page_that_went_is_no_link"},
    {Mutant::k_abort_frees_before_unindex, "an_aborted_page_takes_no_entry_of_the_next_owner"},
    {Mutant::k_duplicate_supersedes, "the_second_of_a_key_is_not_announced"},
    {Mutant::k_evict_without_lease_scan, "a_new_slot_is_seen_by_the_evictor"},
    {Mutant::k_evict_without_counter_check, "a_child_of_a_page_that_is_evicted_rescues_it"},
    {Mutant::k_evict_scan_before_condemn, "a_lease_between_two_condemnations_is_seen"},
    {Mutant::k_evict_interior_pages, "a_page_stays_while_its_child_is_leased"},
    {Mutant::k_evict_parent_of_rescued, "a_rescued_child_keeps_its_parent"},
    {Mutant::k_free_before_unindex, "an_evicted_page_takes_no_entry_of_the_next_owner"},
    {Mutant::k_free_keeps_generation, "a_page_recycled_during_the_walk_is_no_hit"},
    {Mutant::k_no_stripe_sweep, "crash:allocate.sweep"},
    {Mutant::k_sweep_takes_pending, "crash:allocate.sweep"},
    {Mutant::k_reap_keeps_pages, "crash:allocate.fresh"},
    {Mutant::k_reap_slot_first, "crash:reap"},
    {Mutant::k_reap_keeps_leases, "crash:begin.hit"},
    {Mutant::k_adopt_keeps_condemned, "crash:evict.chain"},
    {Mutant::k_adopt_revives_retiring, "crash:evict.chain"},
    {Mutant::k_wait_without_recheck, "pages_that_came_before_the_sleep_are_taken"},
    {Mutant::k_pending_wait_without_recheck, "a_page_that_came_before_the_bit_is_seen"},
    {Mutant::k_publish_keeps_waiters, "who_waits_for_a_page_is_woken_when_it_comes"},
    {Mutant::k_reap_keeps_waiters, "who_waits_for_a_page_is_woken_when_its_owner_dies"},
    {Mutant::k_begin_keeps_old_root, "a_root_flushed_during_the_walk_has_no_pages"},
    {Mutant::k_publish_after_flush, "what_began_before_a_flush_is_not_published"},
    {Mutant::k_share_publisher_only, "a_published_page_stays_for_all_of_its_batch"},
    {Mutant::k_fork_copies_lease, "a_forks_lease_is_seen_by_an_evictor_that_passed_its_slot"},
    {Mutant::k_partial_without_lease, "what_is_copied_from_stays_until_it_is_copied"},
    {Mutant::k_take_before_older, "a_newcomer_leaves_the_free_pages_to_a_waiter"},
    {Mutant::k_reservation_never_ends, "a_reservation_ends_without_a_coordinator"},
    {Mutant::k_wish_of_the_silent_binds, "the_wish_of_a_stopped_waiter_binds_nobody"},
    {Mutant::k_lease_load_passes_store, "a_page_evicted_before_the_lease_is_no_hit"},
    {Mutant::k_flush_ignored, "a_flushed_root_has_no_pages"},
    {Mutant::k_wait_keeps_old_root, "crash:wait.flushed"},
    {Mutant::k_flushed_pages_keep_their_turn, "pages_of_a_flushed_root_go_first"},
    {Mutant::k_keeper_forgets_flush, "crash:admin.flush"},
    {Mutant::k_flush_reuses_scope, "a_flush_gives_no_generation_that_a_page_has"},
    {Mutant::k_evict_ignores_pins, "a_pinned_page_stays"},
    {Mutant::k_pin_without_verification, "a_pin_of_a_page_that_went_is_no_pin"},
    {Mutant::k_pin_above_high_water, "a_pin_holds_from_its_lease_on"},
    {Mutant::k_pin_before_record, "crash:admin.pin"},
    {Mutant::k_unpin_record_first, "crash:admin.unpin"},
    {Mutant::k_pins_keep_leftovers, "crash:admin.unpin"},
    {Mutant::k_pins_keep_lost_leases, "a_lease_that_protects_nothing_is_no_pin_after_a_death"},
    {Mutant::k_pin_never_ends, "a_pin_ends_in_time"},
    {Mutant::k_pin_outlives_flush, "a_pin_ends_with_a_flush"},
    {Mutant::k_touch_before_lease, "a_page_recycled_during_the_walk_is_not_touched"},
    {Mutant::k_high_water_after_lease, "a_new_slot_is_seen_by_the_evictor"},
    {Mutant::k_held_count_after_take, "crash:allocate.fresh"},
    {Mutant::k_reap_keeps_bitmap, "crash:allocate.fresh"},
    {Mutant::k_adopt_keeps_bitmap, "crash:evict.leaf"},
};

// Those that need a coordinator and devices, histories or clocks: they have tests of their own.
constexpr Catch kCaughtElsewhere[] = {
    {Mutant::k_no_device_fence, "DeviceFenceTest.WithoutTheDevicesFenceAReusedPageChanges"},
    {Mutant::k_no_writer_fence, "DeviceFenceTest.WithoutTheWritersFencePagesComeBackUnderARank"},
    {Mutant::k_hash_without_namespace, "IsolationTimingTest.AHashWithoutTheNamespaceShows"},
    {Mutant::k_take_tries_once, "HistoryMutantsTest.IsCaught/take_tries_once"},
};

constexpr unsigned kSecondsACheck = 30;

std::string_view name_of(Mutant mutant) { return kMutantNames[static_cast<std::size_t>(mutant)]; }

// Violations of the scenario, dying at each crash point in turn; the first one ends it.
std::string die_everywhere(CrashWorld& world, const Scenario& scenario) {
  for (std::uint64_t n = 1;; ++n) {
    const Ending ending =
        finish_victim(start_victim(world, scenario, {.traced = false, .die_at_point = n}));
    if (ending == Ending::kFailed) return "the victim failed";
    const std::string violation = judge(world, scenario, ending == Ending::kReturned);
    if (!violation.empty()) return violation;
    if (ending == Ending::kReturned) return {};
  }
}

std::string run_check(std::string_view check) {
  try {
    CrashWorld world;
    if (check.starts_with("crash:")) return die_everywhere(world, scenario_named(check.substr(6)));
    const auto found = std::ranges::find(all_interleavings(), check, &Interleaving::name);
    if (found == all_interleavings().end()) return "there is no such check";
    found->tell(world);
    return {};
  } catch (const std::exception& failure) {
    return failure.what();
  }
}

// In a process of its own: a protocol without a protection may crash or hang. Empty: passed.
std::string outcome_of(std::string_view check, Mutant mutant) {
  std::array<int, 2> ends{};
  if (::pipe(ends.data()) != 0) return "pipe";
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(kSecondsACheck);
    active_mutant.store(mutant);
    const std::string text = run_check(check);
    (void)!::write(ends[1], text.data(), text.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  std::array<char, 512> part{};
  for (ssize_t got; (got = ::read(ends[0], part.data(), part.size())) > 0;) {
    text.append(part.data(), static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (text.empty() && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) return "it crashed or hung";
  return text;
}

TEST(MutantsTest, EachOfTheListIsCaughtBySomething) {
  for (std::size_t i = 1; i < static_cast<std::size_t>(Mutant::kCount); ++i) {
    const auto mutant = static_cast<Mutant>(i);
    const auto listed = std::ranges::count(kCatches, mutant, &Catch::mutant) +
                        std::ranges::count(kCaughtElsewhere, mutant, &Catch::mutant);
    EXPECT_EQ(listed, 1) << kMutantNames[i] << " needs a check in this file";
  }
}

class InterleavingTest : public ::testing::TestWithParam<Interleaving> {};

TEST_P(InterleavingTest, Holds) { EXPECT_EQ(outcome_of(GetParam().name, Mutant::kNone), ""); }

INSTANTIATE_TEST_SUITE_P(All, InterleavingTest,
                         ::testing::ValuesIn(all_interleavings().begin(),
                                             all_interleavings().end()),
                         [](const auto& test) { return std::string(test.param.name); });

class MutantTest : public ::testing::TestWithParam<Catch> {};

TEST_P(MutantTest, IsCaught) {
  const auto& [mutant, check] = GetParam();
  ASSERT_EQ(outcome_of(check, Mutant::kNone), "") << check << " fails with all protections in";
  const std::string violation = outcome_of(check, mutant);
  EXPECT_NE(violation, "") << check << " passes without this protection";
  std::cout << "caught by " << check << ": " << violation << '\n';
}

INSTANTIATE_TEST_SUITE_P(All, MutantTest, ::testing::ValuesIn(kCatches),
                         [](const auto& test) { return std::string(name_of(test.param.mutant)); });

}  // namespace
}  // namespace kvtrie::test
