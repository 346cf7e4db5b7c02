// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What came of a mix: the table of calls with their answers, and the verdict.
#pragma once

#include <cstdint>
#include <string>

#include "tools/replay/mix_board.h"
#include "tools/replay/observer.h"

namespace kvtrie::replay {

// A run of so many operations has used every call.
inline constexpr std::uint64_t kMixLongEnough = 4000;

// The sum of all workers' tallies.
void add_mix(const SharedPlan& plan, MixTally& sum);

// One line a call, all of them, used or not; then what came of the operations.
std::string mix_to_text(const MixTally& sum);
// {"calls": {"begin": {"ok": 12}}, "events": {"operations": 40}}
std::string mix_to_json(const MixTally& sum);

// Empty, or what is wrong: calls that a long run did not use.
std::string mix_problem(const MixTally& sum);

// Empty, or what `kvtrie verify` would say of the cache once the workers have gone. `alone`: nobody else uses it.
std::string verify_problem(const Observer& observer, bool alone);

}  // namespace kvtrie::replay
