// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/llama/random_model.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string_view>

namespace kvtrie::llama {
namespace {

struct Free {
  void operator()(gguf_context* context) const { gguf_free(context); }
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using Gguf = std::unique_ptr<gguf_context, Free>;
using Tensors = std::unique_ptr<ggml_context, Free>;

// splitmix64: the same numbers everywhere, which the standard library's distributions do not promise.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31);
  }
  // Near enough to a normal distribution: four uniform numbers added, mean 0, deviation 1.
  float normal() {
    const std::uint64_t bits = next();
    const auto sum = static_cast<float>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48));
    return (sum - 2 * 65535.0F) / (65536.0F * 0.57735F);
  }

 private:
  std::uint64_t state_;
};

void fill(ggml_tensor* tensor, float deviation, Random& random) {
  const auto count = static_cast<std::size_t>(ggml_nelements(tensor));
  if (tensor->type == GGML_TYPE_F32) {
    auto* values = static_cast<float*>(ggml_get_data(tensor));
    for (std::size_t i = 0; i < count; ++i)
      values[i] = deviation * random.normal();
  } else {
    auto* values = static_cast<ggml_fp16_t*>(ggml_get_data(tensor));
    for (std::size_t i = 0; i < count; ++i)
      values[i] = ggml_fp32_to_fp16(deviation * random.normal());
  }
}

void fill_with_ones(ggml_tensor* tensor) {
  auto* values = static_cast<float*>(ggml_get_data(tensor));
  for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i)
    values[i] = 1.0F;
}

void check_shape(const ModelShape& shape) {
  const auto refuse = [](const char* why) { throw RandomModelError(why); };
  if (shape.layers == 0 || shape.width == 0 || shape.heads == 0 || shape.kv_heads == 0 || shape.feed_forward == 0) {
    refuse("layers, width, heads, KV heads and feed-forward: at least 1");
  }
  if (shape.width % shape.heads != 0) refuse("the width is a multiple of the heads");
  if (shape.width / shape.heads % 2 != 0) refuse("width / heads is even, for the rotary positions");
  if (shape.heads % shape.kv_heads != 0) refuse("the heads are a multiple of the KV heads");
}

std::int64_t vocabulary_size(const gguf_context* vocabulary, const std::string& path) {
  const std::int64_t key = gguf_find_key(vocabulary, "tokenizer.ggml.tokens");
  if (key < 0) throw RandomModelError(fmt::format("{}: has no tokenizer.ggml.tokens", path));
  return static_cast<std::int64_t>(gguf_get_arr_n(vocabulary, key));
}

// The vocabulary file describes the model that it was taken from; of that only the tokenizer is wanted.
void set_metadata(gguf_context* file, const gguf_context* vocabulary, const RandomModelOptions& options) {
  gguf_set_kv(file, vocabulary);
  std::vector<std::string> others;
  for (std::int64_t i = 0; i < gguf_get_n_kv(file); ++i) {
    const std::string_view key = gguf_get_key(file, i);
    if (!key.starts_with("tokenizer.")) others.emplace_back(key);
  }
  for (const std::string& key : others)
    gguf_remove_key(file, key.c_str());
  const ModelShape& shape = options.shape;
  gguf_set_val_str(file, "general.architecture", "llama");
  gguf_set_val_str(file, "general.name", options.name.c_str());
  gguf_set_val_u32(file, "general.file_type", options.type == WeightType::kF32 ? 0 : 1);
  gguf_set_val_u32(file, "llama.block_count", shape.layers);
  gguf_set_val_u32(file, "llama.context_length", shape.context);
  gguf_set_val_u32(file, "llama.embedding_length", shape.width);
  gguf_set_val_u32(file, "llama.feed_forward_length", shape.feed_forward);
  gguf_set_val_u32(file, "llama.attention.head_count", shape.heads);
  gguf_set_val_u32(file, "llama.attention.head_count_kv", shape.kv_heads);
  gguf_set_val_f32(file, "llama.attention.layer_norm_rms_epsilon", 1e-5F);
  gguf_set_val_u32(file, "llama.rope.dimension_count", shape.width / shape.heads);
  gguf_set_val_f32(file, "llama.rope.freq_base", 10000.0F);
}

