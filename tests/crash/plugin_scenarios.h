// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Calls of kvtrie.h and kvtrie_device.h that are killed at every instruction: the victim attaches to the
// world's coordinator by the plugin as it is shipped (dlopen, the table of calls), and dies in one call of it. And
// kvtried's own parts, killed while they answer. For step_kill only.
#pragma once

#include <vector>

#include "tests/crash/scenario.h"

namespace kvtrie::test {

// `plugin`: the library. One scenario a call at least, "plugin.CALL" or "plugin.CALL.case".
std::vector<Scenario> plugin_scenarios(const char* plugin);

// kvtried.*: the coordinator is the victim, and is asked through its socket.
std::vector<Scenario> served_scenarios();

}  // namespace kvtrie::test
