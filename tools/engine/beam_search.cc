// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/beam_search.h"

#include <algorithm>

namespace kvtrie::engine {

std::vector<NextBeam> choose_beams(std::span<const std::uint64_t> costs,
                                   std::span<const std::vector<Candidate>> candidates, std::uint32_t width) {
  std::vector<NextBeam> all;
  for (std::uint32_t parent = 0; parent < costs.size(); ++parent) {
    for (const Candidate& candidate : candidates[parent])
      all.push_back({parent, candidate.token, costs[parent] + candidate.cost});
  }
  std::ranges::stable_sort(all, {}, &NextBeam::cost);
  if (all.size() > width) all.resize(width);
  return all;
}

}  // namespace kvtrie::engine
