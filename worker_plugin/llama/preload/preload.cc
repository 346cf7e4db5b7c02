// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What is done instead of libllama's functions when this library is loaded with LD_PRELOAD.
// stubs.cc comes here only from callers of the libllama that this was built for, and not when
// llama.cpp calls from within another of these.
//
// Preloaded libraries are in the global scope, which is searched first for a library that was
// loaded with RTLD_LOCAL, too (a node addon); the functions that they stand for are found through
// the loader's list of objects (copies.h).

#include <llama.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "worker_plugin/llama/preload/process.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

using kvtrie::llama::Inside;
using kvtrie::llama::Process;
using kvtrie::llama::Real;
using kvtrie::llama::TrackedContext;

const Real& real() { return Process::get().real(); }

// The context of a call that is looked at, for as long as the call lasts; else false.
class Use {
 public:
  explicit Use(TrackedContext* context) : context_(context) {
    if (context != nullptr) lock_ = std::unique_lock(context->mutex);
  }
  explicit operator bool() const { return context_ != nullptr; }
  TrackedContext* operator->() const { return context_; }

  // Follows what the program is about to do. No exception may get into llama.cpp or the program, which are C for that.
  template <typename Follow>
  void note(Follow follow) const noexcept {
    if (context_ == nullptr) return;
    try {
      follow(*context_);
    } catch (const std::exception& error) {
      context_->stop(error.what());
    }
  }
  void stop_if(bool condition, std::string_view why) const noexcept {
    if (context_ != nullptr && condition) context_->stop(why);
  }

 private:
  TrackedContext* context_;
  std::unique_lock<std::mutex> lock_;
};
Use use(const llama_context* context) { return Use(Process::get().find(context)); }
Use use(llama_memory_t memory) { return Use(Process::get().find(memory)); }

// `ours` does what llama.cpp's function does, too. Where it cannot, the real one does.
template <typename Ours, typename Theirs>
auto instead(const Use& context, Ours ours, Theirs theirs) noexcept {
  if (context) {
    const Inside inside;
    try {
      return ours();
    } catch (const std::exception& error) {
      context->stop(error.what());
    }
  }
  return theirs();
}

// Of an output in the program's last batch, in the one that llama.cpp saw.
std::int32_t place(const llama_context* context, std::int32_t index) {
  const Use found = use(context);
  return found ? found->place(index) : index;
}

constexpr const char* kTrained = "its model is trained";

const pid_t loaded_in = ::getpid();

__attribute__((destructor)) void report_at_end() {
  if (Process* const process = Process::existing()) {
    process->write_report();
    return;
  }
  const char* const cache = std::getenv("KVTRIE_CACHE");
  if (cache == nullptr || *cache == '\0' || ::getpid() != loaded_in) return;
  try {
    if (kvtrie::llama::find_loaded_llama(reinterpret_cast<const void*>(&report_at_end)).handle == nullptr) return;
    std::fputs("kvtrie: prefixes are not shared: libllama was loaded, and no call of it came by here: the program "
               "found its functions by dlsym, or used none\n",
               stderr);
  } catch (const std::exception&) {  // then it is not said
  }
}

// Before the model is loaded: what replaces a file later is another file.
template <typename Paths>
std::optional<kvtrie::llama::ModelSource> described(Paths paths, const llama_model_params& params) noexcept {
  try {
    return kvtrie::llama::describe_model(paths(), params, Process::get().devices_max());
  } catch (const std::exception&) {
    return std::nullopt;  // no file, or no memory: a model that is not known, and not shared
  }
}

llama_model* remember(llama_model* model, std::optional<kvtrie::llama::ModelSource> source) {
  if (model != nullptr && source) Process::get().add_model(model, std::move(*source));
  return model;
}

llama_model* load_from_file(const char* path, llama_model_params params) {
  const Inside inside;
  auto source = described([path] { return kvtrie::llama::parts_of_model(path == nullptr ? "" : path); }, params);
  return remember(real().llama_model_load_from_file(path, params), std::move(source));
}

llama_model* load_from_splits(const char** paths, std::size_t count, llama_model_params params) {
  const Inside inside;
  auto source = described([=] { return std::vector<std::string>(paths, paths + count); }, params);
  return remember(real().llama_model_load_from_splits(paths, count, params), std::move(source));
}

llama_context* init_from_model(llama_model* model, llama_context_params params) {
  const Inside inside;
  return Process::get().make_context(model, params);
}

}  // namespace

