// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A llama_context with several sequences, as the engine (llama_engine.h) and the run without a
// cache (llama_replay.h) use it: the same settings, so that they can be compared.
//
// Thread safety: a model may be used by several sessions in several threads; a session is one
// thread's.
#pragma once

#include <llama.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tools/engine/board.h"
#include "worker_plugin/llama/kvtrie_llama.h"

namespace kvtrie::engine {

class LlamaModel {
 public:
  // `back_end`: libggml-cpu-NAME.so, empty: the best for this CPU. One a process. Throws
  // std::runtime_error.
  LlamaModel(const std::string& file, const std::string& back_end);

  [[nodiscard]] llama_model* get() const { return model_.get(); }
  [[nodiscard]] const llama_model_params& params() const { return params_; }
  [[nodiscard]] std::uint32_t words() const { return words_; }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
  };
  llama_model_params params_;
  std::unique_ptr<llama_model, Free> model_;
  std::uint32_t words_ = 0;
};

struct BatchToken {
  std::uint32_t slot = 0;  // the sequence id
  std::uint32_t position = 0;
  std::uint32_t token = 0;
  bool wanted = false;  // its logits
};

// 128 numbers of a page's KV, from all over it: enough to tell a wrong page from last bits.
inline constexpr std::size_t kSampleWords = 64;
using PageSample = std::array<std::uint32_t, kSampleWords>;
// Root mean square of the difference, of that of `right`.
[[nodiscard]] double deviation(const PageSample& page, const PageSample& right);

class LlamaSession {
 public:
  // Sequence ids below slots(settings); one more carries pages. Throws std::runtime_error.
  LlamaSession(const LlamaModel& model, const RunSettings& settings);

  [[nodiscard]] static std::uint32_t slots(const RunSettings& settings);
  [[nodiscard]] std::uint32_t batch_tokens() const { return params_.n_batch; }
  [[nodiscard]] const llama_context_params& params() const { return params_; }
  [[nodiscard]] llama_context* context() const { return context_.get(); }
  [[nodiscard]] const llama::StateShape& shape() const { return shape_; }

  void decode(std::span<const BatchToken> tokens);
  // Of the batch's token `index`, which wanted them; model.words() of them, until the next
  // decode().
  [[nodiscard]] std::span<const float> logits(std::size_t index) const;
  // KV at positions from `first` on.
  void remove(std::uint32_t slot, std::uint32_t first);
  // A state of `count` tokens, which says their positions itself; checked by shape().fits() before.
  void import(std::uint32_t slot, std::uint32_t count, std::span<const std::byte> state);
  // The other way, in order, into shape().bytes(count) bytes.
  void export_to(std::uint32_t slot, std::uint32_t first, std::uint32_t count, std::byte* page);

 private:
  struct Free {
    void operator()(llama_context* context) const { llama_free(context); }
  };
  const LlamaModel& model_;
  llama_context_params params_;
  std::unique_ptr<llama_context, Free> context_;
  llama_memory_t memory_;
  llama_seq_id scratch_;
  llama::StateShape shape_;
  std::vector<std::byte> buffer_;
};

// Before the KV in a state of so many cells (page_state.h).
inline constexpr std::size_t state_head_bytes(std::size_t cells) { return 24 + 12 * cells; }
// Of `count` tokens in a state of shape.bytes(count).
[[nodiscard]] PageSample sample_of(std::span<const std::byte> state, std::uint32_t count);

}  // namespace kvtrie::engine
