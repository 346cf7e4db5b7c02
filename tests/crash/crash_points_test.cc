// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every operation dies at each of its crash points, one after the other; then its recovery dies at
// each of its own; and a survivor dies in the sweep of a stripe. The oracle, the checks and the
// survivors are those of aftermath.h.
//
// Who finds a dead process's work has nothing but the shared bytes to go by. So of several deaths that leave the same
// bytes, one is followed up: an adoption passes thousands of crash points and leaves a dozen images.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <set>

#include "shm/page_table.h"
#include "tests/crash/aftermath.h"
#include "tests/crash/scenario_lists.h"
#include "tests/crash/victim.h"
#include "tests/support/party.h"

namespace kvtrie::test {
namespace {

constexpr unsigned kSecondsATest = 300;  // then something hangs
constexpr std::uint64_t kPointsMax = 5'000;

const std::vector<Scenario>& scenarios() {
  static const std::vector<Scenario> all = [] {
    std::vector<Scenario> list(all_scenarios().begin(), all_scenarios().end());
    std::ranges::move(interleaved_scenarios(), std::back_inserter(list));
    return list;
  }();
  return all;
}

class CrashPointTest : public ::testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override { ::alarm(kSecondsATest); }
  void TearDown() override { ::alarm(0); }

  const Scenario& scenario() const { return scenarios()[GetParam()]; }
  // The operation dies at its n-th crash point.
  Ending die_at(std::uint64_t n) {
    return finish_victim(start_victim(world_, scenario(), {.traced = false, .die_at_point = n}));
  }

  CrashWorld world_;
};

TEST_P(CrashPointTest, NothingIsLostWhereverItDies) {
  for (std::uint64_t n = 1; n < kPointsMax; ++n) {
    const Ending ending = die_at(n);
    ASSERT_NE(ending, Ending::kFailed) << "at crash point " << n;
    ASSERT_EQ(judge(world_, scenario(), ending == Ending::kReturned), "") << "at crash point " << n;
    if (ending == Ending::kReturned) {
      RecordProperty("crash_points", static_cast<int>(n - 1));
      return;
    }
  }
  FAIL() << "the operation does not end";
}

TEST_P(CrashPointTest, ItsRecoveryMayDieAnywhereToo) {
  Scenario twice = scenario();
  twice.adopts = true;  // whoever recovers the second time is the next coordinator
  int kills = 0;
  std::set<std::uint64_t> firsts;
  std::set<std::uint64_t> seconds;
  for (std::uint64_t n = 1; n < kPointsMax; ++n) {
    Death first(world_, scenario(), n);
    ASSERT_NE(first.ending(), Ending::kFailed) << "at crash point " << n;
    if (first.ending() == Ending::kReturned) {
      RecordProperty("double_kills", kills);
      return;
    }
    if (!firsts.insert(world_.hash_of_bytes()).second) continue;
    for (std::uint64_t m = 1; m < kPointsMax; ++m) {
      first.happen_again();
      const Ending second = run_and_die(m, [&] {
        const View view(world_.segment_fd(), world_.pool_fd());
        recover(view.segment(), scenario());
      });
      ASSERT_NE(second, Ending::kFailed) << "at crash points " << n << " and " << m;
      if (second == Ending::kReturned) {
        ASSERT_EQ(judge_recovered(world_, scenario(), false), "") << "at crash point " << n;
        break;
      }
      ++kills;
      if (!seconds.insert(world_.hash_of_bytes()).second) continue;
      ASSERT_EQ(judge(world_, twice, false), "") << "at crash points " << n << " and " << m;
    }
  }
  FAIL() << "the operation does not end";
}

TEST_P(CrashPointTest, WhoeverSweepsItsStripesMayDieToo) {
  std::set<std::uint64_t> firsts;
  for (std::uint64_t n = 1; n < kPointsMax; ++n) {
    Death first(world_, scenario(), n);
    ASSERT_NE(first.ending(), Ending::kFailed) << "at crash point " << n;
    if (first.ending() == Ending::kReturned) return;
    if (!firsts.insert(world_.hash_of_bytes()).second) continue;
    for (std::uint64_t m = 1; m < kPointsMax; ++m) {
      first.happen_again();
      // Before the reap: a survivor needs the stripe at once.
      const Ending second = run_and_die(m, [&] {
        const View view(world_.segment_fd(), world_.pool_fd());
        visit_stripes(view.segment(), WorkerId{kOtherSurvivor});
      });
      ASSERT_NE(second, Ending::kFailed) << "at crash points " << n << " and " << m;
      ASSERT_EQ(judge(world_, scenario(), false), "") << "at crash points " << n << " and " << m;
      if (second == Ending::kReturned) break;
    }
  }
  FAIL() << "the operation does not end";
}

std::string with_underscores(std::string name) {
  std::ranges::replace(name, '.', '_');
  return name;
}

std::string scenario_of(const ::testing::TestParamInfo<std::size_t>& test) {
  return with_underscores(std::string(scenarios()[test.param].name));
}

INSTANTIATE_TEST_SUITE_P(All, CrashPointTest, ::testing::Range(std::size_t{0}, scenarios().size()),
                         scenario_of);

// --- a worker dies while a round of the evictor is under way, which then goes on ---

class DeathDuringEvictionTest : public ::testing::TestWithParam<const char*> {};

TEST_P(DeathDuringEvictionTest, TheRoundGoesOn) {
  const Scenario& scenario = scenario_named(GetParam());
  Scenario meanwhile = scenario;
  for (const Path& path : scenario.cached)
    meanwhile.may_go.insert(path);  // some may be evicted
  CrashWorld world;
  ::alarm(kSecondsATest);
  for (const char* place :
       {"evict.after_condemn", "evict.after_retire", "finish.after_unindex", "evict.after_free"}) {
    for (unsigned hit = 1;; ++hit) {
      bool passed = true;
      for (std::uint64_t n = 1; passed; ++n) {
        world.reset();
        if (scenario.setup) scenario.setup(world);
        pid_t victim = 0;
        Ending ending = Ending::kFailed;
        {
          Party evictor([&] { (void)world.evict(kWorldPages); });
          passed = evictor.run_to(place, hit);
          victim = fork_victim(world, scenario, {.traced = false, .die_at_point = n});
          ending = finish_victim(victim);
        }
        ASSERT_NE(ending, Ending::kFailed) << place << " " << hit << ", point " << n;
        ASSERT_EQ(judge(world, meanwhile, false), "") << place << " " << hit << ", point " << n;
        if (ending == Ending::kReturned) break;
      }
      if (!passed) break;
    }
  }
  ::alarm(0);
}

INSTANTIATE_TEST_SUITE_P(All, DeathDuringEvictionTest,
                         ::testing::Values("begin.hit", "allocate.extend", "publish.below",
                                           "publish.link", "release.pending"),
                         [](const auto& test) { return with_underscores(test.param); });

}  // namespace
}  // namespace kvtrie::test