// Calls `matrix(name, rows, columns, deviation)` and `norm(name)` for each tensor of the model, in the file's order.
void each_tensor(const ModelShape& shape, std::int64_t vocabulary,
                 const std::function<void(const std::string&, std::int64_t, std::int64_t, float)>& matrix,
                 const std::function<void(const std::string&)>& norm) {
  const std::int64_t width = shape.width;
  const std::int64_t kv_width = width / shape.heads * shape.kv_heads;
  const std::int64_t inner = shape.feed_forward;
  const auto by = [](std::int64_t inputs) { return 1.0F / std::sqrt(static_cast<float>(inputs)); };
  // Small beside what the layers add, or a tied output would repeat the last token for ever.
  matrix("token_embd.weight", vocabulary, width, 0.05F);
  norm("output_norm.weight");
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    const auto name = [layer](const char* part) { return fmt::format("blk.{}.{}.weight", layer, part); };
    norm(name("attn_norm"));
    // Queries and keys twice as large: attention that chooses, so that a wrong page changes the answer.
    matrix(name("attn_q"), width, width, 2 * by(width));
    matrix(name("attn_k"), kv_width, width, 2 * by(width));
    matrix(name("attn_v"), kv_width, width, by(width));
    matrix(name("attn_output"), width, width, by(width));
    norm(name("ffn_norm"));
    matrix(name("ffn_gate"), inner, width, by(width));
    matrix(name("ffn_up"), inner, width, by(width));
    matrix(name("ffn_down"), width, inner, by(inner));
  }
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"2m", {.layers = 2, .width = 64, .heads = 2, .kv_heads = 2, .feed_forward = 192}},
      {"8m", {.layers = 4, .width = 192, .heads = 6, .kv_heads = 3, .feed_forward = 512}},
      {"32m", {.layers = 6, .width = 448, .heads = 7, .kv_heads = 7, .feed_forward = 1536}},
      {"110m", {.layers = 12, .width = 768, .heads = 12, .kv_heads = 12, .feed_forward = 2048}},
  };
  return all;
}

std::uint64_t write_random_model(const RandomModelOptions& options) {
  check_shape(options.shape);
  const Gguf vocabulary(gguf_init_from_file(options.vocabulary.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (!vocabulary) throw RandomModelError(fmt::format("{}: not a GGUF file that can be read", options.vocabulary));
  const std::int64_t tokens = vocabulary_size(vocabulary.get(), options.vocabulary);

  const ggml_type type = options.type == WeightType::kF32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
  std::size_t bytes = 0;
  std::uint64_t parameters = 0;
  const auto count = [&](std::int64_t elements, ggml_type of) {
    bytes += ggml_type_size(of) * static_cast<std::size_t>(elements) + ggml_tensor_overhead() + GGML_MEM_ALIGN;
    parameters += static_cast<std::uint64_t>(elements);
  };
  const std::int64_t width = options.shape.width;
  each_tensor(
      options.shape, tokens,
      [&](const std::string&, std::int64_t rows, std::int64_t columns, float) { count(rows * columns, type); },
      [&](const std::string&) { count(width, GGML_TYPE_F32); });

  const Tensors tensors(ggml_init({.mem_size = bytes, .mem_buffer = nullptr, .no_alloc = false}));
  if (!tensors) throw RandomModelError(fmt::format("no memory for {} bytes of weights", bytes));
  const Gguf file(gguf_init_empty());
  set_metadata(file.get(), vocabulary.get(), options);
  Random random(options.seed);
  const auto add = [&](ggml_tensor* tensor, const std::string& name) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(file.get(), tensor);
  };
  each_tensor(
      options.shape, tokens,
      [&](const std::string& name, std::int64_t rows, std::int64_t columns, float deviation) {
        ggml_tensor* tensor = ggml_new_tensor_2d(tensors.get(), type, columns, rows);
        fill(tensor, deviation, random);
        add(tensor, name);
      },
      [&](const std::string& name) {
        ggml_tensor* tensor = ggml_new_tensor_1d(tensors.get(), GGML_TYPE_F32, width);
        fill_with_ones(tensor);
        add(tensor, name);
      });

  const std::string temporary = fmt::format("{}.{}", options.output, ::getpid());
  if (!gguf_write_to_file(file.get(), temporary.c_str(), false) ||
      std::rename(temporary.c_str(), options.output.c_str()) != 0) {
    std::remove(temporary.c_str());
    throw RandomModelError(fmt::format("{}: cannot be written", options.output));
  }
  return parameters;
}

}  // namespace kvtrie::llama
