// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Modes of odd_engine: what changes a model, a context or its outputs in mid-sequence, and second copies of libllama.
#include <dlfcn.h>
#include <ggml-opt.h>
#include <gguf.h>

#include <algorithm>
#include <array>
#include <thread>
#include <vector>

#include "tests/llama/odd.h"

// libllama's, in no public header.
void llama_set_embeddings_nextn(llama_context* context, bool on, bool masked);
void llama_set_embeddings_layer_inp(llama_context* context, std::uint32_t layer, bool on);
float* llama_get_embeddings_layer_inp(llama_context* context, std::uint32_t layer);

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // old_names()

namespace {

void hidden_states(Odd& odd) {
  odd.start();
  llama_set_embeddings_nextn(odd.context, true, false);
  llama_set_embeddings_nextn(odd.context, false, false);
  odd.decode("end", words(1, 200), 0);
}

// Of every token of the last batch, also of those that ask for no output.
void layer_inputs(Odd& odd) {
  odd.start();
  odd.decode("before", words(1, 100), 0);
  llama_set_embeddings_layer_inp(odd.context, 1, true);
  odd.remove(0);
  odd.decode("read", words(1, 200), 0);
  const auto size = static_cast<std::size_t>(llama_model_n_embd(odd.model)) * 200;
  const float* const states = llama_get_embeddings_layer_inp(odd.context, 1);
  std::printf("states %016" PRIx64 "\n", XXH3_64bits(states, size * sizeof *states));
  llama_set_embeddings_layer_inp(odd.context, 1, false);
  odd.decode("end", words(2, 100), 200);
}

// A batch that llama.cpp refuses: what came out of the one before is still to be had.
void encodes(Odd& odd) {
  odd.start();
  odd.decode("first", words(1, 200), 0);
  Tokens tokens = words(2, 10);
  std::printf("encode %d\n", llama_encode(odd.context, llama_batch_get_one(tokens.data(), 0)));
  odd.say("after it", 0, 199);
  llama_token wrong = -1;
  std::printf("decode %d\n", llama_decode(odd.context, llama_batch_get_one(&wrong, 1)));
  odd.say("after that", 0, 199);
  odd.decode("end", words(2, 100), 200);
}

// To MORE: a LoRA adapter for the first layer's values.
void add_lora(Odd& odd) {
  ggml_context* tensors = nullptr;
  gguf_context* const from = gguf_init_from_file(odd.model_path.c_str(), {true, &tensors});
  gguf_context* const to = gguf_init_empty();
  gguf_set_val_str(to, "general.type", "adapter");
  gguf_set_val_str(to, "general.architecture", gguf_get_val_str(from, gguf_find_key(from, "general.architecture")));
  gguf_set_val_str(to, "adapter.type", "lora");
  gguf_set_val_f32(to, "adapter.lora.alpha", 8);
  const std::string name = "blk.0.attn_v.weight";
  const ggml_tensor* const weight = ggml_get_tensor(tensors, name.c_str());
  ggml_context* const mine = ggml_init({1 << 22, nullptr, false});
  constexpr std::int64_t kRank = 4;
  for (const bool first : {true, false}) {
    ggml_tensor* const part = ggml_new_tensor_2d(mine, GGML_TYPE_F32, first ? weight->ne[0] : kRank,
                                                 first ? kRank : weight->ne[1]);
    ggml_set_name(part, (name + (first ? ".lora_a" : ".lora_b")).c_str());
    for (std::int64_t i = 0; i < ggml_nelements(part); ++i)
      static_cast<float*>(ggml_get_data(part))[i] = 0.05F * static_cast<float>(i % 7 - 3);
    gguf_add_tensor(to, part);
  }
  if (!gguf_write_to_file(to, odd.more.c_str(), false)) std::exit(1);
  std::exit(0);
}

void lora(Odd& odd) {
  odd.start();
  odd.decode("plain", words(1, 100), 0);
  llama_adapter_lora* adapter = llama_adapter_lora_init(odd.model, odd.more.c_str());
  if (adapter == nullptr) std::exit(7);
  float scale = 1;
  std::printf("set %d\n", llama_set_adapters_lora(odd.context, &adapter, 1, &scale));
  odd.decode("adapted", words(2, 200), 100);
  odd.remove(0);
  odd.decode("all adapted", words(3, 200), 0);
  std::printf("unset %d\n", llama_set_adapters_lora(odd.context, nullptr, 0, nullptr));
  odd.decode("plain behind adapted", words(4, 100), 200);
  odd.remove(0);
  odd.decode("plain again", words(3, 200), 0);
}

// What lora() computed with its adapter, and without.
void read_lora(Odd& odd) {
  odd.start();
  const Tokens tokens = joined(words(1, 100), words(2, 200));
  odd.decode("plain", tokens, 0);
  odd.remove(0);
  odd.decode("plain again", words(3, 200), 0);
}

void sampler(Odd& odd) {
  odd.start();
  odd.decode("before", words(1, 100), 0);
  llama_sampler* const chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
  llama_sampler_chain_add(chain, llama_sampler_init_greedy());
  std::printf("unset %d\n", llama_set_sampler(odd.context, 0, nullptr));
  odd.remove(0);
  odd.decode("looked up", words(1, 100), 0);
  std::printf("set %d\n", llama_set_sampler(odd.context, 0, chain));
  odd.remove(0);
  odd.decode("sampled", words(1, 200), 0);
  std::printf("token %d\n", llama_get_sampled_token_ith(odd.context, 199));
}

// From the start: a chain can be made ready for a back end once.
void sampler_from_the_start(Odd& odd) {
  llama_sampler* const chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
  llama_sampler_chain_add(chain, llama_sampler_init_greedy());
  llama_sampler_seq_config config{0, chain};
  odd.params.samplers = &config;
  odd.params.n_samplers = 1;
  odd.start();
  odd.decode("sampled", words(1, 200), 0);
  std::printf("token %d\n", llama_get_sampled_token_ith(odd.context, 199));
}

// By one context of two; a third one comes later.
void trained(Odd& odd) {
  odd.params.type_k = odd.params.type_v = GGML_TYPE_F32;
  odd.params.n_ctx = 256;
  odd.params.n_batch = odd.params.n_ubatch = 128;
  odd.model_params.load_mode = LLAMA_LOAD_MODE_NONE;
  odd.start();
  Odd other = odd;
  other.make();
  other.decode("before", words(1, 100), 0);
  odd.decode("first", words(7, 20), 0);  // sets the back end's threads, which training does not
  llama_opt_params params{};
  params.n_ctx_train = 16;  // as many tokens are trained with
  params.param_filter = llama_opt_param_filter_all;
  params.get_opt_pars = ggml_opt_get_default_optimizer_params;
  params.optimizer_type = GGML_OPT_OPTIMIZER_TYPE_ADAMW;
  llama_opt_init(odd.context, odd.model, params);
  ggml_opt_dataset_t data = ggml_opt_dataset_init(GGML_TYPE_I32, GGML_TYPE_I32, 256, 256, 1, 1);
  std::ranges::copy(words(5, 256), static_cast<llama_token*>(ggml_opt_dataset_data(data)->data));
  std::ranges::copy(words(6, 256), static_cast<llama_token*>(ggml_opt_dataset_labels(data)->data));
  llama_opt_epoch(odd.context, data, ggml_opt_result_init(), ggml_opt_result_init(), 1, nullptr, nullptr);
  other.decode("behind", words(2, 100), 100);
  other.remove(0);
  other.decode("after", words(1, 100), 0);
  Odd third = odd;
  third.make();
  third.decode("new", words(3, 100), 0);
  llama_free(third.context);
  llama_free(other.context);
  llama_free(odd.context);
}

// Two threads compute, and a third one makes and frees contexts: the report is written each time.
void threads(Odd& odd) {
  odd.load();
  std::array<Odd, 2> both = {odd, odd};
  std::vector<std::thread> computing;
  for (Odd& one : both) {
    one.make();
    one.quiet = true;
    computing.emplace_back([&one, name = static_cast<std::uint32_t>(&one - both.data())] {
      for (std::uint32_t i = 0; i < 20; ++i) {
        llama_memory_clear(one.memory, true);
        one.decode("", words(10 * (i / 2) + name, 100), 0);
      }
    });
  }
  odd.params.n_ctx = 256;
  for (int i = 0; i < 20; ++i) {
    odd.make();
    llama_free(odd.context);
  }
  for (std::thread& thread : computing)
    thread.join();
  for (const Odd& one : both) {
    std::printf("%016" PRIx64 "\n", one.hash);
    llama_free(one.context);
  }
}

// MORE: the split of layers over devices.
void split(Odd& odd) {
  std::vector<float> parts(llama_max_devices(), 0);
  for (std::size_t i = 0; i < std::min(parts.size(), odd.more.size()); ++i)
    parts[i] = static_cast<float>(odd.more[i] - '0');
  odd.model_params.tensor_split = parts.data();
  odd.load();
  parts.assign(parts.size(), 9);  // it may be gone by now
  odd.make();
  odd.decode("end", words(1, 200), 0);
}

// Two sequences of the same length, and the first one's state put back by functions with old names.
void old_names(Odd& odd) {
  odd.start();
  odd.decode("first", words(1, 96), 0);
  std::vector<std::uint8_t> state(llama_state_get_size(odd.context));
  state.resize(llama_state_get_data(odd.context, state.data(), state.size()));
  const std::string file = odd.more + "/session";
  (void)llama_state_save_file(odd.context, file.c_str(), nullptr, 0);
  for (std::uint32_t name : {2U, 3U}) {
    llama_memory_clear(odd.memory, true);
    odd.decode("other", words(name, 96), 0);
    std::size_t count = 0;
    if (name == 2) {
      (void)llama_set_state_data(odd.context, state.data());
    } else {
      (void)llama_load_session_file(odd.context, file.c_str(), nullptr, 0, &count);
    }
    odd.decode("behind", words(9, 96), 96);
  }
  llama_free(odd.context);
}

void* library(const std::string& path) {
  void* const handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) std::fprintf(stderr, "%s\n", ::dlerror());
  if (handle == nullptr) std::exit(7);
  return handle;
}

