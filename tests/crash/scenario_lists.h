// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The scenarios by operation; scenario.h has all of them in one list. A new operation is added to
// one of these.
#pragma once

#include <vector>

#include "tests/crash/scenario.h"

namespace kvtrie::test {

std::vector<Scenario> begin_scenarios();
std::vector<Scenario> allocate_scenarios();
std::vector<Scenario> publish_scenarios();
std::vector<Scenario> release_scenarios();
std::vector<Scenario> wait_scenarios();
std::vector<Scenario> incomplete_scenarios();
std::vector<Scenario> fork_scenarios();
std::vector<Scenario> batch_scenarios();
std::vector<Scenario> evict_scenarios();
std::vector<Scenario> recovery_scenarios();
std::vector<Scenario> admin_scenarios();
std::vector<Scenario> flush_scenarios();
std::vector<Scenario> look_scenarios();
std::vector<Scenario> device_scenarios();
std::vector<Scenario> interleaved_scenarios();  // closed under prefixes as they stand

}  // namespace kvtrie::test