namespace kvtrie::llama::interposed {

llama_model* llama_model_load_from_file(const char* path, llama_model_params params) {
  return load_from_file(path, params);
}
llama_model* llama_load_model_from_file(const char* path, llama_model_params params) {
  return load_from_file(path, params);
}
llama_model* llama_model_load_from_splits(const char** paths, std::size_t count, llama_model_params params) {
  return load_from_splits(paths, count, params);
}
llama_context* llama_init_from_model(llama_model* model, llama_context_params params) {
  return init_from_model(model, params);
}
llama_context* llama_new_context_with_model(llama_model* model, llama_context_params params) {
  return init_from_model(model, params);
}

void llama_model_free(llama_model* model) {
  Process::get().remove_model(model);
  real().llama_model_free(model);
}

void llama_free_model(llama_model* model) { interposed::llama_model_free(model); }

void llama_free(llama_context* context) {
  {
    const Inside inside;
    Process::get().remove_context(context);
  }
  real().llama_free(context);
}

std::uint32_t llama_n_seq_max(const llama_context* context) {
  // Without its lock, which another thread may hold for long: this does not change.
  const TrackedContext* const found = Process::get().find(context);
  return found == nullptr || found->sequences_asked == 0 ? real().llama_n_seq_max(context) : found->sequences_asked;
}

std::int32_t llama_decode(llama_context* context, llama_batch batch) {
  const Use found = use(context);
  if (!found) return real().llama_decode(context, batch);
  const Inside inside;
  return found->decode(batch);
}

std::int32_t llama_encode(llama_context* context, llama_batch batch) {
  const std::int32_t code = real().llama_encode(context, batch);
  if (code != -1) use(context).note([](TrackedContext& c) { c.forget_places(); });  // else the outputs are as before
  return code;
}

// ---- the KV cache

void llama_memory_clear(llama_memory_t memory, bool data) {
  use(memory).note([](TrackedContext& c) { c.clear(); });
  real().llama_memory_clear(memory, data);
}

bool llama_memory_seq_rm(llama_memory_t memory, llama_seq_id sequence, llama_pos from, llama_pos to) {
  const Use found = use(memory);
  return instead(
      found, [&] { return found->remove(sequence, from, to); },
      [&] { return real().llama_memory_seq_rm(memory, sequence, from, to); });
}

void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id from_sequence, llama_seq_id to_sequence, llama_pos from,
                         llama_pos to) {
  const Use found = use(memory);
  instead(
      found, [&] { found->copy(from_sequence, to_sequence, from, to); },
      [&] { real().llama_memory_seq_cp(memory, from_sequence, to_sequence, from, to); });
}

void llama_memory_seq_keep(llama_memory_t memory, llama_seq_id sequence) {
  const Use found = use(memory);
  instead(
      found, [&] { found->keep(sequence); }, [&] { real().llama_memory_seq_keep(memory, sequence); });
}

void llama_memory_seq_add(llama_memory_t memory, llama_seq_id sequence, llama_pos from, llama_pos to, llama_pos delta) {
  use(memory).note([=](TrackedContext& c) { c.shifted(sequence, from, delta); });
  real().llama_memory_seq_add(memory, sequence, from, to, delta);
}

void llama_memory_seq_div(llama_memory_t memory, llama_seq_id sequence, llama_pos from, llama_pos to, int divisor) {
  use(memory).note([=](TrackedContext& c) { c.shifted(sequence, from, -from); });
  real().llama_memory_seq_div(memory, sequence, from, to, divisor);
}

// ---- KV that comes from elsewhere

std::size_t llama_state_set_data(llama_context* context, const std::uint8_t* data, std::size_t bytes) {
  use(context).note([](TrackedContext& c) { c.loaded(-1); });
  return real().llama_state_set_data(context, data, bytes);
}

bool llama_state_load_file(llama_context* context, const char* path, llama_token* tokens, std::size_t capacity,
                           std::size_t* count) {
  use(context).note([](TrackedContext& c) { c.loaded(-1); });
  return real().llama_state_load_file(context, path, tokens, capacity, count);
}

// Their older names, which a libllama may bind to its own functions.
std::size_t llama_set_state_data(llama_context* context, const std::uint8_t* data) {
  use(context).note([](TrackedContext& c) { c.loaded(-1); });
  return real().llama_set_state_data(context, data);
}

bool llama_load_session_file(llama_context* context, const char* path, llama_token* tokens, std::size_t capacity,
                             std::size_t* count) {
  use(context).note([](TrackedContext& c) { c.loaded(-1); });
  return real().llama_load_session_file(context, path, tokens, capacity, count);
}

// A program that takes a sequence's state out and puts it back (llama-server's prompt cache) goes
// on where that was.
std::size_t llama_state_seq_get_data(llama_context* context, std::uint8_t* data, std::size_t bytes,
                                     llama_seq_id sequence) {
  return interposed::llama_state_seq_get_data_ext(context, data, bytes, sequence, LLAMA_STATE_SEQ_FLAGS_NONE);
}

std::size_t llama_state_seq_get_data_ext(llama_context* context, std::uint8_t* data, std::size_t bytes,
                                         llama_seq_id sequence, llama_state_seq_flags flags) {
  const Use found = use(context);
  const Inside inside;
  const std::size_t written = real().llama_state_seq_get_data_ext(context, data, bytes, sequence, flags);
  if (flags == LLAMA_STATE_SEQ_FLAGS_NONE) {
    found.note([=](TrackedContext& c) { c.saved(sequence, {data, written}); });
  }
  return written;
}

std::size_t llama_state_seq_set_data(llama_context* context, const std::uint8_t* data, std::size_t bytes,
                                     llama_seq_id sequence) {
  return interposed::llama_state_seq_set_data_ext(context, data, bytes, sequence, LLAMA_STATE_SEQ_FLAGS_NONE);
}

