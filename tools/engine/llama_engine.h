// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// llama.cpp as the loop's engine. Each running sequence has a slot, a sequence id of one
// llama_context with a unified KV cache, and keeps its KV there from step to step. Of a sequence
// that has none (its prompt was cached, it was forked or resumed, or did not run for a while) the
// KV before `first` is taken from the pages. Behind each step the tokens that it computed are
// written to their pages:
//
//   a page that is full       a state of tokens_per_page tokens (page_state.h)
//   a page that is not        a state of as many as it has, written anew when there are more
//
// Pages are checked before llama.cpp reads them: one that is not of its positions throws, with its
// number.
#pragma once

#include <memory>
#include <vector>

#include "tools/engine/engine.h"
#include "tools/engine/llama_session.h"
#include "tools/engine/reference.h"
#include "tools/engine/schedule.h"

namespace kvtrie::engine {

// The best `wanted` next tokens, best first; of equal logits the lower token first.
[[nodiscard]] std::vector<ChosenToken> best_of(std::span<const float> logits, std::uint32_t wanted);

class LlamaEngine final : public Engine {
 public:
  // `schedule` may be null. `model` outlives it.
  LlamaEngine(const LlamaModel& model, const RunSettings& settings, const PageShape& shape,
              std::unique_ptr<ScheduleWriter> schedule);
  void step(std::span<Work> batch) override;

  [[nodiscard]] const LlamaSession& session() const { return session_; }

 private:
  struct Slot {
    std::uint64_t sequence = 0;  // 0: free
    std::uint64_t held = 0;      // KV of so many tokens is there
    std::uint64_t used = 0;      // in which step
  };

  std::vector<std::uint32_t> find_slots(std::span<const Work> batch);
  void empty(std::uint32_t slot, std::uint64_t first);
  void bring_in(std::uint32_t slot, const Work& work);
  void write_pages(std::uint32_t slot, const Work& work);
  void choose(std::uint32_t slot, std::size_t index, Work& work);
  void sabotage(std::span<std::byte> state, const std::byte* other);

  LlamaSession session_;
  const PageShape shape_;
  const Sabotage sabotage_;
  bool sabotaged_ = false;
  const std::uint64_t start_ns_;
  std::unique_ptr<ScheduleWriter> schedule_;
  std::vector<Slot> slots_;
  std::uint64_t steps_ = 0;
};

}  // namespace kvtrie::engine
