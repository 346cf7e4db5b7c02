// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which texts go on: the loop and the reference (reference.h) choose alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/engine/engine.h"

namespace kvtrie::engine {

struct NextBeam {
  std::uint32_t parent = 0;  // index of the beam that it continues
  std::uint32_t token = 0;
  std::uint64_t cost = 0;  // of the whole text
};

// The `width` cheapest continuations of all beams, best first; of equal cost those of the first beam and candidate.
// With one beam its `width` best candidates. costs[i] and candidates[i] are of beam i.
[[nodiscard]] std::vector<NextBeam> choose_beams(std::span<const std::uint64_t> costs,
                                                 std::span<const std::vector<Candidate>> candidates,
                                                 std::uint32_t width);

}  // namespace kvtrie::engine
