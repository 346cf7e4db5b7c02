// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// After a death: what the coordinator does, what must hold then, and the survivors that go on.
#pragma once

#include <span>
#include <string>

#include "tests/crash/scenario.h"

namespace kvtrie::test {

// What a coordinator that lives does after the kernel reported the death of the slot's process.
void reap_slot(const Segment& segment, WorkerId dead);

// What the next coordinator does after the last one died: coordinator/coordinator.cc, take_over().
void take_over(const Segment& segment, std::span<const WorkerId> dead);

// One of the two, as the scenario's dead ask for.
void recover(const Segment& segment, const Scenario& scenario);

// Recovers, checks, lets the survivors go on for a bounded number of steps, and empties the cache,
// checking all the way. Returns what was violated, or an empty text.
std::string judge(CrashWorld& world, const Scenario& scenario, bool returned);
// The same when somebody recovered already.
std::string judge_recovered(CrashWorld& world, const Scenario& scenario, bool returned);

}  // namespace kvtrie::test
