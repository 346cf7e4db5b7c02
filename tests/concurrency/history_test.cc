// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Recorded histories of three worker processes and an evicting one, decided by a checker (support/history_check.h says
// what is promised); that the checker refuses a wrong history of each kind, and the histories of a protocol with a
// protection taken out.
//
//   KVTRIE_HISTORIES=100000 history_test --gtest_filter=*Recorded*      more of them, some 4 ms each

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <ostream>
#include <string>

#include "shm/mutant.h"
#include "tests/concurrency/support/history_check.h"
#include "tests/concurrency/support/history_run.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kHistories = 1000;

TEST(HistoryTest, RecordedHistoriesAreRight) {
  const char* const wanted = std::getenv("KVTRIE_HISTORIES");
  const std::uint32_t histories = wanted == nullptr ? kHistories : static_cast<std::uint32_t>(std::atoi(wanted));
  ASSERT_GT(histories, 0U);
  std::uint64_t calls = 0, states = 0, hits = 0, pending = 0, refused = 0, links = 0, evicted = 0, overlaps = 0;
  for (std::uint32_t seed = 1; seed <= histories; ++seed) {
    const std::optional<History> history = record_history(seed);
    ASSERT_TRUE(history) << "a process of history " << seed << " hung or died";
    const Verdict verdict = check(*history);
    ASSERT_TRUE(verdict.right()) << "history " << seed << ": " << verdict.text;
    ASSERT_GE(history->operations.size(), kHistoryWorkers * kHistoryCalls);
    calls += history->operations.size();
    states += verdict.states;
    std::uint64_t over_by[kHistoryWorkers + 1] = {};  // when the call before was over, of each process
    std::vector<const Operation*> in_order;
    for (const Operation& call : history->operations) in_order.push_back(&call);
    std::ranges::sort(in_order, {}, &Operation::invoked);
    for (const Operation* call : in_order) {
      hits += call->call == Call::kBegin ? call->positions : 0U;
      pending += call->pending != 0 ? 1 : 0;
      refused += call->done ? 0 : 1;
      evicted += call->evicted;
      for (const Position& position : call->after)
        links += position.kept == Kept::kPrivate && position.node != 0 ? 1 : 0;
      overlaps += std::ranges::any_of(over_by, [&](std::uint64_t over) { return over >= call->invoked; }) ? 1 : 0;
      over_by[call->process] = call->responded;
    }
  }
  fmt::print("histories {}, calls {}, of these at the same time as another {}, states searched {}; pages matched {}, "
             "seen coming {}, linked to {}, evicted {}; allocations refused {}\n",
             histories, calls, overlaps, states, hits, pending, links, evicted, refused);
  // All of it must have happened, or nothing was shown.
  EXPECT_GT(hits, histories);
  EXPECT_GT(evicted, histories);
#ifdef KVTRIE_DEV  // calls give way in the middle
  EXPECT_GT(links, histories / 8);
  EXPECT_GT(pending, histories / 8);
  EXPECT_GT(refused, histories / 100);
  EXPECT_GT(overlaps, calls / 20);
#endif
}

#ifdef KVTRIE_DEV
class HistoryMutantsTest : public testing::TestWithParam<const char*> {
 protected:
  ~HistoryMutantsTest() override { active_mutant.store(Mutant::kNone); }
};

// A wrong history, or processes that end badly, within a bounded number. Each was seen within 30; the bound is for
// machines that overlap less.
TEST_P(HistoryMutantsTest, IsCaught) {
  const auto* const found = std::ranges::find(kMutantNames, GetParam());
  ASSERT_NE(found, std::end(kMutantNames));
  active_mutant.store(static_cast<Mutant>(found - std::begin(kMutantNames)));
  for (std::uint32_t seed = 1; seed <= kHistories; ++seed) {
    const std::optional<History> history = record_history(seed);
    if (!history || !check(*history).right()) return;
  }
  FAIL() << "none of " << kHistories << " histories shows that " << GetParam() << " is taken out";
}

