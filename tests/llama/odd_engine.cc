// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A program on llama.cpp that knows nothing of kvtrie and does one of the things that few programs do. Lines of what
// came out; with and without the preload library they are the same.
//   odd_engine MODE MODEL BACK_END_LIBRARY [MORE]
#include <dlfcn.h>
#include <ggml-backend.h>
#include <gguf.h>
#include <llama.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "tests/llama/odd.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"

namespace {

// How many allocations of the preload library succeed; then one fails.
std::int64_t allocations_left = -1;

bool asked_by_the_preload_library(const void* caller) {
  Dl_info info{};
  return ::dladdr(caller, &info) != 0 &&
         std::string_view(info.dli_fname).find("kvtrie-llama-preload") != std::string::npos;
}

void add_long_factors(Odd& odd) {
  ggml_context* tensors = nullptr;
  gguf_context* const from = gguf_init_from_file(odd.model_path.c_str(), {false, &tensors});
  gguf_context* const to = gguf_init_empty();
  gguf_set_kv(to, from);
  gguf_set_val_str(to, "llama.rope.scaling.type", "longrope");
  gguf_set_val_u32(to, "llama.rope.scaling.original_context_length", 512);
  for (ggml_tensor* t = ggml_get_first_tensor(tensors); t != nullptr; t = ggml_get_next_tensor(tensors, t)) {
    if (gguf_find_tensor(from, ggml_get_name(t)) >= 0) gguf_add_tensor(to, t);
  }
  const std::int64_t key = gguf_find_key(from, "llama.rope.dimension_count");
  const std::int64_t count = gguf_get_val_u32(from, key) / 2;
  ggml_context* const mine = ggml_init({1 << 20, nullptr, false});
  for (const bool is_long : {false, true}) {
    ggml_tensor* const factors = ggml_new_tensor_1d(mine, GGML_TYPE_F32, count);
    ggml_set_name(factors, is_long ? "rope_factors_long.weight" : "rope_factors_short.weight");
    for (std::int64_t i = 0; i < count; ++i)
      static_cast<float*>(ggml_get_data(factors))[i] = 1.0F + (is_long ? 2.0F : 0.02F) * static_cast<float>(i);
    gguf_add_tensor(to, factors);
  }
  if (!gguf_write_to_file(to, odd.more.c_str(), false)) std::exit(1);
  std::exit(0);
}

void without_weights(Odd& odd) {
  odd.model_params.no_alloc = true;
  odd.model_params.load_mode = LLAMA_LOAD_MODE_NONE;
  odd.start();
  std::puts("made");
}

void few_outputs(Odd& odd) {
  odd.params.n_seq_max = odd.params.n_outputs_max = 4;
  odd.params.kv_unified = true;
  odd.start();
  odd.decode("end", words(1, 200), 0);
}

// The last page of the first prompt is changed in its middle.
void edit(Odd& odd) {
  odd.start();
  odd.decode("first", words(1, 100), 0);
  odd.remove(90);
  odd.decode("edited", words(2, 200), 90);
}

void context_of(Odd& odd) {
  odd.params.n_ctx = static_cast<std::uint32_t>(std::atoi(odd.more.c_str()));
  odd.start();
  odd.decode("end", words(1, 200), 0);
}

void own_caches(Odd& odd) {
  odd.params.n_seq_max = 2;
  odd.start();
  odd.decode("end", words(1, 200), 0);
}

void model_replaced(Odd& odd) {
  odd.model_params.load_mode = LLAMA_LOAD_MODE_NONE;
  odd.load();
  if (!odd.more.empty() && std::rename(odd.more.c_str(), odd.model_path.c_str()) != 0) std::exit(7);
  odd.make();
  odd.decode("end", words(1, 200), 0);
}

// Relative, and the program goes elsewhere.
void elsewhere(Odd& odd) {
  if (::chdir(odd.more.c_str()) != 0) std::exit(7);
  odd.model_path = "model.gguf";
  odd.load();
  if (::chdir("/") != 0) std::exit(7);
  odd.make();
  odd.decode("end", words(1, 200), 0);
}

void ids_beyond(Odd& odd) {
  odd.params.kv_unified = odd.more == "unified";
  odd.start();
  odd.decode("first", words(3, 100), 0);
  odd.decode("beyond", words(1, 200), 0, 1);
  odd.decode("below", words(2, 200), 100);
  if (odd.params.kv_unified) {
    std::printf("there %d\n", llama_memory_seq_pos_max(odd.memory, 1));
    odd.decode("more", words(3, 10), 200, 1);
  }
}

// Cells of two sequences: who moves them for one moves them for the other.
void shifted_copy(Odd& odd) {
  odd.params.n_seq_max = 2;
  odd.params.kv_unified = true;
  odd.start();
  odd.decode("first", words(1, 106), 0);
  llama_memory_seq_cp(odd.memory, 0, 1, -1, -1);
  (void)llama_memory_seq_rm(odd.memory, 1, 10, 20);
  llama_memory_seq_add(odd.memory, 1, 20, -1, -10);
  odd.decode("behind", words(2, 200), 96);
}

void reader(Odd& odd) {
  odd.start();
  const Tokens tokens = joined(words(1, 96), words(2, 200));
  odd.decode("end", tokens, 0);
}

void not_causal(Odd& odd) {
  odd.start();
  llama_set_causal_attn(odd.context, false);
  odd.decode("end", words(1, 200), 0);
}

void warmed_up(Odd& odd) {
  odd.start();
  llama_set_warmup(odd.context, true);
  odd.decode("warm", words(1, 200), 0);
  llama_set_warmup(odd.context, false);
  odd.decode("behind", words(2, 100), 200);
  llama_memory_clear(odd.memory, true);
  odd.decode("end", words(3, 200), 0);
}

void with_a_child(Odd& odd) {
  odd.start();
  odd.decode("end", words(1, 200), 0);
  llama_free(odd.context);
  const pid_t child = ::fork();
  if (child == 0) std::exit(0);
  ::waitpid(child, nullptr, 0);
  std::printf("pid %d\n", static_cast<int>(::getpid()));
  std::fflush(stdout);
  ::_exit(0);
}

void parts(Odd& odd) {
  odd.params.n_ubatch = 64;
  odd.start();
  odd.decode("end", words(1, static_cast<std::size_t>(std::atoi(odd.more.c_str()))), 0);
}

// Each allocation that the library makes fails in one of the contexts.
void no_memory(Odd& odd) {
  odd.load();
  for (int succeeding = 0; succeeding < 160; succeeding += 1 + succeeding / 4) {
    odd.make();
    odd.decode("before", words(1, 40), 0);
    allocations_left = succeeding;
    odd.decode("end", words(succeeding % 2 == 0 ? 1U : 4U + static_cast<unsigned>(succeeding), 101), 40);
    (void)llama_memory_seq_rm(odd.memory, 0, 100, -1);
    allocations_left = -1;
    odd.decode("behind", words(3, 20), 100);
    llama_free(odd.context);
  }
}

// What standard input says: c empties the sequence, d computes a new prompt of MORE tokens, g goes on behind that, s
// takes the sequence's state out, r puts it back, b with another bit.
void told(Odd& odd) {
  odd.params.n_batch = 1024;
  odd.start();
  const int size = std::atoi(odd.more.c_str());
  std::uint32_t name = 20;
  std::vector<std::uint8_t> state;
  for (int c = 0; (c = std::getchar()) != EOF; ++name) {
    if (c == 'c') llama_memory_clear(odd.memory, true);
    if (c == 'd') odd.decode("told", words(name, static_cast<std::size_t>(size)), 0);
    if (c == 's') {
      state.resize(llama_state_seq_get_size(odd.context, 0));
      (void)llama_state_seq_get_data(odd.context, state.data(), state.size(), 0);
    }
    if (c == 'b') state[state.size() - 64] ^= 1;  // of a value in it
    if (c == 'b' || c == 'r') (void)llama_state_seq_set_data(odd.context, state.data(), state.size(), 0);
    for (int i = 0; c == 'g' && i < 48; ++i)
      odd.decode("told", words(name + static_cast<std::uint32_t>(i), 1), size + i);
  }
}

void none(Odd&) {}

}  // namespace

