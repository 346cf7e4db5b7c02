// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// C7 for the checker itself: whatever the bytes, it ends soon, reads nothing outside, and says so.

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <random>
#include <vector>

#include "shm/verify.h"
#include "tests/shm/cache_fixture.h"

namespace kvtrie {
namespace {

using test::CacheFixture;
using Clock = std::chrono::steady_clock;

constexpr auto kBudget = std::chrono::milliseconds(700);  // of each test
constexpr std::uint32_t kSeed = 20'240'607;

class VerifyFuzzTest : public CacheFixture {
 protected:
  void SetUp() override {
    CacheFixture::SetUp();
    good_.assign(segment_->data(), segment_->data() + bytes_);
  }

  void restore() const { std::memcpy(segment_->data(), good_.data(), good_.size()); }

  std::uint64_t pick(std::uint64_t below) { return random_() % below; }

  // Runs `damage` and both checks until the budget is used up.
  template <typename Damage>
  void fuzz(Damage damage) {
    const auto end = Clock::now() + kBudget;
    std::uint64_t rounds = 0;
    std::uint64_t seen = 0;
    for (; Clock::now() < end; ++rounds) {
      restore();
      damage();
      const auto start = Clock::now();
      for (const bool at_rest : {false, true}) {
        const VerifyReport report =
            verify(*segment_, {.at_rest = at_rest, .findings_max = 20, .settle_ms = 0});
        ASSERT_LE(report.findings.size(), 20U);
        ASSERT_GE(report.findings_total, report.findings.size());
        std::uint64_t pages = report.pages_impossible;
        for (const std::uint64_t count : report.pages)
          pages += count;
        ASSERT_EQ(pages, geometry_.pages) << "round " << rounds;
        for (const Finding& finding : report.findings)
          ASSERT_FALSE(to_string(finding).empty());
        if (!report.clean()) ++seen;
      }
      ASSERT_LT(Clock::now() - start, std::chrono::seconds(5)) << "round " << rounds;
    }
    EXPECT_GT(rounds, 10U);
    EXPECT_GT(seen, 0U);
    restore();
    EXPECT_TRUE(verify(*segment_, {.at_rest = true}).clean());
  }

  // A word that is plausible somewhere.
  std::uint64_t plausible_word() {
    const PageIndex page{static_cast<std::uint32_t>(pick(geometry_.pages + 2))};
    const auto worker = static_cast<std::uint16_t>(pick(6));
    switch (pick(9)) {
      case 0:
        return 0;
      case 1:
        return ~std::uint64_t{0};
      case 2:
        return StateWord::make(static_cast<PageState>(pick(8)), pick(3), WorkerId{worker}).raw;
      case 3:
        return Handle::page(page, pick(3)).raw;
      case 4:
        return Handle::root(NamespaceId{static_cast<std::uint16_t>(pick(5))}, pick(3)).raw;
      case 5:
        return StripeIndex::kValid | random_() << 24 | page.value;
      case 6:
        return pick(16);
      case 7:
        return std::uint64_t{1} << pick(64);
      default:
        return random_();
    }
  }

  std::mt19937_64 random_{kSeed};
  std::vector<std::byte> good_;
};

TEST_F(VerifyFuzzTest, RandomBytesAnywhere) {
  fuzz([&] {
    for (std::uint64_t n = 1 + pick(64); n > 0; --n) {
      segment_->data()[pick(bytes_)] = static_cast<std::byte>(random_());
    }
  });
}

TEST_F(VerifyFuzzTest, PlausibleWordsInDescriptors) {
  fuzz([&] {
    for (std::uint64_t n = 1 + pick(40); n > 0; --n) {
      // Most pages are Free; the first are not.
      const PageIndex page{static_cast<std::uint32_t>(pick(pick(2) == 0 ? 12 : geometry_.pages))};
      auto* words = reinterpret_cast<AtomicU64*>(&segment_->descriptor(page));
      words[pick(segment_->layout().descriptor_stride / 8)].store(plausible_word());
    }
  });
}

TEST_F(VerifyFuzzTest, EveryPageCanonicalWithRandomLinks) {
  fuzz([&] {
    for (std::uint32_t i = 0; i < geometry_.pages; ++i) {
      Descriptor& d = segment_->descriptor(PageIndex{i});
      const auto state = static_cast<PageState>(2 + pick(4));
      const WorkerId owner{
          static_cast<std::uint16_t>(state == PageState::kPending ? 1 + pick(2) : 0)};
      d.state.store(StateWord::make(state, 0, owner).raw);
      d.parent.store(
          Handle::page(PageIndex{static_cast<std::uint32_t>(pick(geometry_.pages))}, 0).raw);
      d.prefix_hash.store(pick(4));  // many in one bucket
      d.token_count.store(static_cast<std::uint16_t>(pick(7)));
      d.depth_class.store(static_cast<std::uint32_t>(pick(4)));
    }
  });
}

TEST_F(VerifyFuzzTest, PlausibleWordsInEveryArea) {
  fuzz([&] {
    for (std::uint64_t n = 1 + pick(30); n > 0; --n) {
      const AreaEntry& area = segment_->layout().areas[pick(segment_->layout().area_count)];
      const std::uint64_t words = area.stride * area.count / 8;
      reinterpret_cast<AtomicU64*>(segment_->data() + area.offset)[pick(words)].store(
          plausible_word());
    }
  });
}

TEST_F(VerifyFuzzTest, WholeAreasOfGarbage) {
  fuzz([&] {
    const AreaEntry& area = segment_->layout().areas[pick(segment_->layout().area_count)];
    for (std::uint64_t i = 0; i < area.stride * area.count; ++i) {
      segment_->data()[area.offset + i] = static_cast<std::byte>(random_());
    }
  });
}

TEST_F(VerifyFuzzTest, WholeSegmentOfGarbage) {
  fuzz([&] {
    for (std::uint64_t i = 0; i + 8 <= bytes_; i += 8) {
      const std::uint64_t word = random_();
      std::memcpy(segment_->data() + i, &word, sizeof word);
    }
  });
}

TEST_F(VerifyFuzzTest, SuperblockOfGarbage) {
  fuzz([&] {
    for (std::uint64_t i = 0; i < sizeof(Superblock); ++i) {
      segment_->data()[i] = static_cast<std::byte>(random_());
    }
  });
}

}  // namespace
}  // namespace kvtrie