INSTANTIATE_TEST_SUITE_P(, HistoryMutantsTest,
                         testing::Values("lease_without_recheck", "lease_load_passes_store", "parent_of_other_worker",
                                         "announce_without_lookup", "duplicate_supersedes", "move_by_overwrite",
                                         "lease_after_live", "evict_without_lease_scan", "evict_without_counter_check",
                                         "evict_scan_before_condemn", "evict_interior_pages",
                                         "evict_parent_of_rescued", "free_keeps_generation",
                                         "abort_frees_before_unindex", "take_tries_once"),
                         [](const auto& mutant) { return std::string(mutant.param); });
#endif

// A history by hand. Each call takes 10 from its place on, so calls of neighbouring places are one after the other.
constexpr Life kA = life(1, 0), kB = life(2, 0), kC = life(3, 0), kD = life(4, 0);  // A and B of path 0 0

Position own(Life page, Kept kept) { return {page, kept == Kept::kPrivate ? 0 : page, kept, false}; }
Position matched(Life page) { return {page, page, Kept::kShared, false}; }
Position second(Life page) { return {page, 0, Kept::kPrivate, true}; }

class Script {
 public:
  Script() {
    history.free_pages = kHistoryPages;
    history.pages_away = 0;
  }

  Operation& call(Call call, int process, int place, std::initializer_list<Position> after = {}) {
    Operation made;
    made.call = call;
    made.process = static_cast<std::uint8_t>(process);
    made.sequence = static_cast<std::uint32_t>(process);
    made.invoked = static_cast<std::uint64_t>(place) * 20;
    made.responded = made.invoked + 10;
    made.path_pages = 2;
    made.positions = static_cast<std::uint8_t>(after.size());
    made.asked = call == Call::kEvict ? 4 : made.positions;
    std::ranges::copy(after, made.after.begin());
    history.operations.push_back(made);
    return history.operations.back();
  }
  void evict(int process, int place, std::initializer_list<Life> gone) {
    Operation& made = call(Call::kEvict, process, place);
    made.evicted = static_cast<std::uint32_t>(gone.size());
    for (const Life page : gone) gone_[Handle{page}.page_index().value] = 1;
    made.generations = gone_;
  }
  Operation& at(std::size_t index) { return history.operations[index]; }

  // 0: process 0 begins, 1: allocates, 2: publishes A and B, 3: releases.
  void publish_both() {
    call(Call::kBegin, 0, 0);
    call(Call::kAllocate, 0, 1, {own(kA, Kept::kAnnounced), own(kB, Kept::kAnnounced)});
    call(Call::kPublish, 0, 2, {own(kA, Kept::kPublished), own(kB, Kept::kPublished)});
    call(Call::kRelease, 0, 3);
  }
  // Process 1 matches both in place 4, releases in 6; process 3 evicts them in `place`.
  void match_both(int evicted_at) {
    publish_both();
    call(Call::kBegin, 1, 4, {matched(kA), matched(kB)});
    call(Call::kRelease, 1, 6);
    evict(3, evicted_at, {kA, kB});
  }
  // Process 2 begins, allocates one page and releases it.
  Operation& other(int begins, int allocates, int releases, Position page) {
    call(Call::kBegin, 2, begins).pending = page.before_other ? kA : 0;
    call(Call::kRelease, 2, releases);
    return call(Call::kAllocate, 2, allocates, {page});
  }

  History history;

 private:
  std::array<std::uint16_t, kHistoryPages> gone_{};
};

void expect_right(const Script& script) {
  const Verdict verdict = check(script.history);
  EXPECT_TRUE(verdict.right()) << verdict.text;
}

