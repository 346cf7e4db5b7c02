// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/known_models.h"

#include <algorithm>
#include <cctype>

namespace kvtrie::inspect {
namespace {

constexpr const char* kWindows = "layers with a sliding window are counted in full: a page serves every later token";
constexpr const char* kLatent =
    "latent attention, as engines keep it that cache the latent vector (kv_lora_rank + qk_rope_head_dim)";

// num_hidden_layers | num_key_value_heads, head_dim twice (hidden_size / num_attention_heads where it is not given)
constexpr KnownModel kModels[] = {
    {"llama-3.2-1b", 16, {8, 64, 64}, "meta-llama/Llama-3.2-1B"},
    {"llama-3.2-3b", 28, {8, 128, 128}, "meta-llama/Llama-3.2-3B"},
    {"llama-3.1-8b", 32, {8, 128, 128}, "meta-llama/Llama-3.1-8B"},
    {"llama-3.1-70b", 80, {8, 128, 128}, "meta-llama/Llama-3.1-70B"},
    {"llama-3.1-405b", 126, {8, 128, 128}, "meta-llama/Llama-3.1-405B"},
    {"mistral-7b", 32, {8, 128, 128}, "mistralai/Mistral-7B-v0.3"},
    {"mixtral-8x7b", 32, {8, 128, 128}, "mistralai/Mixtral-8x7B-v0.1"},
    {"qwen2.5-7b", 28, {4, 128, 128}, "Qwen/Qwen2.5-7B"},
    {"qwen2.5-72b", 80, {8, 128, 128}, "Qwen/Qwen2.5-72B"},
    {"qwen3-8b", 36, {8, 128, 128}, "Qwen/Qwen3-8B"},
    {"qwen3-32b", 64, {8, 128, 128}, "Qwen/Qwen3-32B"},
    {"qwen3-30b-a3b", 48, {4, 128, 128}, "Qwen/Qwen3-30B-A3B"},
    {"gemma-2-9b", 42, {8, 256, 256}, "google/gemma-2-9b", kWindows},
    {"gemma-2-27b", 46, {16, 128, 128}, "google/gemma-2-27b", kWindows},
    {"gpt-oss-20b", 24, {8, 64, 64}, "openai/gpt-oss-20b", kWindows},
    {"gpt-oss-120b", 36, {8, 64, 64}, "openai/gpt-oss-120b", kWindows},
    {"deepseek-v3", 61, {1, 576, 0}, "deepseek-ai/DeepSeek-V3", kLatent},
};

char lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

}  // namespace

gguf::KvShape KnownModel::shape() const {
  gguf::KvShape shape = gguf::uniform_shape(name, layers, layer);
  if (*note != '\0') shape.notes.emplace_back(note);
  return shape;
}

std::span<const KnownModel> known_models() { return kModels; }

const KnownModel* find_known_model(std::string_view name) {
  const auto* found = std::ranges::find_if(kModels, [&](const KnownModel& model) {
    return std::ranges::equal(name, std::string_view(model.name), {}, lower, lower);
  });
  return found == std::end(kModels) ? nullptr : found;
}

}  // namespace kvtrie::inspect
