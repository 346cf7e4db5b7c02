// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A library that computes with the libllama that it was linked with, whoever loads it.
#include <llama.h>

#include "tests/llama/words.h"

// How many lines that libllama wrote to its log says whether it was the one that loaded the model.
extern "C" __attribute__((visibility("default"))) std::uint64_t odd_plugin_run(const char* path, int* lines) {
  llama_log_set([](ggml_log_level, const char*, void* count) { ++*static_cast<int*>(count); }, lines);
  llama_model* const model = llama_model_load_from_file(path, llama_model_default_params());
  if (model == nullptr) return 0;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 512;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  llama_context* const context = llama_init_from_model(model, params);
  Tokens tokens = words(1, 200);
  const int code = llama_decode(context, llama_batch_get_one(tokens.data(), 200));
  const float* const logits = code == 0 ? llama_get_logits_ith(context, -1) : nullptr;
  const auto size = static_cast<std::size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
  const std::uint64_t hash = logits == nullptr ? 0 : XXH3_64bits(logits, size * sizeof *logits);
  llama_free(context);
  llama_model_free(model);
  return hash;
}
