// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/llama/engine.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <span>

namespace kvtrie::llama {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void say_errors_only(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) fmt::print(stderr, "{}", text);
}

void load_back_end(const std::string& name) {
  if (name.empty()) {
    ggml_backend_load_all_from_path(KVTRIE_LLAMA_LIBRARIES);
  } else if (const std::string path = fmt::format("{}/libggml-cpu-{}.so", KVTRIE_LLAMA_LIBRARIES, name);
             ggml_backend_load(path.c_str()) == nullptr) {
    throw EngineError(fmt::format("{}: cannot be loaded: not there, or not for this CPU", path));
  }
}

ggml_type kv_type(const std::string& name) {
  if (name == "f32") return GGML_TYPE_F32;
  if (name == "q8_0") return GGML_TYPE_Q8_0;
  return GGML_TYPE_F16;
}

}  // namespace

Engine::Engine(const EngineOptions& options) : options_(options), dumper_(options.dump) {
  llama_log_set(&say_errors_only, nullptr);
  llama_backend_init();
  load_back_end(options.back_end);
  const auto start = Clock::now();
  const llama_model_params model_params = llama_model_default_params();
  // Before it is loaded: a file that is replaced meanwhile is then another one.
  const ModelSource source = describe_model(parts_of_model(options.model), model_params, llama_max_devices());
  model_.reset(llama_model_load_from_file(options.model.c_str(), model_params));
  if (!model_) throw EngineError(fmt::format("{}: cannot be loaded", options.model));

  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.context;
  params.n_batch = params.n_ubatch = options.batch;
  params.n_seq_max = 1;
  params.n_threads = params.n_threads_batch = options.threads;
  params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = kv_type(options.kv_type);
  params = shareable_params(params, false);  // without the cache, too, so that the two can be compared
  context_.reset(llama_init_from_model(model_.get(), params));
  if (!context_) throw EngineError("no context can be made with these settings");
  load_ms_ = ms_since(start);

  const auto attach = Clock::now();
  if (!options.cache.empty()) {
    cache_.emplace(options.cache, options.directory, "kvtrie-llama");
    shared_.emplace(*cache_, linked_calls(), context_.get(), params, source,
                    FingerprintOptions{.tenant = options.tenant, .hash_memory = options.hash_memory});
    shared_->set_wait(options.wait);
    shared_->set_dumps(&dumper_, [](const std::string& what) { fmt::print(stderr, "kvtrie-llama: {}\n", what); });
  }
  attach_ms_ = ms_since(attach);
}

