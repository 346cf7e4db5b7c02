// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What fuzzing found, told without a fuzzer: each case once crashed, did not end, or gave out something wrong.

#include <gtest/gtest.h>

#include "coordinator/reaper.h"
#include "shm/worker_table.h"
#include "tests/fuzz/world.h"

namespace kvtrie::fuzz {
namespace {

class FindingsTest : public ::testing::Test {
 protected:
  FindingsTest() { world_.reset(); }

  World& world_ = World::get();
  const Segment& segment_ = world_.segment();
};

// It looked at the slot again and again.
TEST_F(FindingsTest, AdoptingAnImpossibleSlotEnds) {
  const LogSink log = [](std::string_view) {};
  for (const std::uint64_t word : {std::uint64_t{0x107}, ~std::uint64_t{0}}) {
    world_.reset();
    segment_.worker({2}).slot_state.store(word);
    Reaper reaper(segment_, world_.device(), log);
    ASSERT_FALSE(reaper.start());
    Reaper::AdoptSlots slots;
    EXPECT_FALSE(reaper.adopt(slots));
    EXPECT_EQ(slots.alive, 2U);
    EXPECT_TRUE(segment_.poisoned());
  }
}

}  // namespace
}  // namespace kvtrie::fuzz