// MORE: another copy of libllama.
void two_copies(Odd& odd) {
  library(odd.more);
  odd.start();
  odd.decode("end", words(1, 200), 0);
}

// MORE: a folder with another copy of libllama and a library that uses that one.
void second_copy(Odd& odd) {
  odd.start();
  odd.decode("first", words(1, 100), 0);
  library(odd.more + "/libllama.v0.5.9.so");
  void* const plugin = library(odd.more + "/plugin.so");
  const auto run = reinterpret_cast<std::uint64_t (*)(const char*, int*)>(::dlsym(plugin, "odd_plugin_run"));
  int lines = 0;
  const std::uint64_t hash = run(odd.model_path.c_str(), &lines);
  std::printf("plugin %016" PRIx64 " %s\n", hash, lines > 0 ? "its own" : "another's");
  odd.decode("end", words(2, 100), 100);
}

}  // namespace

const Modes& changes() {
  static const Modes modes = {
      {"hidden_states", hidden_states},
      {"layer_inputs", layer_inputs},
      {"encodes", encodes},
      {"add_lora", add_lora},
      {"lora", lora},
      {"read_lora", read_lora},
      {"sampler", sampler},
      {"sampler_from_the_start", sampler_from_the_start},
      {"trained", trained},
      {"threads", threads},
      {"split", split},
      {"old_names", old_names},
      {"two_copies", two_copies},
      {"second_copy", second_copy},
  };
  return modes;
}
