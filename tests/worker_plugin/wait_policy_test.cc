// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie_policy.hpp: each rule of its arithmetic, at both sides of its edge. 16 tokens a page, ticks of 1 s; slowness
// 2, grace 20 ms, worth 2 ms.

#include "worker_plugin/kvtrie_policy.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

namespace kvtrie::client {
namespace {

class WaitPolicyTest : public testing::Test {
 protected:
  static Geometry geometry() {
    Geometry geometry;
    geometry.tokens_per_page = 16;
    geometry.tick_ns = 1'000'000'000;
    return geometry;
  }
  static BeginResult found(std::uint64_t cached_tokens, std::uint32_t pending_pages, std::uint32_t age_ticks = 0) {
    BeginResult result;
    result.cached_tokens = cached_tokens;
    result.pending_pages = pending_pages;
    result.pending_age_ticks = age_ticks;
    return result;
  }
  // 16,000 tokens/s: a page a millisecond.
  Advice advise(const BeginResult& now, const WaitedSoFar& so_far = {}) const {
    return policy_.advise(now, 16'000, so_far);
  }

  const WaitPolicy policy_{geometry()};
};

TEST_F(WaitPolicyTest, NothingAnnouncedIsComputed) {
  EXPECT_EQ(advise(found(320, 0)).choice, Choice::kCompute);
  EXPECT_EQ(advise(found(0, 0, 99), {1000, 99}).choice, Choice::kCompute);
}

TEST_F(WaitPolicyTest, AShortPartIsNotWaitedFor) {
  EXPECT_EQ(advise(found(0, 1)).choice, Choice::kIgnore);
  EXPECT_EQ(advise(found(16'000, 1)).choice, Choice::kIgnore) << "what is cached is no reason";
  EXPECT_EQ(advise(found(0, 2)).choice, Choice::kWait);
  EXPECT_EQ(policy_.advise(found(0, 2), 16'001).choice, Choice::kIgnore) << "a faster engine";
  EXPECT_EQ(policy_.advise(found(0, 1), 100).choice, Choice::kWait) << "a slow one";
}

TEST_F(WaitPolicyTest, TheLastPagesOfALongPartAre) {
  EXPECT_EQ(advise(found(1584, 1), {1584, .099}).choice, Choice::kWait);
}

TEST_F(WaitPolicyTest, TheWaitIsBounded) {
  const Advice advice = advise(found(0, 100));  // 100 ms of prefill
  EXPECT_EQ(advice.choice, Choice::kWait);
  EXPECT_NEAR(advice.wait_ms, 220, 1);
  EXPECT_NEAR(advice.look_ms, 12.5, 1);
  EXPECT_NEAR(advise(found(0, 100), {0, .2}).wait_ms, 20, 1);
  EXPECT_LE(advise(found(0, 100), {0, .2}).look_ms, 21U);
  EXPECT_EQ(advise(found(0, 100), {0, .2199}).choice, Choice::kWait);
  EXPECT_GE(advise(found(0, 100), {0, .2199}).look_ms, 1U) << "0 would not sleep";
  EXPECT_EQ(advise(found(0, 100), {0, .2201}).choice, Choice::kIgnore) << "its owner is silent";
  EXPECT_NEAR(policy_.advise(found(0, 1'000'000), 100).wait_ms, 30'000, 1) << "limit_ms";
  EXPECT_EQ(policy_.advise(found(0, 1'000'000), 100, {0, 30.1}).choice, Choice::kIgnore);
}

TEST_F(WaitPolicyTest, AnOldAnnouncementIsNotWaitedFor) {
  // 100 ms of work, at most 220 ms: an age of one tick may be any moment, of two is more than a second.
  EXPECT_EQ(advise(found(0, 100, 1)).choice, Choice::kWait);
  EXPECT_EQ(advise(found(0, 100, 2)).choice, Choice::kIgnore);
  // The same rest of a long prompt, of which its owner may have computed all that is cached.
  EXPECT_EQ(advise(found(16'000, 100, 2)).choice, Choice::kWait);
  EXPECT_EQ(advise(found(16'000, 100, 4)).choice, Choice::kIgnore);
  Geometry fine = geometry();
  fine.tick_ns = 1'000'000;
  EXPECT_EQ(WaitPolicy(fine).advise(found(0, 100, 219), 16'000).choice, Choice::kWait);
  EXPECT_EQ(WaitPolicy(fine).advise(found(0, 100, 223), 16'000).choice, Choice::kIgnore);
}

TEST_F(WaitPolicyTest, ASlowOwnerIsLeftAtItsFirstPages) {
  EXPECT_EQ(advise(found(160, 90), {160, .010}).choice, Choice::kWait) << "as fast as we";
  EXPECT_EQ(advise(found(160, 90), {160, .040}).choice, Choice::kWait) << "half as fast";
  EXPECT_EQ(advise(found(160, 90), {160, .100}).choice, Choice::kIgnore) << "a tenth";
  // Near the end of it even a slow one is faster than computing all again.
  EXPECT_EQ(advise(found(1520, 5), {1520, .200}).choice, Choice::kWait);
}

// A wait for one prompt, in the policy's own steps and with a clock of the test's.
struct Simulated {
  double slowness = 1;         // of the owner, against us
  std::uint64_t step = 128;    // tokens after which it publishes
  double held_up_s = 0;        // once, before its first step
};
struct Ended {
  double after_s = 0;
  std::uint64_t tokens = 0;  // that came
};
Ended simulate(const WaitPolicy& policy, const Simulated& owner) {
  constexpr std::uint64_t kPrompt = 2048;
  constexpr double kSpeed = 50'000;
  for (double now = 0;;) {
    const double computed = (now - owner.held_up_s) * kSpeed / owner.slowness + 1e-6;
    std::uint64_t came = computed <= 0 ? 0 : static_cast<std::uint64_t>(computed) / owner.step * owner.step;
    came = std::min(came, kPrompt);
    BeginResult seen;
    seen.cached_tokens = came;
    seen.pending_pages = static_cast<std::uint32_t>((kPrompt - came) / 16);
    const Advice advice = policy.advise(seen, kSpeed, {came, now});
    if (advice.choice != Choice::kWait) return {now, came};
    now += advice.look_ms * 1e-3;
  }
}

// Computing takes 41 ms. An owner that takes ten times as long has its first 128 tokens after 25.6 ms.
TEST_F(WaitPolicyTest, ASlowOwnerCostsWhatCannotBeKnown) {
  const Ended slow = simulate(policy_, {.slowness = 10});
  EXPECT_EQ(slow.tokens, 128U);
  EXPECT_GE(slow.after_s, .0256);
  EXPECT_LT(slow.after_s, .0256 + .041 / 8 + .0003) << "a look later";
  // Nobody could have stopped sooner: so far that one looked the same, and this one is worth waiting for.
  EXPECT_EQ(simulate(policy_, {.step = 2048}).tokens, 2048U);
  // Why not at the first pages of those that come late: the host held them up. They are as fast as we.
  EXPECT_EQ(simulate(policy_, {.held_up_s = .020}).tokens, 2048U);
  EXPECT_EQ(simulate(policy_, {.slowness = 1.9}).tokens, 2048U);
  // What it costs at most, whatever the owner does.
  for (double slowness = 1; slowness < 1000; slowness *= 1.1) {
    for (const std::uint64_t step : {16, 128, 512, 2048}) {
      const Ended ended = simulate(policy_, {.slowness = slowness, .step = step});
      EXPECT_LT(ended.after_s, 2 * .041 + .020 + .002) << slowness << " " << step;
    }
  }
}

TEST_F(WaitPolicyTest, WithoutASpeedThereIsNoReasonToWait) {
  for (const double speed : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    EXPECT_EQ(policy_.advise(found(0, 100), speed).choice, Choice::kIgnore);
  EXPECT_EQ(policy_.advise(found(0, 100), std::numeric_limits<double>::infinity()).choice, Choice::kIgnore);
  EXPECT_EQ(policy_.advise(found(0, UINT32_MAX), 1e-300).choice, Choice::kWait);
}

TEST_F(WaitPolicyTest, OptionsMoveTheEdges) {
  const WaitPolicy patient(geometry(), {.slowness = 10, .grace_ms = 0, .worth_ms = 0, .limit_ms = 500});
  EXPECT_EQ(patient.advise(found(0, 1), 1e9).choice, Choice::kWait);
  EXPECT_NEAR(patient.advise(found(0, 100), 16'000).wait_ms, 500, 1);
}

TEST(PrefillSpeedTest, FollowsWhatIsMeasured) {
  PrefillSpeed speed;
  EXPECT_EQ(speed.tokens_per_s(), 2000) << "a guess";
  speed.computed(0, 1);
  speed.computed(10, 0);
  speed.computed(10, -1);
  EXPECT_EQ(speed.tokens_per_s(), 2000);
  speed.computed(100, .01);
  EXPECT_DOUBLE_EQ(speed.tokens_per_s(), 10'000) << "the guess is forgotten";
  speed.computed(100, 1);  // the host held it up for a second
  EXPECT_GT(speed.tokens_per_s(), 4000);
  speed.computed(100, .01);
  EXPECT_GT(speed.tokens_per_s(), 6000);
  for (int i = 0; i < 100; ++i)
    speed.computed(100, .02);
  EXPECT_NEAR(speed.tokens_per_s(), 5000, 10);
}

}  // namespace
}  // namespace kvtrie::client
