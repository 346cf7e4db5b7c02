// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The run without a cache: the schedule of a worker once more, batch by batch, in a llama_context
// that gets nothing from anywhere. What came from the cache is computed there instead, at the same
// moment and so in the same cells; all that follows are the same tokens of the same sequences in
// the same llama_decode. At each place where the worker chose a token the choice is made again and
// compared; then the worker's own token goes on, so that one difference does not become one of all
// that follows.
#pragma once

#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "tools/engine/llama_result.h"
#include "tools/engine/llama_session.h"

namespace kvtrie::engine {

struct Replayed {
  LlamaResult result;
  std::vector<float> gaps;                                                       // between the two top logits
  std::vector<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> choices;  // request, position, token
};

// All schedules in `directory`, as many at a time as there are processors. A page that is off by
// more than `page_bound` is a wrong one. Results are in order of requests. Throws
// std::runtime_error.
[[nodiscard]] Replayed replay_all(const std::string& directory, const LlamaModel& model, const RunSettings& settings,
                                  std::uint32_t tokens_per_page, double page_bound,
                                  const std::function<bool()>& asked_to_end);

}  // namespace kvtrie::engine