void* operator new(std::size_t bytes) {
  if (allocations_left >= 0 && asked_by_the_preload_library(__builtin_return_address(0)) && allocations_left-- == 0) {
    allocations_left = -1;
    throw std::bad_alloc();
  }
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

int main(int argc, char** argv) {
  const Modes modes = {
      {"add_long_factors", add_long_factors},
      {"without_weights", without_weights},
      {"few_outputs", few_outputs},
      {"edit", edit},
      {"context_of", context_of},
      {"own_caches", own_caches},
      {"model_replaced", model_replaced},
      {"elsewhere", elsewhere},
      {"ids_beyond", ids_beyond},
      {"shifted_copy", shifted_copy},
      {"reader", reader},
      {"not_causal", not_causal},
      {"warmed_up", warmed_up},
      {"with_a_child", with_a_child},
      {"parts", parts},
      {"no_memory", no_memory},
      {"told", told},
      {"none", none},
  };
  if (argc < 4 || (!modes.contains(argv[1]) && !changes().contains(argv[1]))) return 2;
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  if (ggml_backend_load(argv[3]) == nullptr) return 3;
  Odd odd;
  odd.model_path = argv[2];
  odd.more = argc > 4 ? argv[4] : "";
  odd.params.n_ctx = 1024;
  odd.params.n_batch = odd.params.n_ubatch = 512;
  odd.params.n_threads = odd.params.n_threads_batch = 1;
  odd.params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  (modes.contains(argv[1]) ? modes : changes()).at(argv[1])(odd);
  return 0;
}
