// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What stands before libllama's functions when this library is loaded with LD_PRELOAD. Each goes straight on to the one
// it stands for when nothing is shared, and when llama.cpp calls it from within another of these.
//
// Preloaded libraries are in the global scope, which is searched first for a library that was loaded with RTLD_LOCAL,
// too (a node addon); the functions that they stand for are found through the loader's list of objects
// (find_loaded_llama).

#include <llama.h>

#include "worker_plugin/llama/preload/process.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

using kvtrie::llama::Inside;
using kvtrie::llama::Process;
using kvtrie::llama::Real;
using kvtrie::llama::TrackedContext;

const Real& real() { return Process::get().real(); }
bool looked_at() { return !Inside::already() && Process::get().on(); }

// The context of a call that is looked at, else NULL.
TrackedContext* tracked(const llama_context* context) { return looked_at() ? Process::get().find(context) : nullptr; }
TrackedContext* tracked(llama_memory_t memory) { return looked_at() ? Process::get().find(memory) : nullptr; }

// Of an output in the program's last batch, in the one that llama.cpp saw.
std::int32_t place(const llama_context* context, std::int32_t index) {
  const TrackedContext* const found = tracked(context);
  return found == nullptr ? index : found->place(index);
}

__attribute__((destructor)) void report_at_end() {
  if (Process* const process = Process::existing()) process->write_report();
}

llama_model* load_from_file(const char* path, llama_model_params params) {
  const Inside inside;
  llama_model* const model = real().llama_model_load_from_file(path, params);
  if (model != nullptr && path != nullptr) Process::get().add_model(model, kvtrie::llama::parts_of_model(path), params);
  return model;
}

llama_model* load_from_splits(const char** paths, std::size_t count, llama_model_params params) {
  const Inside inside;
  llama_model* const model = real().llama_model_load_from_splits(paths, count, params);
  if (model != nullptr) Process::get().add_model(model, {paths, paths + count}, params);
  return model;
}

llama_context* init_from_model(llama_model* model, llama_context_params params) {
  const Inside inside;
  return Process::get().make_context(model, params);
}

// A structure by value has another size in another llama.cpp. So these three jump, with the program's arguments
// untouched, to what a route says: the function above, or the real one where that is another llama.cpp or nothing is
// shared.
using Function = void (*)();
template <typename Ours, typename Theirs>
Function route(Ours* ours, Theirs* theirs) {
  return looked_at() ? reinterpret_cast<Function>(ours) : reinterpret_cast<Function>(theirs);
}

}  // namespace