std::size_t llama_state_seq_set_data_ext(llama_context* context, const std::uint8_t* data, std::size_t bytes,
                                         llama_seq_id sequence, llama_state_seq_flags flags) {
  const Use found = use(context);
  const Inside inside;
  found.note([=](TrackedContext& c) { c.loaded(sequence); });
  const std::size_t read = real().llama_state_seq_set_data_ext(context, data, bytes, sequence, flags);
  if (flags == LLAMA_STATE_SEQ_FLAGS_NONE) {
    found.note([=](TrackedContext& c) { c.restored(sequence, {data, read}); });
  }
  return read;
}

std::size_t llama_state_seq_load_file(llama_context* context, const char* path, llama_seq_id sequence,
                                      llama_token* tokens, std::size_t capacity, std::size_t* count) {
  if (tokens != nullptr) use(context).note([=](TrackedContext& c) { c.loaded(sequence); });
  return real().llama_state_seq_load_file(context, path, sequence, tokens, capacity, count);
}

// ---- what changes what is computed

std::int32_t llama_set_adapters_lora(llama_context* context, llama_adapter_lora** adapters, std::size_t count,
                                     float* scales) {
  use(context).stop_if(count > 0, "a LoRA adapter is set");
  return real().llama_set_adapters_lora(context, adapters, count, scales);
}

std::int32_t llama_set_adapter_cvec(llama_context* context, const float* data, std::size_t bytes, std::int32_t width,
                                    std::int32_t first, std::int32_t last) {
  use(context).stop_if(data != nullptr, "a control vector is set");
  return real().llama_set_adapter_cvec(context, data, bytes, width, first, last);
}

void llama_set_causal_attn(llama_context* context, bool causal) {
  use(context).stop_if(!causal, "attention is not causal");
  real().llama_set_causal_attn(context, causal);
}

void llama_set_embeddings(llama_context* context, bool on) {
  use(context).note([=](TrackedContext& c) { c.embeddings(on); });
  real().llama_set_embeddings(context, on);
}

void llama_set_warmup(llama_context* context, bool on) {
  use(context).note([=](TrackedContext& c) { c.warm_up(on); });
  real().llama_set_warmup(context, on);
}

// Training changes the weights of the model, and so what all its contexts compute from now on.
void llama_opt_init(llama_context* context, llama_model* model, llama_opt_params params) {
  Process::get().model_changes(model, kTrained);
  real().llama_opt_init(context, model, params);
}

void llama_opt_epoch(llama_context* context, ggml_opt_dataset_t dataset, ggml_opt_result_t trained,
                     ggml_opt_result_t evaluated, std::int64_t split, ggml_opt_epoch_callback after_training,
                     ggml_opt_epoch_callback after_evaluation) {
  use(context).stop_if(true, kTrained);
  real().llama_opt_epoch(context, dataset, trained, evaluated, split, after_training, after_evaluation);
}

bool llama_set_sampler(llama_context* context, llama_seq_id sequence, llama_sampler* sampler) {
  use(context).stop_if(sampler != nullptr, "it samples in the back end");
  return real().llama_set_sampler(context, sequence, sampler);
}

// ---- outputs of the last batch, by the program's index

llama_token llama_sampler_sample(llama_sampler* sampler, llama_context* context, std::int32_t index) {
  index = place(context, index);
  const Inside inside;  // it asks for logits by this index
  return real().llama_sampler_sample(sampler, context, index);
}

#define KVTRIE_BY_INDEX(type, name) \
  type name(llama_context* context, std::int32_t index) { return real().name(context, place(context, index)); }
KVTRIE_BY_INDEX(float*, llama_get_logits_ith)
KVTRIE_BY_INDEX(float*, llama_get_embeddings_ith)
KVTRIE_BY_INDEX(llama_token, llama_get_sampled_token_ith)
KVTRIE_BY_INDEX(float*, llama_get_sampled_probs_ith)
KVTRIE_BY_INDEX(std::uint32_t, llama_get_sampled_probs_count_ith)
KVTRIE_BY_INDEX(float*, llama_get_sampled_logits_ith)
KVTRIE_BY_INDEX(std::uint32_t, llama_get_sampled_logits_count_ith)
KVTRIE_BY_INDEX(llama_token*, llama_get_sampled_candidates_ith)
KVTRIE_BY_INDEX(std::uint32_t, llama_get_sampled_candidates_count_ith)
#undef KVTRIE_BY_INDEX

// ---- C++ functions of libllama that no public header has, for speculative decoding

void llama_set_embeddings_nextn(llama_context* context, bool on, bool masked) {
  use(context).stop_if(on, "every token's hidden state is read");
  real().llama_set_embeddings_nextn(context, on, masked);
}

void llama_set_embeddings_layer_inp(llama_context* context, std::uint32_t layer, bool on) {
  use(context).stop_if(on, "every token's hidden state is read");
  real().llama_set_embeddings_layer_inp(context, layer, on);
}

}  // namespace kvtrie::llama::interposed
