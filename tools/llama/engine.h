// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The smallest engine on llama.cpp: a model, a context, one greedy answer at a time, with or without the shared cache.
#pragma once

#include <llama.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dump/dumper.h"
#include "worker_plugin/llama/kvtrie_llama.h"
#include "worker_plugin/llama/kvtrie_dump.h"

namespace kvtrie::llama {

struct EngineError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct EngineOptions {
  std::string model;
  std::string back_end;          // "haswell", ...: libggml-cpu-NAME.so; empty: the best for this CPU
  std::uint32_t context = 4096;  // tokens
  std::uint32_t batch = 512;     // tokens a llama_decode
  int threads = 1;
  bool flash_attention = false;
  std::string kv_type = "f16";  // f16, f32, q8_0 (that one with flash attention)
  std::string cache;            // empty: none
  std::string directory;        // of kvtried --dir; empty: the default one
  std::string hash_memory;
  std::string tenant;
  WaitSettings wait{.mode = WaitSettings::Mode::kAuto};
  std::uint32_t tag = 0;       // of all its requests
  dump::DumpOptions dump{};    // with a cache
  bool ask_for_dumps = false;  // of all its requests, whatever their tag
};

struct Answer {
  std::vector<llama_token> tokens;
  std::size_t prompt_tokens = 0;
  std::size_t cached_tokens = 0;  // of the prompt: not computed
  double first_token_ms = 0;      // from begin to the first token chosen
  double total_ms = 0;
  double decode_ms = 0;           // inside llama_decode, up to the first token
  double wait_ms = 0;             // for what another process computed
  std::uint64_t logits_hash = 0;  // of the logits that the last token was chosen from
};

class Engine {
 public:
  // Throws EngineError; Refused where the cache cannot be shared.
  explicit Engine(const EngineOptions& options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  std::vector<llama_token> tokenize(const std::string& text) const;
  std::string text(const std::vector<llama_token>& tokens) const;
  std::int32_t vocabulary() const;
  // Greedy; up to `count` tokens, fewer when the model ends. The sequence is empty before and after.
  Answer answer(const std::vector<llama_token>& prompt, std::size_t count);

  // Of a state of that many tokens: the --page-bytes for kvtried, in whole 64 bytes.
  std::size_t page_bytes(std::uint32_t tokens_per_page);
  const SharedContext* shared() const { return shared_ ? &*shared_ : nullptr; }
  double load_ms() const { return load_ms_; }
  double attach_ms() const { return attach_ms_; }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
    void operator()(llama_context* context) const { llama_free(context); }
  };
  void decode(const std::vector<llama_token>& tokens, std::size_t from, std::size_t to);
  double decode_next(SharedSequence* sequence, const std::vector<llama_token>& tokens, std::size_t from,
                     std::size_t to);

  EngineOptions options_;
  std::unique_ptr<llama_model, Free> model_;
  std::unique_ptr<llama_context, Free> context_;
  dump::Dumper dumper_;
  std::optional<SharedCache> cache_;
  std::optional<SharedContext> shared_;
  double load_ms_ = 0;
  double attach_ms_ = 0;
};

}  // namespace kvtrie::llama
