// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/llama_session.h"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace kvtrie::engine {
namespace {

void say_errors_only(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR) fmt::print(stderr, "{}", text);
}

void load_back_end(const std::string& name) {
  if (name.empty()) return ggml_backend_load_all_from_path(KVTRIE_LLAMA_LIBRARIES);
  const std::string path = fmt::format("{}/libggml-cpu-{}.so", KVTRIE_LLAMA_LIBRARIES, name);
  if (ggml_backend_load(path.c_str()) == nullptr)
    throw std::runtime_error(fmt::format("{}: cannot be loaded: not there, or not for this CPU", path));
}

}  // namespace

LlamaModel::LlamaModel(const std::string& file, const std::string& back_end) : params_(llama_model_default_params()) {
  llama_log_set(&say_errors_only, nullptr);
  llama_backend_init();
  load_back_end(back_end);
  model_.reset(llama_model_load_from_file(file.c_str(), params_));
  if (!model_) throw std::runtime_error(fmt::format("{}: cannot be loaded", file));
  words_ = static_cast<std::uint32_t>(llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
}

// All beams of all requests, and some that have ended and were not missed yet.
std::uint32_t LlamaSession::slots(const RunSettings& settings) { return (settings.in_flight + 1) * kBeamsMax; }

LlamaSession::LlamaSession(const LlamaModel& model, const RunSettings& settings)
    : model_(model), params_(llama_context_default_params()) {
  params_.n_seq_max = slots(settings);
  params_.n_ctx = (slots(settings) * (kMixedPromptMax + kOutputMax) + 255) / 256 * 256;
  // One llama_decode, one pass: a batch that is split would be another schedule.
  params_.n_batch = params_.n_ubatch = settings.chunk + slots(settings) + 1;
  params_.n_threads = params_.n_threads_batch = 1;
  params_.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params_.kv_unified = true;
  params_ = llama::shareable_params(params_, true);
  context_.reset(llama_init_from_model(model.get(), params_));
  if (!context_) throw std::runtime_error("no llama_context can be made");
  memory_ = llama_get_memory(context_.get());
  scratch_ = static_cast<llama_seq_id>(params_.n_seq_max) - 1;
  shape_ = llama::probe_state(llama::linked_calls(), context_.get());
}

void LlamaSession::decode(std::span<const BatchToken> tokens) {
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
  batch.n_tokens = static_cast<std::int32_t>(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = static_cast<llama_token>(tokens[i].token % model_.words());
    batch.pos[i] = static_cast<llama_pos>(tokens[i].position);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = static_cast<llama_seq_id>(tokens[i].slot);
    batch.logits[i] = tokens[i].wanted ? 1 : 0;
  }
  const std::int32_t code = llama_decode(context_.get(), batch);
  llama_batch_free(batch);
  if (code != 0) throw std::runtime_error(fmt::format("llama_decode of {} tokens: {}", tokens.size(), code));
}

std::span<const float> LlamaSession::logits(std::size_t index) const {
  return {llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(index)), model_.words()};
}

void LlamaSession::remove(std::uint32_t slot, std::uint32_t first) {
  (void)llama_memory_seq_rm(memory_, static_cast<llama_seq_id>(slot), static_cast<llama_pos>(first), -1);
}

void LlamaSession::import(std::uint32_t slot, std::uint32_t count, std::span<const std::byte> state) {
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(state.data());
  if (state.size() != shape_.bytes(count) ||
      llama_state_seq_set_data(context_.get(), bytes, state.size(), scratch_) != state.size())
    throw std::runtime_error(fmt::format("llama.cpp did not take the state of {} tokens", count));
  llama_memory_seq_cp(memory_, scratch_, static_cast<llama_seq_id>(slot), -1, -1);
  (void)llama_memory_seq_rm(memory_, scratch_, -1, -1);
}

void LlamaSession::export_to(std::uint32_t slot, std::uint32_t first, std::uint32_t count, std::byte* page) {
  const auto begin = static_cast<llama_pos>(first);
  llama_memory_seq_cp(memory_, static_cast<llama_seq_id>(slot), scratch_, begin, begin + static_cast<llama_pos>(count));
  buffer_.resize(shape_.bytes(count));
  auto* const bytes = reinterpret_cast<std::uint8_t*>(buffer_.data());
  const bool good = llama_state_seq_get_data(context_.get(), bytes, buffer_.size(), scratch_) == buffer_.size() &&
                    shape_.split(buffer_, begin, count, {&page, 1});
  (void)llama_memory_seq_rm(memory_, scratch_, -1, -1);
  if (!good) throw std::runtime_error(fmt::format("llama.cpp did not give the state of {} tokens", count));
}

PageSample sample_of(std::span<const std::byte> state, std::uint32_t count) {
  const std::span<const std::byte> body = state.subspan(state_head_bytes(count));
  const std::size_t numbers = body.size() / sizeof(ggml_fp16_t);
  constexpr std::size_t kNumbers = kSampleWords * 2;
  PageSample sample{};
  auto* const to = reinterpret_cast<std::byte*>(sample.data());
  for (std::size_t i = 0; i < kNumbers; ++i) {
    const std::size_t at = (2 * i + 1) * numbers / (2 * kNumbers);
    std::memcpy(to + i * sizeof(ggml_fp16_t), body.data() + at * sizeof(ggml_fp16_t), sizeof(ggml_fp16_t));
  }
  return sample;
}

double deviation(const PageSample& page, const PageSample& right) {
  constexpr std::size_t kNumbers = kSampleWords * 2;
  std::array<ggml_fp16_t, kNumbers> a{};
  std::array<ggml_fp16_t, kNumbers> b{};
  std::memcpy(a.data(), page.data(), sizeof a);
  std::memcpy(b.data(), right.data(), sizeof b);
  double difference = 0;
  double all = 0;
  for (std::size_t i = 0; i < kNumbers; ++i) {
    const double is = ggml_fp16_to_fp32(a[i]);
    const double should = ggml_fp16_to_fp32(b[i]);
    // A section's header may be among them, which is no number and the same in both.
    if (a[i] != b[i]) difference += (is - should) * (is - should);
    if (std::isfinite(should) && std::abs(should) < 1e3) all += should * should;
  }
  return std::isfinite(difference) && all > 0 ? std::sqrt(difference / all) : 1e9 * (difference != 0);
}

}  // namespace kvtrie::engine