std::vector<llama_token> Engine::tokenize(const std::string& text) const {
  const llama_vocab* const vocabulary = llama_model_get_vocab(model_.get());
  std::vector<llama_token> tokens(text.size() + 2);
  const std::int32_t count = llama_tokenize(vocabulary, text.data(), static_cast<std::int32_t>(text.size()),
                                            tokens.data(), static_cast<std::int32_t>(tokens.size()), true, true);
  if (count < 0) throw EngineError("the prompt cannot be tokenized");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string Engine::text(const std::vector<llama_token>& tokens) const {
  const llama_vocab* const vocabulary = llama_model_get_vocab(model_.get());
  std::string text;
  std::string piece(256, '\0');
  for (const llama_token token : tokens) {
    const auto room = static_cast<std::int32_t>(piece.size());
    const std::int32_t bytes = llama_token_to_piece(vocabulary, token, piece.data(), room, 0, true);
    if (bytes > 0) text.append(piece, 0, static_cast<std::size_t>(bytes));
  }
  return text;
}

std::int32_t Engine::vocabulary() const { return llama_vocab_n_tokens(llama_model_get_vocab(model_.get())); }

// One batch; logits of its last token.
void Engine::decode(const std::vector<llama_token>& tokens, std::size_t from, std::size_t to) {
  std::vector<llama_token> part(tokens.begin() + static_cast<std::ptrdiff_t>(from),
                                tokens.begin() + static_cast<std::ptrdiff_t>(to));
  const std::int32_t code =
      llama_decode(context_.get(), llama_batch_get_one(part.data(), static_cast<std::int32_t>(part.size())));
  if (code != 0) throw EngineError(fmt::format("llama_decode: {}", code));
}

// Tokens behind what the sequence has; it may be NULL. How many ms llama_decode took.
double Engine::decode_next(SharedSequence* sequence, const std::vector<llama_token>& tokens, std::size_t from,
                           std::size_t to) {
  const auto part = std::span(tokens).subspan(from, to - from);
  std::optional<DecodeDump> dump;
  if (sequence != nullptr && shared_->dumps()) {
    const ComputedTokens computed{sequence, part};
    dump.emplace(*shared_, std::span(&computed, 1));
  }
  const auto start = Clock::now();
  decode(tokens, from, to);
  llama_synchronize(context_.get());
  const double took_ms = ms_since(start);
  if (sequence == nullptr) return took_ms;
  if (part.size() > kDecodedAtLeast) shared_->computed(part.size(), took_ms * 1e-3);
  sequence->decoded(part);
  if (dump) dump->after();
  return took_ms;
}

Answer Engine::answer(const std::vector<llama_token>& prompt, std::size_t count) {
  if (prompt.empty() || prompt.size() + count > options_.context) {
    throw EngineError(fmt::format("{} tokens and {} more do not fit into {}", prompt.size(), count, options_.context));
  }
  for (const llama_token token : prompt) {
    if (token < 0 || token >= vocabulary()) throw EngineError(fmt::format("{} is no token of this model", token));
  }
  std::optional<SharedSequence> shared;
  if (shared_) shared.emplace(*shared_, 0).set_tag(options_.tag);
  SharedSequence* const sequence = shared ? &*shared : nullptr;
  if (sequence != nullptr) sequence->ask_for_dumps(options_.ask_for_dumps);
  Answer answer;
  answer.prompt_tokens = prompt.size();
  const std::uint64_t waited_before = shared_ ? shared_->counters().wait_ns : 0;
  const auto start = Clock::now();
  std::size_t done = 0;
  if (sequence != nullptr) done = sequence->import(prompt, prompt.size() - std::min(kDecodedAtLeast, prompt.size()));
  answer.cached_tokens = done;
  if (shared_) answer.wait_ms = static_cast<double>(shared_->counters().wait_ns - waited_before) * 1e-6;
  while (done < prompt.size()) {
    const std::size_t end = std::min<std::size_t>(prompt.size(), done + options_.batch);
    answer.decode_ms += decode_next(sequence, prompt, done, end);
    done = end;
  }
  const llama_vocab* const vocabulary = llama_model_get_vocab(model_.get());
  const auto words = static_cast<std::size_t>(this->vocabulary());
  for (;;) {
    const float* const logits = llama_get_logits_ith(context_.get(), -1);
    const auto token = static_cast<llama_token>(std::max_element(logits, logits + words) - logits);
    if (answer.tokens.empty()) answer.first_token_ms = ms_since(start);
    answer.tokens.push_back(token);
    answer.logits_hash = XXH3_64bits(logits, words * sizeof *logits);
    if (answer.tokens.size() >= count || llama_vocab_is_eog(vocabulary, token)) break;
    (void)decode_next(sequence, answer.tokens, answer.tokens.size() - 1, answer.tokens.size());
  }
  answer.total_ms = ms_since(start);
  if (sequence != nullptr) sequence->end();
  (void)llama_memory_seq_rm(llama_get_memory(context_.get()), 0, -1, -1);
  return answer;
}

std::size_t Engine::page_bytes(std::uint32_t tokens_per_page) {
  const StateShape shape = shared_ ? shared_->shape() : probe_state(linked_calls(), context_.get());
  return (shape.bytes(tokens_per_page) + 63) / 64 * 64;
}

}  // namespace kvtrie::llama
