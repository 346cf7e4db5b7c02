// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The functions of libllama that the preload library stands before: by place, as a loaded copy of
// libllama has them, and with their types.
#pragma once

#include <llama.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "worker_plugin/llama/calls.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define KVTRIE_LLAMA_INTERPOSED(CALL)      \
  CALL(llama_model_load_from_file)         \
  CALL(llama_load_model_from_file)         \
  CALL(llama_model_load_from_splits)       \
  CALL(llama_model_free)                   \
  CALL(llama_free_model)                   \
  CALL(llama_init_from_model)              \
  CALL(llama_new_context_with_model)       \
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
  CALL(llama_state_seq_get_data)           \
  CALL(llama_state_seq_get_data_ext)       \
  CALL(llama_state_set_data)               \
  CALL(llama_set_state_data)               \
  CALL(llama_state_load_file)              \
  CALL(llama_load_session_file)            \
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
  CALL(llama_set_sampler)                  \
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

// C++ functions that no public header has (src/llama-ext.h), for speculative decoding, with their
// symbols.
void llama_set_embeddings_nextn(llama_context* context, bool on, bool masked);
void llama_set_embeddings_layer_inp(llama_context* context, std::uint32_t layer, bool on);

#define KVTRIE_LLAMA_INTERPOSED_CPP(CALL)                                            \
  CALL(llama_set_embeddings_nextn, _Z26llama_set_embeddings_nextnP13llama_contextbb) \
  CALL(llama_set_embeddings_layer_inp, _Z30llama_set_embeddings_layer_inpP13llama_contextjb)

namespace kvtrie::llama {

#define KVTRIE_LLAMA_PLACE(name, ...) name,
enum class Place : std::size_t {
  KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_PLACE) KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_PLACE) kCount
};
#undef KVTRIE_LLAMA_PLACE

using Function = void (*)();
// By place. NULL: this libllama has no such function.
using Functions = std::array<Function, static_cast<std::size_t>(Place::kCount)>;

// Of the version that this was built for: callable.
struct Real {
#define KVTRIE_LLAMA_MEMBER(name, ...) decltype(&::name) name = nullptr;
  KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_MEMBER)
  KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_MEMBER)
#undef KVTRIE_LLAMA_MEMBER

  explicit Real(const Functions& functions) {
    const auto take = [&functions](Place place, auto& member) {
      member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(functions[static_cast<std::size_t>(place)]);
    };
#define KVTRIE_LLAMA_TAKE(name, ...) take(Place::name, name);
    KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_TAKE)
    KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_TAKE)
#undef KVTRIE_LLAMA_TAKE
  }
};

// What is called instead, by callers of the copy that is looked at: preload.cc.
namespace interposed {
#define KVTRIE_LLAMA_DECLARE(name, ...) decltype(::name) name;
KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_DECLARE)
KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_DECLARE)
#undef KVTRIE_LLAMA_DECLARE
}  // namespace interposed

}  // namespace kvtrie::llama
