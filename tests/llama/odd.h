// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the modes of odd_engine share: a model, a context, and a line for each batch with a hash of its logits.
#pragma once

#include <llama.h>

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

#include "tests/llama/words.h"

struct Odd {
  std::string model_path;
  std::string more;
  llama_model_params model_params = llama_model_default_params();
  llama_context_params params = llama_context_default_params();
  llama_model* model = nullptr;
  llama_context* context = nullptr;
  llama_memory_t memory = nullptr;
  std::uint64_t hash = 0;  // of all logits
  bool quiet = false;

  void load() {
    model = llama_model_load_from_file(model_path.c_str(), model_params);
    if (model == nullptr) std::exit(9);
  }
  void make() {
    context = llama_init_from_model(model, params);
    if (context == nullptr) std::exit(8);
    memory = llama_get_memory(context);
  }
  void start() {
    load();
    make();
  }
  void decode(const char* step, const Tokens& tokens, int from, llama_seq_id sequence = 0) {
    llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      batch.token[i] = tokens[i];
      batch.pos[i] = from + static_cast<int>(i);
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = sequence;
      batch.logits[i] = i + 1 == tokens.size() ? 1 : 0;
    }
    batch.n_tokens = static_cast<std::int32_t>(tokens.size());
    const int code = llama_decode(context, batch);
    llama_batch_free(batch);
    say(step, code, static_cast<std::int32_t>(tokens.size()) - 1);
  }
  // The logits at this place of the last batch.
  void say(const char* step, int code, std::int32_t place) {
    const float* const logits = code == 0 ? llama_get_logits_ith(context, place) : nullptr;
    const auto size = static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
    const std::uint64_t now = logits == nullptr ? 0 : XXH3_64bits(logits, size * sizeof *logits);
    hash = hash * 31 + now;
    if (quiet) return;
    std::printf("%s %d %016" PRIx64 "\n", step, code, now);
    std::fflush(stdout);
  }
  void remove(int from) const { (void)llama_memory_seq_rm(memory, 0, from, -1); }
};

using Modes = std::map<std::string, std::function<void(Odd&)>>;
// Programs that change what is computed, or load other libraries.
const Modes& changes();
