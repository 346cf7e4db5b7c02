// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/workload.h"

#include "tools/replay/random.h"

namespace kvtrie::engine {
namespace {

using replay::mix64;
using replay::Random;

// A text that is known by its number.
void append_text(std::uint64_t seed, std::uint64_t number, std::uint64_t tokens, std::vector<std::uint32_t>& to) {
  Random words(mix64(seed) ^ number);
  for (std::uint64_t i = 0; i < tokens; ++i)
    to.push_back(static_cast<std::uint32_t>(words.below(50'000)));
}

RequestSpec mixed(std::uint64_t seed, std::uint32_t index) {
  Random chance(mix64(seed + index));
  // The same request once more, and what it was is asked in the same way: it may be such a one itself.
  if (index > 0 && chance.percent(10)) {
    return mixed(seed, index - 1 - static_cast<std::uint32_t>(chance.below(index < 40 ? index : 40)));
  }
  RequestSpec spec;
  const std::uint64_t system = chance.below(1 + chance.below(12));  // the first ones more often
  if (chance.percent(90)) append_text(seed, 1000 + system, 24 + system * 13, spec.prompt);
  if (chance.percent(60)) {
    const std::uint64_t document = chance.below(1 + chance.below(60)) * 12 + system;
    append_text(seed, 100'000 + document, 16 + document % 120, spec.prompt);
  }
  append_text(seed, 10'000'000 + std::uint64_t{index}, 1 + chance.below(60), spec.prompt);
  spec.output = static_cast<std::uint32_t>(1 + chance.below(kOutputMax));
  if (chance.percent(8)) spec.beams = static_cast<std::uint32_t>(chance.between(2, kBeamsMax));
  return spec;
}

}  // namespace

RequestSpec make_request(const Workload& workload, std::uint32_t index) {
  if (workload.same_tokens == 0) return mixed(workload.seed, index);
  RequestSpec spec;
  append_text(workload.seed, 1'000'000'000 + std::uint64_t{index / workload.workers}, workload.same_tokens,
              spec.prompt);
  return spec;
}

}  // namespace kvtrie::engine
