// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A workload of the form of a trace, for tests and for machines that have none. What it contains:
//
//   * eight system prompts of 1 to 8 blocks, the first ones chosen much more often;
//   * conversations: each turn repeats the former prompt, its answer and a new question, after a
//     think time of seconds to minutes; most end soon, some go on for many turns;
//   * the same prompt sent once more (a regenerated answer);
//   * long documents that are asked about once, a third of them without a system prompt.
//
// As in a real trace the last block of a prompt is mostly incomplete: its id stands for the text so
// far, and the next turn has another id in its place. An id therefore always has the same
// predecessors. Ids count up from 0, times are in order.
//
// The result depends on `requests` and `seed` only, on every machine; a longer workload begins with
// the shorter one of the same seed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tools/replay/trace.h"

namespace kvtrie::replay {

[[nodiscard]] std::vector<Request> generate(std::size_t requests, std::uint64_t seed);

}  // namespace kvtrie::replay
