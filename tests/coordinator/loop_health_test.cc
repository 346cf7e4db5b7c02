// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/loop_health.h"

#include <gtest/gtest.h>

namespace kvtrie {
namespace {

TEST(LoopHealthTest, SleepIsHealthAndLongWorkIsNot) {
  LoopHealth health;
  const std::int64_t later = LoopHealth::now() + std::chrono::nanoseconds(std::chrono::hours(1)).count();
  health.sleeps();
  EXPECT_EQ(health.problem_at(later), "");
  health.works();
  EXPECT_EQ(health.problem(), "");
  EXPECT_NE(health.problem_at(later).find("restart"), std::string::npos);
  health.sleeps();
  EXPECT_EQ(health.problem_at(later), "");
}

}  // namespace
}  // namespace kvtrie
