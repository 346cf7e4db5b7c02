// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What came of a run: sums of all workers, answers compared, times, pages; as text and JSON.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/engine/board.h"
#include "tools/engine/llama_result.h"
#include "tools/engine/options.h"
#include "tools/replay/observer.h"

namespace kvtrie::engine {

struct Spread {
  std::uint64_t count = 0;
  double median_us = 0;
  double mean_us = 0;
  double most_us = 0;
};

struct RunResult {
  std::string failure;  // why it did not come to its end
  double seconds = 0;
  std::uint32_t finished = 0;
  std::uint32_t wrong_answers = 0;
  std::string first_wrong;
  std::vector<std::uint32_t> wrong_requests;
  std::array<std::uint64_t, kCounts> counts{};
  std::array<std::uint64_t, kStages> failures{};
  std::array<std::uint64_t, kStages> kills{};
  Spread first_token;               // of all requests; of a run with a slow worker, of the others'
  Spread woken;                     // kill_owner: from the owner's death to the end of the wait of who took over
  double tokens_a_prompt = 0;       // --same-prompt: computed by all workers together
  std::uint32_t takeovers_max = 0;  // kill_owner: of a prompt, those who computed more than a page of it at the end
  std::uint64_t pages_free = 0;
  std::uint64_t pages_cached = 0;
  std::uint64_t pages_lost = 0;
  std::uint64_t evictions = 0;
  std::optional<LlamaResult> llama;  // with --engine llama: instead of wrong_answers
  std::string first_wrong_page;      // in the cache, of a run with wrong outputs
  std::string kept;                  // where all of a run that is wrong is
  std::string verify;                // what `kvtrie verify` would say; empty: clean

  [[nodiscard]] bool right() const {
    return failure.empty() && wrong_answers == 0 && pages_lost == 0 && verify.empty() &&
           (!llama || llama->first_wrong().empty());
  }
};

// All that the board says.
void add_board(const Board& board, const EngineOptions& options, RunResult& result);
// Compares each answer with the one of the request alone, without a cache.
void compare_answers(const Board& board, const EngineOptions& options, RunResult& result);

[[nodiscard]] std::string to_text(const RunResult& result, const EngineOptions& options);
[[nodiscard]] std::string to_json(const RunResult& result, const EngineOptions& options);

}  // namespace kvtrie::engine
