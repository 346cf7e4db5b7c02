// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A model file with the vocabulary of a real model and weights that a seed decides: it answers nonsense, in the time
// and with the memory of a trained model of its shape. The same shape and seed give the same file, byte for byte.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvtrie::llama {

// A decoder of the Llama family: RMS norm, rotary positions, grouped heads, a gated feed-forward, the output tied to
// the token embedding.
struct ModelShape {
  std::uint32_t layers = 2;
  std::uint32_t width = 64;  // a multiple of heads
  std::uint32_t heads = 2;   // a multiple of kv_heads; width / heads is even
  std::uint32_t kv_heads = 2;
  std::uint32_t feed_forward = 192;
  std::uint32_t context = 8192;  // tokens it says it was trained for
};

struct Preset {
  const char* name;
  ModelShape shape;
};
// Smallest first; named by their parameters with a vocabulary of 32,000 tokens.
const std::vector<Preset>& presets();

enum class WeightType { kF32, kF16 };

struct RandomModelOptions {
  ModelShape shape;
  std::string vocabulary;  // a GGUF file with tokenizer.* metadata
  std::string output;
  std::string name;  // general.name
  WeightType type = WeightType::kF16;
  std::uint64_t seed = 1;
};

struct RandomModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Writes options.output by way of a temporary file beside it; returns the number of parameters. Throws
// RandomModelError.
std::uint64_t write_random_model(const RandomModelOptions& options);

}  // namespace kvtrie::llama
