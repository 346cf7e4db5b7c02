// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/ids.h"

#include <gtest/gtest.h>

#include <array>
#include <string>

#include "shm/format.h"

namespace kvtrie {
namespace {

constexpr std::uint64_t kLastGeneration = (std::uint64_t{1} << kGenerationBits) - 1;
constexpr std::array kStates = {PageState::kFree, PageState::kWriting,   PageState::kPending,
                                PageState::kLive, PageState::kCondemned, PageState::kRetiring};

WorkerId owner_for(PageState state, std::uint16_t worker) {
  return state == PageState::kWriting || state == PageState::kPending ? WorkerId{worker}
                                                                      : WorkerId{};
}

TEST(StateWordTest, ZeroIsAFreePageOfGenerationZero) {
  constexpr StateWord word{};
  EXPECT_EQ(word.state(), PageState::kFree);
  EXPECT_EQ(word.generation(), 0U);
  EXPECT_EQ(word.owner(), WorkerId{});
  EXPECT_TRUE(word.well_formed());
}

TEST(StateWordTest, HoldsEachPartAndNothingElse) {
  for (const PageState state : kStates) {
    for (const std::uint64_t generation : {std::uint64_t{0}, std::uint64_t{1}, kLastGeneration}) {
      const WorkerId owner = owner_for(state, kWorkersMax);
      const StateWord word = StateWord::make(state, generation, owner);
      EXPECT_EQ(word.state(), state);
      EXPECT_EQ(word.generation(), generation);
      EXPECT_EQ(word.owner(), owner);
      EXPECT_TRUE(word.well_formed()) << name_of(state) << " " << generation;
    }
  }
}

TEST(StateWordTest, LargestWorkerSlotFitsTheOwnerField) {
  static_assert(kWorkersMax <= 0xFFF, "slot 1024 must fit the 12 bits of the owner");
  const StateWord word =
      StateWord::make(PageState::kWriting, kLastGeneration, WorkerId{kWorkersMax});
  EXPECT_EQ(word.owner().value, kWorkersMax);
}

TEST(StateWordTest, WithKeepsTheLife) {
  const StateWord word = StateWord::make(PageState::kWriting, 77, WorkerId{5});
  EXPECT_EQ(word.with(PageState::kPending, WorkerId{5}).generation(), 77U);
  EXPECT_EQ(word.with(PageState::kLive), StateWord::make(PageState::kLive, 77));
}

TEST(StateWordTest, RecycledIsFreeInTheNextLife) {
  EXPECT_EQ(StateWord::make(PageState::kRetiring, 8).recycled(),
            StateWord::make(PageState::kFree, 9));
}

TEST(StateWordTest, GenerationWrapsIntoItsOwnBits) {
  const StateWord word = StateWord::make(PageState::kRetiring, kLastGeneration).recycled();
  EXPECT_EQ(word.raw, 0U);
}

TEST(StateWordTest, AnOwnerTooLargeIsNotWellFormed) {
  EXPECT_FALSE((StateWord{std::uint64_t{0x1001} << 4 | 1}).well_formed());
}

TEST(StateWordTest, ReservedBitsUnknownStatesAndStrayOwnersAreNotWellFormed) {
  for (const PageState state : kStates) {
    const StateWord good = StateWord::make(state, 3, owner_for(state, 2));
    ASSERT_TRUE(good.well_formed());
    for (unsigned bit = 16; bit < 24; ++bit) {
      EXPECT_FALSE((StateWord{good.raw | std::uint64_t{1} << bit}).well_formed()) << bit;
    }
    for (unsigned bit = 62; bit < 64; ++bit) {
      EXPECT_FALSE((StateWord{good.raw | std::uint64_t{1} << bit}).well_formed()) << bit;
    }
    // Owned states need an owner, the others must have none.
    EXPECT_FALSE((StateWord{good.raw ^ std::uint64_t{2} << 4}).well_formed()) << name_of(state);
  }
  for (std::uint64_t state = kPageStates; state < 16; ++state) {
    EXPECT_FALSE((StateWord{state}).well_formed()) << state;
    EXPECT_STREQ(name_of(static_cast<PageState>(state)), "impossible");
  }
}

TEST(StateWordTest, ClassesOfStatesAreThoseOfTheRules) {
  auto word = [](PageState s) { return StateWord::make(s, 1, owner_for(s, 1)); };
  for (const PageState s : kStates) {
    EXPECT_EQ(word(s).readable(), s == PageState::kLive || s == PageState::kCondemned);
    EXPECT_EQ(word(s).owned(), s == PageState::kWriting || s == PageState::kPending);
    EXPECT_EQ(word(s).canonical(),
              s == PageState::kPending || s == PageState::kLive || s == PageState::kCondemned);
  }
}

TEST(HandleTest, ZeroIsNone) {
  constexpr Handle handle{};
  EXPECT_TRUE(handle.none());
  EXPECT_FALSE(handle.is_page());
  EXPECT_FALSE(handle.is_root());
}

TEST(HandleTest, FirstPageInItsFirstLifeIsNotNone) {
  const Handle handle = Handle::page(PageIndex{0}, 0);
  EXPECT_FALSE(handle.none());
  EXPECT_TRUE(handle.is_page());
}

TEST(HandleTest, HoldsLargestPageAndGeneration) {
  const PageIndex last{kPagesMax - 1};
  const Handle handle = Handle::page(last, kLastGeneration);
  EXPECT_TRUE(handle.is_page());
  EXPECT_EQ(handle.page_index(), last);
  EXPECT_EQ(handle.generation(), kLastGeneration);
  EXPECT_EQ(handle, Handle::page(last, StateWord::make(PageState::kLive, kLastGeneration)));
}

TEST(HandleTest, HoldsLargestNamespaceAndGeneration) {
  const Handle handle = Handle::root(NamespaceId{0xFFFF}, kLastGeneration);
  EXPECT_TRUE(handle.is_root());
  EXPECT_FALSE(handle.is_page());
  EXPECT_EQ(handle.namespace_id().value, 0xFFFF);
  EXPECT_EQ(handle.generation(), kLastGeneration);
}

TEST(HandleTest, RootAndPageOfEqualNumbersDiffer) {
  EXPECT_NE(Handle::page(PageIndex{3}, 4), Handle::root(NamespaceId{3}, 4));
}

TEST(HandleTest, NamesOneLifeInWhateverState) {
  const Handle handle = Handle::page(PageIndex{9}, 41);
  for (const PageState state : kStates) {
    EXPECT_TRUE(handle.same_life(StateWord::make(state, 41, owner_for(state, 7))));
    EXPECT_FALSE(handle.same_life(StateWord::make(state, 42, owner_for(state, 7))));
    EXPECT_FALSE(handle.same_life(StateWord::make(state, 40, owner_for(state, 7))));
  }
  EXPECT_FALSE(handle.same_life(StateWord::make(PageState::kLive, 41).recycled()));
}

TEST(HandleTest, BothHighBitsAreNoKind) {
  const Handle handle{std::uint64_t{3} << 62 | 5};
  EXPECT_FALSE(handle.is_page());
  EXPECT_FALSE(handle.is_root());
  EXPECT_FALSE(handle.none());
}

TEST(TouchWordTest, HoldsEachPart) {
  const TouchWord word = TouchWord::make(0xFFFF'FFFE, 0xFEDC, 0xAB, 0x5A);
  EXPECT_EQ(word.tick(), 0xFFFF'FFFEU);
  EXPECT_EQ(word.order(), 0xFEDC);
  EXPECT_EQ(word.touches(), 0xAB);
  EXPECT_EQ(word.hint_and_flags(), 0x5A);
}

TEST(TouchWordTest, StampOrdersByTickThenOrderAndIgnoresTheRest) {
  const auto stamp = [](std::uint32_t tick, std::uint16_t order, std::uint8_t touches) {
    return TouchWord::make(tick, order, touches, 0xFF).stamp();
  };
  EXPECT_LT(stamp(1, 0xFFFF, 255), stamp(2, 0, 0));
  EXPECT_LT(stamp(2, 1, 255), stamp(2, 2, 0));
  EXPECT_EQ(stamp(2, 2, 255), stamp(2, 2, 0));
}

}  // namespace
}  // namespace kvtrie
