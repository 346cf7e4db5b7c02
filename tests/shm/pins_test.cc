// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/pins.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>

#include "shm/lease_table.h"
#include "shm/page_table.h"
#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

class PinTableTest : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = std::move(*test::nameless_object(layout_of(geometry_).segment_bytes));
    Result<Segment> segment = test::build_segment(fd_.get(), geometry_);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
    pins_.emplace(*segment_);
    segment_->name_space({0}).root_generation.store(1);
    for (std::uint32_t page : {3U, 4U})
      set_state(page, PageState::kLive, 7);
  }
  void set_state(std::uint32_t page, PageState state, std::uint64_t generation) {
    segment_->descriptor({page}).scope.store(scope_of({0}, 1));
    segment_->descriptor({page}).state.store(StateWord::make(state, generation).raw);
  }
  static Handle page(std::uint32_t index, std::uint64_t generation = 7) {
    return Handle::page(PageIndex{index}, generation);
  }
  bool valid_at_rest() const {
    for (std::uint32_t i = 0; i < segment_->pins().size(); ++i) {
      if (!pins_->validate(i, true).empty()) return false;
    }
    return LeaseTable(*segment_).validate().empty();
  }

  const Geometry geometry_ = test::small_geometry();
  FileDescriptor fd_;
  std::optional<Segment> segment_;
  std::optional<PinTable> pins_;
};

TEST_F(PinTableTest, PinIsALeaseOfSlotZeroWithAReason) {
  const Result<std::uint32_t> pin = pins_->pin(page(3), "why", 9);
  ASSERT_TRUE(pin);
  EXPECT_EQ(LeaseTable(*segment_).stats().pins, 1U);
  EXPECT_EQ(segment_->worker(kCoordinatorSlot).leases_high_water.load(), *pin + 1);
  const std::vector<Pin> pins = pins_->list();
  ASSERT_EQ(pins.size(), 1U);
  EXPECT_EQ(pins[0].page, page(3));
  EXPECT_EQ(pins[0].reason, "why");
  EXPECT_EQ(pins[0].expiry_tick, 9U);
  ASSERT_TRUE(pins_->unpin(*pin, page(3)));
  EXPECT_TRUE(pins_->list().empty());
  EXPECT_TRUE(valid_at_rest());
}

TEST_F(PinTableTest, LongReasonIsCutAndEnded) {
  ASSERT_TRUE(pins_->pin(page(3), std::string(200, 'x'), 0));
  EXPECT_EQ(pins_->list()[0].reason, std::string(55, 'x'));
  EXPECT_TRUE(valid_at_rest());
}

TEST_F(PinTableTest, PageThatWentIsNotPinned) {
  EXPECT_EQ(pins_->pin(page(3, 6), "old life", 0).error().code(), Code::kNotFound);
  EXPECT_EQ(pins_->pin(page(5, 0), "free", 0).error().code(), Code::kNotFound);
  EXPECT_EQ(pins_->pin(page(1U << 23), "none", 0).error().code(), Code::kNotFound);
  EXPECT_EQ(pins_->pin(Handle::root({0}, 1), "a root", 0).error().code(), Code::kNotFound);
  EXPECT_TRUE(pins_->list().empty());
  EXPECT_TRUE(valid_at_rest());
}

TEST_F(PinTableTest, CondemnedPageIsRescued) {
  set_state(3, PageState::kCondemned, 7);
  ASSERT_TRUE(pins_->pin(page(3), "why", 0));
  EXPECT_EQ(PageTable(*segment_).state({3}).state(), PageState::kLive);
}

TEST_F(PinTableTest, NumberOfAnotherPageIsNotEnded) {
  ASSERT_TRUE(pins_->pin(page(3), "why", 0));
  EXPECT_EQ(pins_->unpin(0, page(4)).code(), Code::kNotFound);
  EXPECT_EQ(pins_->unpin(1, page(3)).code(), Code::kNotFound);
  EXPECT_EQ(pins_->unpin(1U << 20, page(3)).code(), Code::kNotFound);
  EXPECT_EQ(pins_->list().size(), 1U);
}

TEST_F(PinTableTest, EndsAtItsTickAlsoAcrossTheWrap) {
  ASSERT_TRUE(pins_->pin(page(3), "soon", 5));
  ASSERT_TRUE(pins_->pin(page(4), "never", 0));
  EXPECT_EQ(pins_->drop_ended(0xFFFF'FFF0), 0U) << "21 ticks before";
  EXPECT_EQ(pins_->drop_ended(4), 0U);
  EXPECT_EQ(pins_->drop_ended(5), 1U);
  ASSERT_EQ(pins_->list().size(), 1U);
  EXPECT_EQ(pins_->list()[0].reason, "never");
}

TEST_F(PinTableTest, EndsWithItsNamespacesGeneration) {
  ASSERT_TRUE(pins_->pin(page(3), "why", 0));
  EXPECT_EQ(pins_->drop_ended(1), 0U);
  segment_->name_space({0}).root_generation.store(2);
  EXPECT_EQ(pins_->drop_ended(1), 1U);
  EXPECT_FALSE(pins_->any());
}

TEST_F(PinTableTest, RecoveryKeepsWhatProtectsAndClearsTheRest) {
  ASSERT_TRUE(pins_->pin(page(3), "kept", 0));
  ASSERT_TRUE(pins_->pin(page(4), "its page went", 0));
  set_state(4, PageState::kFree, 8);
  PinRecord& half = segment_->pins()[2];  // a death before the lease
  half.expiry_tick.store(1);
  half.reason[0] = 'x';
  EXPECT_FALSE(valid_at_rest());
  pins_->recover();
  pins_->recover();
  ASSERT_EQ(pins_->list().size(), 1U);
  EXPECT_EQ(pins_->list()[0].reason, "kept");
  EXPECT_TRUE(valid_at_rest());
}

TEST_F(PinTableTest, EverySlotCanBeTaken) {
  const auto slots = static_cast<std::uint32_t>(segment_->pins().size());
  for (std::uint32_t i = 0; i < slots; ++i)
    EXPECT_EQ(*pins_->pin(page(3), "all", 0), i);
  EXPECT_EQ(pins_->pin(page(3), "one more", 0).error().code(), Code::kFull);
}

TEST_F(PinTableTest, ExpiryIsNeverZeroNorInThePast) {
  EXPECT_EQ(expiry_tick_after(*segment_, 0), 0U);
  const std::uint32_t now = segment_->now_tick();
  for (const std::uint32_t seconds : {1U, 4'000'000'000U}) {
    const std::uint32_t tick = expiry_tick_after(*segment_, seconds);
    EXPECT_NE(tick, 0U);
    EXPECT_GT(static_cast<std::int32_t>(tick - now), 0);
  }
}

}  // namespace
}  // namespace kvtrie
