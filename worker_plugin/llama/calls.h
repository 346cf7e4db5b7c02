// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The functions of llama.cpp that the adapter calls, as a table. The adapter links no libllama: a process that shares
// prefixes has one already, often loaded by somebody else with RTLD_LOCAL (a node addon), and a second copy of the
// library would know nothing of its contexts. Programs that link libllama take linked_calls(); others
// find_loaded_llama() and find_calls().
#pragma once

#include <llama.h>

#include <string>
#include <vector>

// Name by name, for the table and for those who fill it.
#define KVTRIE_LLAMA_CALLS(CALL) \
  CALL(llama_version)            \
  CALL(llama_decode)             \
  CALL(llama_synchronize)        \
  CALL(llama_max_devices)        \
  CALL(llama_get_model)          \
  CALL(llama_get_memory)         \
  CALL(llama_n_ctx)              \
  CALL(llama_n_ctx_seq)          \
  CALL(llama_n_ubatch)           \
  CALL(llama_n_seq_max)          \
  CALL(llama_memory_seq_rm)      \
  CALL(llama_memory_seq_cp)      \
  CALL(llama_memory_seq_pos_max) \
  CALL(llama_state_seq_get_size) \
  CALL(llama_state_seq_get_data) \
  CALL(llama_state_seq_set_data) \
  CALL(llama_perf_context_reset) \
  CALL(llama_model_desc)         \
  CALL(llama_model_size)         \
  CALL(llama_model_n_params)     \
  CALL(llama_model_n_layer)      \
  CALL(llama_model_n_ctx_train)  \
  CALL(llama_model_n_swa)        \
  CALL(llama_model_rope_type)    \
  CALL(llama_model_ftype)        \
  CALL(llama_model_meta_val_str) \
  CALL(llama_model_has_encoder)  \
  CALL(llama_model_has_decoder)  \
  CALL(llama_model_is_recurrent) \
  CALL(llama_model_is_hybrid)    \
  CALL(llama_model_is_diffusion) \
  CALL(ggml_type_name)           \
  CALL(ggml_is_quantized)        \
  CALL(ggml_backend_dev_name)    \
  CALL(ggml_backend_reg_count)   \
  CALL(ggml_backend_reg_get)     \
  CALL(ggml_backend_reg_name)

namespace kvtrie::llama {

struct Calls {
#define KVTRIE_LLAMA_MEMBER(name) decltype(&::name) name = nullptr;
  KVTRIE_LLAMA_CALLS(KVTRIE_LLAMA_MEMBER)
#undef KVTRIE_LLAMA_MEMBER
};

// Only in programs that link libllama and libggml.
inline Calls linked_calls() {
  Calls calls;
#define KVTRIE_LLAMA_TAKE(name) calls.name = &::name;
  KVTRIE_LLAMA_CALLS(KVTRIE_LLAMA_TAKE)
#undef KVTRIE_LLAMA_TAKE
  return calls;
}

// The libllama that is in this process, whoever loaded it and with whatever scope.
struct LoadedLibrary {
  void* handle = nullptr;  // for dlsym; never closed. NULL: none is loaded
  std::string path;
  std::string problem;  // not empty: why nothing should be shared through it
};
struct LoadedCopy {
  void* handle = nullptr;  // for dlsym; never closed
  std::string path;
  const void* object = nullptr;  // where it is mapped
};
// All that are loaded, in that order. `not_in`: as below.
std::vector<LoadedCopy> find_loaded_copies(const void* not_in);
// Where the object that has this address is mapped. NULL: none has.
const void* object_of(const void* address);

// `not_in`: an address in the object that asks, whose own definitions of the same names do not count. Several copies of
// libllama in one process are a problem: nobody could say which one a context belongs to; the handle is of the first.
LoadedLibrary find_loaded_llama(const void* not_in);

// From such a handle. False: one is missing, whose name is in `missing`: another version of llama.cpp.
bool find_calls(void* handle, Calls& calls, std::string& missing);

}  // namespace kvtrie::llama
