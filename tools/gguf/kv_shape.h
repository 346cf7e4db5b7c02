// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What attention keeps for each token of a model, and so how many bytes a page of it has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/gguf/metadata.h"

namespace kvtrie::gguf {

inline constexpr std::uint32_t kLayersMax = 1024;
inline constexpr std::uint32_t kHeadsMax = 65536;
inline constexpr std::uint32_t kHeadLengthMax = 65536;

// Of one layer: what it keeps for a token is kv_heads x (key_length + value_length) elements.
struct LayerShape {
  std::uint32_t kv_heads = 0;  // 0: the layer keeps nothing for a token
  std::uint32_t key_length = 0;
  std::uint32_t value_length = 0;
  bool operator==(const LayerShape&) const = default;
};

struct KvShape {
  std::string name;  // as the file or the list calls the model
  std::vector<LayerShape> layers;
  std::vector<std::string> notes;  // what a page of this shape does not say
};

// Layers that are all alike.
KvShape uniform_shape(std::string name, std::uint32_t layers, LayerShape layer);

// From general.architecture, general.name and ARCH.block_count, .embedding_length, .attention.head_count,
// .attention.head_count_kv (one number, or one a layer), .attention.key_length and .value_length, with the defaults that
// ggml has. Throws FormatError: what is missing or cannot be; also for latent attention, whose layout is the engine's own.
KvShape shape_from(const Metadata& metadata);

// How an element is stored: blocks of `elements`, `bytes` each (ggml's quantised kinds).
struct ElementKind {
  const char* name;
  std::uint32_t elements;
  std::uint32_t bytes;
};
// None: no such kind.
std::optional<ElementKind> element_kind(std::string_view name);
// "f32, f16, ..." with `between` being ", ".
std::string element_kind_names(const char* between);

struct PageBytes {
  std::uint64_t bytes = 0;  // of a page in one plane, a multiple of 8
  std::string problem;      // not empty: such a page cannot be, and why
};
// `planes`: tensor-parallel ranks, each with its share of a layer's heads; of fewer heads than ranks each rank keeps one.
PageBytes page_bytes_of(const KvShape& shape, ElementKind kind, std::uint32_t tokens_per_page, std::uint32_t planes);

}  // namespace kvtrie::gguf
