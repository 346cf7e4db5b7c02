// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The requests of a run: a function of seed and index, so that every process makes its own without telling another.
//
//   mixed   system prompts that many share, documents below them that some share, questions of one's own; the same
//           request once more; now and then beam search
//   same    groups of as many requests as there are workers, all with one new prompt: what in-flight sharing is about
#pragma once

#include <cstdint>
#include <vector>

namespace kvtrie::engine {

inline constexpr std::uint32_t kOutputMax = 32;
inline constexpr std::uint32_t kBeamsMax = 4;
inline constexpr std::uint32_t kMixedPromptMax = 400;  // tokens of a mixed prompt, at most

struct RequestSpec {
  std::vector<std::uint32_t> prompt;  // at least 1 token
  std::uint32_t output = 1;           // tokens to generate, 1 to kOutputMax
  std::uint32_t beams = 1;            // 1: the best next token each time; up to kBeamsMax
};

struct Workload {
  std::uint64_t seed = 1;
  std::uint32_t same_tokens = 0;  // 0: mixed; else tokens of the prompts of `same`
  std::uint32_t workers = 1;      // of `same`: size of a group
};

[[nodiscard]] RequestSpec make_request(const Workload& workload, std::uint32_t index);

}  // namespace kvtrie::engine
