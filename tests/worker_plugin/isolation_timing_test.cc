// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// C8, by the clock: how long a begin takes on a prefix that only another tenant has, and on one that nobody has. If the
// two differ, a tenant can ask what another one has cached.
//
// A round takes 10,000 samples of each of three cases, in turns and each turn in another order: `others` (the other
// tenant has it), and `nobodys` twice. The medians of the two equal cases show what one run differs from another; over
// all rounds, the middle difference between `others` and `nobodys` must not be more than almost the largest of those.
// (Almost: one round in which the machine did something else must not make the test blind.) Only a difference that
// three such measurements in a row show is a leak: noise does not, a leak does.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "shm/mutant.h"
#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kSamples = 10'000;
constexpr std::uint32_t kRounds = 15;
constexpr int kMeasurements = 3;
constexpr std::uint32_t kPending = 2'000;  // each is an open sequence

enum Case : std::size_t { kOthers, kNobodys, kNobodysToo, kCases };
using Prompt = std::array<std::uint32_t, 2 * kPageTokens>;  // its first page decides

struct Differences {
  double others = 0;  // ns, middle of all rounds
  double equal = 0;   // ns, next to largest of all rounds; at least the clock's step
  bool leaks() const { return std::fabs(others) > equal; }
};

class IsolationTimingTest : public ::testing::Test {
 protected:
  // What the other tenant does with its prompts.
  enum class Other { kPublishes, kAnnounces };

  // Both tenants, and `count` prompts of the other one.
  void fill(Other other, std::uint32_t count) {
    ASSERT_NE(me_.id, 0U);
    for (std::vector<Prompt>& prompts : prompts_) {
      prompts.resize(count);
      for (Prompt& prompt : prompts) std::ranges::generate(prompt, [this] { return random_() % 100'000; });
    }
    for (const Prompt& prompt : prompts_[kOthers]) {
      kvtrie_sequence sequence{0};
      auto begun = sized<kvtrie_begin_result>();
      ASSERT_EQ(kvtrie_begin(worker_, other_, prompt.data(), kPageTokens, nullptr, &begun, &sequence), KVTRIE_OK);
      ASSERT_EQ(kvtrie_allocate(sequence, kPageTokens, nullptr), KVTRIE_OK);
      if (other == Other::kAnnounces) continue;
      ASSERT_EQ(kvtrie_publish(sequence, kPageTokens, nullptr), KVTRIE_OK);
      ASSERT_EQ(kvtrie_release(sequence), KVTRIE_OK);
    }
  }

  // A begin of mine, in ns.
  double sample(const Prompt& prompt, std::uint32_t flags) {
    auto options = sized<kvtrie_begin_options>();
    options.flags = flags;
    auto begun = sized<kvtrie_begin_result>();
    kvtrie_sequence sequence{0};
    const auto start = std::chrono::steady_clock::now();
    const kvtrie_code code =
        kvtrie_begin(worker_, me_, prompt.data(), prompt.size(), &options, &begun, &sequence);
    const auto end = std::chrono::steady_clock::now();
    wrong_ += code != KVTRIE_OK || begun.cached_pages != 0 || begun.pending_pages != 0 ? 1 : 0;
    (void)kvtrie_release(sequence);
    return std::chrono::duration<double, std::nano>(end - start).count();
  }

  std::array<double, kCases> medians_of_a_round(std::uint32_t flags) {
    std::array<std::vector<double>, kCases> samples;
    std::array<std::size_t, kCases> order{kOthers, kNobodys, kNobodysToo};
    for (std::uint32_t i = 0; i < kSamples; ++i) {
      std::ranges::shuffle(order, random_);
      for (const std::size_t which : order)
        samples[which].push_back(sample(prompts_[which][i % prompts_[which].size()], flags));
    }
    std::array<double, kCases> medians{};
    for (std::size_t which = 0; which < kCases; ++which) {
      const auto middle = samples[which].begin() + kSamples / 2;
      std::ranges::nth_element(samples[which], middle);
      medians[which] = *middle;
    }
    return medians;
  }

  Differences measure(std::uint32_t flags) {
    std::vector<double> others;
    std::vector<double> equal;
    for (std::uint32_t round = 0; round < kRounds; ++round) {
      const std::array<double, kCases> medians = medians_of_a_round(flags);
      // Of the equal ones each in turn, so that this difference has no more in it than that of the equal ones.
      others.push_back(medians[kOthers] - medians[round % 2 == 0 ? kNobodys : kNobodysToo]);
      equal.push_back(std::fabs(medians[kNobodys] - medians[kNobodysToo]));
    }
    std::ranges::sort(others);
    std::ranges::sort(equal);
    return {others[kRounds / 2], std::max(equal[kRounds - 2], 1.0)};
  }

  bool leaks(std::uint32_t flags = 0) {
    std::string seen;
    for (int i = 0; i < kMeasurements; ++i) {
      const Differences found = measure(flags);
      seen += fmt::format(" {:.1f} of {:.1f} ns", found.others, found.equal);
      if (!found.leaks()) {
        RecordProperty("differences", seen);
        return false;
      }
    }
    RecordProperty("differences", seen);
    return true;
  }

  // The pages of the others are more than a processor's nearest caches hold, as in a cache of real size.
  TestCache cache_{{.pages = 1U << 16, .leases = 4'096}};
  kvtrie_worker worker_ = cache_.attach();
  kvtrie_namespace me_{0};
  kvtrie_namespace other_{0};
  std::array<std::vector<Prompt>, kCases> prompts_;
  std::mt19937 random_{20261};
  std::uint32_t wrong_ = 0;

  void open() {
    me_ = cache_.open(worker_, {{"model", "m"}, {"salt", "mine"}});
    other_ = cache_.open(worker_, {{"model", "m"}, {"salt", "others"}});
  }
  void TearDown() override {
    EXPECT_EQ(wrong_, 0U) << "begins that failed or found something";
    EXPECT_EQ(kvtrie_detach(worker_), KVTRIE_OK);
#ifdef KVTRIE_DEV
    active_mutant.store(Mutant::kNone);
#endif
  }
};

TEST_F(IsolationTimingTest, WhatAnotherHasTakesAsLongAsWhatNobodyHas) {
  open();
  fill(Other::kPublishes, kSamples);
  EXPECT_FALSE(leaks());
  EXPECT_FALSE(leaks(KVTRIE_PARTIAL));
}

TEST_F(IsolationTimingTest, WhatAnotherAnnouncedTakesAsLongAsWhatNobodyHas) {
  open();
  fill(Other::kAnnounces, kPending);
  EXPECT_FALSE(leaks());
}

#ifdef KVTRIE_DEV
// Then a prefix has the same place in the index for all: who looks for it meets the other's page, and must look at it
// to see that it is not his.
TEST_F(IsolationTimingTest, AHashWithoutTheNamespaceShows) {
  active_mutant.store(Mutant::k_hash_without_namespace);
  open();
  fill(Other::kPublishes, kSamples);
  EXPECT_TRUE(leaks()) << "the time does not show it";
}

TEST_F(IsolationTimingTest, AHashWithoutTheNamespaceShowsWhatIsAnnounced) {
  active_mutant.store(Mutant::k_hash_without_namespace);
  open();
  fill(Other::kAnnounces, kPending);
  EXPECT_TRUE(leaks()) << "the time does not show it";
}
#endif

}  // namespace
}  // namespace kvtrie::test