TEST(HistoryCheckTest, TakesWhatIsPromised) {
  Script one_after_the_other;
  one_after_the_other.match_both(7);
  expect_right(one_after_the_other);

  for (std::uint8_t found = 0; found <= 2; ++found) {  // publish is not one step: a begin beside it finds any part
    Script beside;
    beside.match_both(7);
    beside.at(4).invoked = 45;  // place 2 is from 40 to 50
    beside.at(4).positions = found;
    expect_right(beside);
    beside.at(4).invoked = 50;  // equal stamps say nothing
    expect_right(beside);
    beside.at(4).invoked = 51;
    EXPECT_EQ(check(beside.history).right(), found == 2);
  }

  Script second_of_a_key;  // stays private while the first is Pending
  second_of_a_key.publish_both();
  second_of_a_key.other(1, 1, 4, second(kC)).invoked = 26;
  second_of_a_key.at(4).responded = 25;
  second_of_a_key.evict(3, 7, {kA, kB});
  second_of_a_key.at(4).invoked = second_of_a_key.at(4).responded = 25;
  expect_right(second_of_a_key);
}

struct Wrong {
  const char* name;
  Promise broken;
  std::function<void(Script&)> write;
};
void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.name; }

class WrongHistoryTest : public testing::TestWithParam<Wrong> {};

TEST_P(WrongHistoryTest, IsRefused) {
  Script script;
  GetParam().write(script);
  const Verdict verdict = check(script.history);
  EXPECT_TRUE(verdict.breaks(GetParam().broken)) << "instead: " << verdict.text;
}