extern "C" {

__attribute__((used, visibility("hidden"))) Function kvtrie_route_load_from_file() {
  return route(&load_from_file, real().llama_model_load_from_file);
}
__attribute__((used, visibility("hidden"))) Function kvtrie_route_load_from_splits() {
  return route(&load_from_splits, real().llama_model_load_from_splits);
}
__attribute__((used, visibility("hidden"))) Function kvtrie_route_init_from_model() {
  return route(&init_from_model, real().llama_init_from_model);
}

#define KVTRIE_JUMP(name, routed)              \
  __asm__(".text\n.globl " #name               \
          "\n"                                 \
          ".type " #name ", @function\n" #name \
          ":\n"                                \
          "  push %rdi\n"                      \
          "  push %rsi\n"                      \
          "  sub $8, %rsp\n"                   \
          "  call " #routed                    \
          "\n"                                 \
          "  add $8, %rsp\n"                   \
          "  pop %rsi\n"                       \
          "  pop %rdi\n"                       \
          "  jmp *%rax\n"                      \
          ".size " #name ", .-" #name "\n")
KVTRIE_JUMP(llama_model_load_from_file, kvtrie_route_load_from_file);
KVTRIE_JUMP(llama_load_model_from_file, kvtrie_route_load_from_file);
KVTRIE_JUMP(llama_model_load_from_splits, kvtrie_route_load_from_splits);
KVTRIE_JUMP(llama_init_from_model, kvtrie_route_init_from_model);
KVTRIE_JUMP(llama_new_context_with_model, kvtrie_route_init_from_model);
#undef KVTRIE_JUMP

void llama_model_free(llama_model* model) {
  if (looked_at()) Process::get().remove_model(model);
  real().llama_model_free(model);
}

void llama_free_model(llama_model* model) { llama_model_free(model); }

void llama_free(llama_context* context) {
  if (looked_at()) {
    const Inside inside;
    Process::get().remove_context(context);
  }
  real().llama_free(context);
}

std::uint32_t llama_n_seq_max(const llama_context* context) {
  const TrackedContext* const found = tracked(context);
  return found == nullptr || found->sequences_asked == 0 ? real().llama_n_seq_max(context) : found->sequences_asked;
}

std::int32_t llama_decode(llama_context* context, llama_batch batch) {
  TrackedContext* const found = tracked(context);
  if (found == nullptr) return real().llama_decode(context, batch);
  const Inside inside;
  return found->decode(batch);
}

// ---- the KV cache

void llama_memory_clear(llama_memory_t memory, bool data) {
  if (TrackedContext* const found = tracked(memory)) found->clear();
  real().llama_memory_clear(memory, data);
}

bool llama_memory_seq_rm(llama_memory_t memory, llama_seq_id sequence, llama_pos from, llama_pos to) {
  TrackedContext* const found = tracked(memory);
  if (found == nullptr) return real().llama_memory_seq_rm(memory, sequence, from, to);
  const Inside inside;
  return found->remove(sequence, from, to);
}

void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id from_sequence, llama_seq_id to_sequence, llama_pos from,
                         llama_pos to) {
  TrackedContext* const found = tracked(memory);
  if (found == nullptr) return real().llama_memory_seq_cp(memory, from_sequence, to_sequence, from, to);
  const Inside inside;
  found->copy(from_sequence, to_sequence, from, to);
}

void llama_memory_seq_keep(llama_memory_t memory, llama_seq_id sequence) {
  TrackedContext* const found = tracked(memory);
  if (found == nullptr) return real().llama_memory_seq_keep(memory, sequence);
  const Inside inside;
  found->keep(sequence);
}

void llama_memory_seq_add(llama_memory_t memory, llama_seq_id sequence, llama_pos from, llama_pos to, llama_pos delta) {
  if (TrackedContext* const found = tracked(memory)) found->shifted(sequence, from, delta);
  real().llama_memory_seq_add(memory, sequence, from, to, delta);
}

void llama_memory_seq_div(llama_memory_t memory, llama_seq_id sequence, llama_pos from, llama_pos to, int divisor) {
  if (TrackedContext* const found = tracked(memory)) found->shifted(sequence, from, -from);
  real().llama_memory_seq_div(memory, sequence, from, to, divisor);
}

// ---- KV that comes from elsewhere

std::size_t llama_state_set_data(llama_context* context, const std::uint8_t* data, std::size_t bytes) {
  if (TrackedContext* const found = tracked(context)) found->loaded(-1);
  return real().llama_state_set_data(context, data, bytes);
}

bool llama_state_load_file(llama_context* context, const char* path, llama_token* tokens, std::size_t capacity,
                           std::size_t* count) {
  if (TrackedContext* const found = tracked(context)) found->loaded(-1);
  return real().llama_state_load_file(context, path, tokens, capacity, count);
}

std::size_t llama_state_seq_set_data(llama_context* context, const std::uint8_t* data, std::size_t bytes,
                                     llama_seq_id sequence) {
  if (TrackedContext* const found = tracked(context)) found->loaded(sequence);
  return real().llama_state_seq_set_data(context, data, bytes, sequence);
}

std::size_t llama_state_seq_set_data_ext(llama_context* context, const std::uint8_t* data, std::size_t bytes,
                                         llama_seq_id sequence, llama_state_seq_flags flags) {
  if (TrackedContext* const found = tracked(context)) found->loaded(sequence);
  return real().llama_state_seq_set_data_ext(context, data, bytes, sequence, flags);
}

std::size_t llama_state_seq_load_file(llama_context* context, const char* path, llama_seq_id sequence,
                                      llama_token* tokens, std::size_t capacity, std::size_t* count) {
  if (TrackedContext* const found = tracked(context); found != nullptr && tokens != nullptr) found->loaded(sequence);
  return real().llama_state_seq_load_file(context, path, sequence, tokens, capacity, count);
}

// ---- what changes what is computed

std::int32_t llama_set_adapters_lora(llama_context* context, llama_adapter_lora** adapters, std::size_t count,
                                     float* scales) {
  if (TrackedContext* const found = tracked(context); found != nullptr && count > 0)
    found->stop("a LoRA adapter is set");
  return real().llama_set_adapters_lora(context, adapters, count, scales);
}

std::int32_t llama_set_adapter_cvec(llama_context* context, const float* data, std::size_t bytes, std::int32_t width,
                                    std::int32_t first, std::int32_t last) {
  if (TrackedContext* const found = tracked(context); found != nullptr && data != nullptr) {
    found->stop("a control vector is set");
  }
  return real().llama_set_adapter_cvec(context, data, bytes, width, first, last);
}

void llama_set_causal_attn(llama_context* context, bool causal) {
  if (TrackedContext* const found = tracked(context); found != nullptr && !causal)
    found->stop("attention is not causal");
  real().llama_set_causal_attn(context, causal);
}

void llama_set_embeddings(llama_context* context, bool on) {
  if (TrackedContext* const found = tracked(context)) found->embeddings(on);
  real().llama_set_embeddings(context, on);
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

}  // extern "C"
