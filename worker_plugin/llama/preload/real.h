// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The functions of the libllama in this process that the preload library stands before.
#pragma once

#include <llama.h>

#include <cstdint>

#include "worker_plugin/llama/calls.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define KVTRIE_LLAMA_INTERPOSED(CALL)      \
  CALL(llama_model_load_from_file)         \
  CALL(llama_model_load_from_splits)       \
  CALL(llama_model_free)                   \
  CALL(llama_init_from_model)              \
  CALL(llama_free)                         \
  CALL(llama_n_seq_max)                    \
  CALL(llama_decode)                       \
  CALL(llama_encode)                       \
  CALL(llama_memory_clear)                 \
  CALL(llama_memory_seq_rm)                \
  CALL(llama_memory_seq_cp)                \
  CALL(llama_memory_seq_keep)              \
  CALL(llama_memory_seq_add)               \
  CALL(llama_memory_seq_div)               \
  CALL(llama_state_set_data)               \
  CALL(llama_state_load_file)              \
  CALL(llama_state_seq_set_data)           \
  CALL(llama_state_seq_set_data_ext)       \
  CALL(llama_state_seq_load_file)          \
  CALL(llama_set_adapters_lora)            \
  CALL(llama_set_adapter_cvec)             \
  CALL(llama_set_causal_attn)              \
  CALL(llama_set_embeddings)               \
  CALL(llama_set_warmup)                   \
  CALL(llama_opt_init)                     \
  CALL(llama_opt_epoch)                    \
  CALL(llama_sampler_sample)               \
  CALL(llama_get_logits_ith)               \
  CALL(llama_get_embeddings_ith)           \
  CALL(llama_get_sampled_token_ith)        \
  CALL(llama_get_sampled_probs_ith)        \
  CALL(llama_get_sampled_probs_count_ith)  \
  CALL(llama_get_sampled_logits_ith)       \
  CALL(llama_get_sampled_logits_count_ith) \
  CALL(llama_get_sampled_candidates_ith)   \
  CALL(llama_get_sampled_candidates_count_ith)

namespace kvtrie::llama {

struct Real {
#define KVTRIE_LLAMA_MEMBER(name) decltype(&::name) name = nullptr;
  KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_MEMBER)
#undef KVTRIE_LLAMA_MEMBER
  // C++ functions that no public header has; NULL: this llama.cpp has none.
  void (*set_embeddings_nextn)(llama_context*, bool, bool) = nullptr;
  void (*set_embeddings_layer_inp)(llama_context*, std::uint32_t, bool) = nullptr;
};

}  // namespace kvtrie::llama
