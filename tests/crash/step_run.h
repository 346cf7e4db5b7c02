// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Kills one scenario's victim at machine instructions of its operation, each time a new one in a
// new cache, and judges what is left.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/crash/scenario.h"
#include "tests/crash/stepper.h"

namespace kvtrie::test {

struct StepPlan {
  bool all = false;  // every instruction
  std::size_t stride =
      64;  // else each of these, and where the segment changed, with the one before and after
  std::size_t shard = 0;  // of these only every shard_count-th
  std::size_t shard_count = 1;
  void (*on_start)() = nullptr;  // in the victim
};

struct StepViolation {
  std::size_t k = 0;
  Address address = 0;
  std::string text;
};

struct StepOutcome {
  std::size_t instructions = 0;
  std::size_t states = 0;  // different shared bytes, those before the operation too
  std::size_t kills = 0;
  std::size_t images = 0;  // different shared bytes after a kill: each is judged
  std::size_t off_route = 0;  // killed, but at another instruction than was recorded
  std::vector<StepViolation> violations;
};

// Steps through the operation once.
Recording record(CrashWorld& world, const Scenario& scenario, const StepPlan& plan,
                 StepOutcome& outcome);

// The instructions that the plan asks for, ascending.
std::vector<std::size_t> places_to_kill(const Recording& recording, const Scenario& scenario, const StepPlan& plan);

// `before_kill` is told each k.
StepOutcome step_and_kill(CrashWorld& world, const Scenario& scenario, const StepPlan& plan,
                          const std::function<void(std::size_t k)>& before_kill);

}  // namespace kvtrie::test