const Wrong kWrong[] = {
    {"MatchedBeforeItWasPublished", Promise::kMatchIsLive,
     [](Script& script) {
       script.match_both(7);
       script.at(4).invoked = 25, script.at(4).responded = 38;
     }},
    {"MatchedAfterItWasEvicted", Promise::kMatchIsLive,
     [](Script& script) {
       script.match_both(4);
       script.at(4).invoked = 91, script.at(4).responded = 99;
     }},
    {"PublishedIsMissed", Promise::kPublishedIsFound,
     [](Script& script) {
       script.match_both(7);
       script.at(4).positions = 0;
     }},
    {"PublishedIsMissedInPart", Promise::kPublishedIsFound,
     [](Script& script) {
       script.match_both(7);
       script.at(4).positions = 1;
     }},
    {"PublishLeavesAnAnnouncedPage", Promise::kPublishedIsFound,
     [](Script& script) {
       script.publish_both();
       script.at(2).after[1] = own(kB, Kept::kAnnounced);
       script.evict(3, 7, {kA});
     }},
    {"ReportedAsComingBeforeItWasAnnounced", Promise::kPendingIsPending,
     [](Script& script) {
       script.match_both(7);
       script.call(Call::kBegin, 2, 0).pending = kA;
       script.call(Call::kRelease, 2, 8);
     }},
    {"ReportedAsComingAfterItWasPublished", Promise::kPendingIsPending,
     [](Script& script) {
       script.publish_both();
       script.evict(3, 4, {kA, kB});
       script.call(Call::kBegin, 2, 5).pending = kA;
       script.call(Call::kRelease, 2, 6);
     }},
    {"PageOfAnotherPath", Promise::kRightPage,
     [](Script& script) {
       script.match_both(7);
       script.at(4).path[0] = 1;
     }},
    {"BytesOfAnotherPath", Promise::kRightPage,
     [](Script& script) {
       script.match_both(7);
       script.at(4).wrong_bytes = true;
     }},
    {"TakenWhileItIsLive", Promise::kPageIsOnes,
     [](Script& script) {
       script.publish_both();
       script.other(3, 4, 5, own(life(1, 1), Kept::kAnnounced)).path[0] = 1;
       script.at(4).path[0] = 1;
       script.evict(3, 7, {kA, kB});
     }},
    {"TakenWhileAnotherWritesIt", Promise::kPageIsOnes,
     [](Script& script) {
       script.other(0, 1, 5, own(kC, Kept::kAnnounced)).path[0] = 1;
       script.call(Call::kBegin, 1, 2);
       script.call(Call::kAllocate, 1, 3, {own(life(3, 1), Kept::kAnnounced)});
       script.call(Call::kRelease, 1, 4);
     }},
    {"GivenTwiceInOneLife", Promise::kPageIsOnes,
     [](Script& script) {
       script.match_both(7);
       script.other(8, 9, 10, own(kA, Kept::kAnnounced)).path[0] = 1;
     }},
    {"AnnouncedTwice", Promise::kKeyOnce,
     [](Script& script) {
       script.publish_both();
       script.other(1, 4, 5, own(kC, Kept::kAnnounced));
       script.at(4).invoked = script.at(4).responded = 21;
       script.evict(3, 7, {kA, kB});
     }},
    {"StaysPrivateForNobody", Promise::kKeyOnce,
     [](Script& script) { script.other(0, 1, 2, own(kC, Kept::kPrivate)); }},
    {"StaysPrivateForWhatIsGone", Promise::kKeyOnce,
     [](Script& script) {
       script.publish_both();
       script.evict(3, 4, {kA, kB});
       script.other(5, 6, 7, second(kC));
       script.at(5).pending = 0;
     }},
    {"AnnouncedBelowAPrivatePage", Promise::kParentHeld,
     [](Script& script) {
       script.publish_both();
       script.at(1).after[0] = own(kA, Kept::kPrivate);
       script.at(1).after[0].before_other = true;
     }},
    {"AnnouncedBelowAPageOfAnother", Promise::kMatchIsLive,  // which is only coming
     [](Script& script) {
       script.publish_both();
       script.at(2).invoked = 120, script.at(2).responded = 130;  // after what follows
       script.at(3).invoked = 140, script.at(3).responded = 150;
       script.call(Call::kBegin, 1, 2).pending = kA;
       script.call(Call::kAllocate, 1, 3, {second(kC), second(kD)}).after[1].before_other = false;
       Operation& publish = script.call(Call::kPublish, 1, 4, {second(kC), own(kD, Kept::kAnnounced)});
       publish.path[1] = 1;
       publish.asked = 1;
       publish.after[0].node = kA;
       script.call(Call::kRelease, 1, 5);
       script.evict(3, 9, {kA, kB});
     }},
    {"ChildIsPublishedFirst", Promise::kParentsFirst,
     [](Script& script) {
       script.publish_both();
       script.at(2).after[0] = own(kA, Kept::kAnnounced);
       script.at(2).asked = 0;
       script.evict(3, 7, {kB});
     }},
    {"EvictedUnderALease", Promise::kLeaseKeeps, [](Script& script) { script.match_both(5); }},
    {"EvictedUnderThePublisher", Promise::kLeaseKeeps,
     [](Script& script) {
       script.publish_both();
       script.at(3).invoked = 100, script.at(3).responded = 110;
       script.evict(3, 3, {kA, kB});
     }},
    {"EvictedAboveALivePage", Promise::kChildKeepsParent,
     [](Script& script) {
       script.publish_both();
       script.evict(3, 4, {kA});
       script.evict(3, 5, {kB});
     }},
    {"EvictCountsMore", Promise::kCounts,
     [](Script& script) {
       script.match_both(7);
       script.at(6).evicted = 3;
     }},
    {"APageIsLost", Promise::kCounts,
     [](Script& script) {
       script.match_both(7);
       script.history.free_pages -= 1;
     }},
    {"APageStaysThatWasEvicted", Promise::kCounts,
     [](Script& script) {
       script.match_both(7);
       script.history.cached = {kA};
       script.history.free_pages -= 1;
     }},
    {"RefusedWithFreePages", Promise::kEnoughIsEnough,
     [](Script& script) {
       Operation& refused = script.other(0, 1, 2, own(kC, Kept::kPrivate));
       refused.done = false;
       refused.positions = 0;
     }},
};
INSTANTIATE_TEST_SUITE_P(, WrongHistoryTest, testing::ValuesIn(kWrong),
                         [](const auto& wrong) { return std::string(wrong.param.name); });

}  // namespace
}  // namespace kvtrie::test
