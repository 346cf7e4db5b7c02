// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/gguf/kv_shape.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvtrie::gguf {
namespace {

constexpr ElementKind kKinds[] = {
    {"f32", 1, 4}, {"f16", 1, 2}, {"bf16", 1, 2}, {"fp8", 1, 1}, {"q8_0", 32, 34}, {"q5_0", 32, 22}, {"q4_0", 32, 18},
};

// Reads `ARCH.` keys and checks that sizes are sizes.
class Attention {
 public:
  Attention(const Metadata& metadata, std::string architecture)
      : metadata_(metadata), architecture_(std::move(architecture)) {}

  std::string key(const char* name) const { return architecture_ + "." + name; }

  std::uint32_t checked(const std::string& key, std::uint64_t value, std::uint64_t min, std::uint64_t max) const {
    if (value < min || value > max) {
      throw FormatError(fmt::format("metadata '{}': {} cannot be, it must be {} to {}", key, value, min, max));
    }
    return static_cast<std::uint32_t>(value);
  }

  std::optional<std::uint32_t> size(const char* name, std::uint64_t max) const {
    const auto value = metadata_.number(key(name));
    return value ? std::optional(checked(key(name), *value, 1, max)) : std::nullopt;
  }

  std::uint32_t needed(const char* name, std::uint64_t max) const {
    const auto value = size(name, max);
    if (!value) throw FormatError(fmt::format("metadata '{}' is missing: not a whole language model", key(name)));
    return *value;
  }

  // One for each layer: a number that holds for all, or an array.
  std::optional<std::vector<std::uint32_t>> by_layer(const char* name, std::uint32_t layers) const {
    const auto values = metadata_.numbers(key(name));
    if (!values) return std::nullopt;
    if (values->size() != 1 && values->size() != layers) {
      throw FormatError(fmt::format("metadata '{}': {} values for {} layers", key(name), values->size(), layers));
    }
    std::vector<std::uint32_t> all;
    for (const std::uint64_t value : *values) all.push_back(checked(key(name), value, 0, kHeadsMax));
    if (all.size() == 1) all.assign(layers, all.front());
    return all;
  }

  // What ggml takes when the file does not say: the embedding, divided among the heads.
  std::uint32_t default_length(const std::vector<std::uint32_t>& heads) const {
    const std::uint32_t embedding = needed("embedding_length", std::uint64_t{1} << 24);
    const std::uint32_t most = *std::ranges::max_element(heads);
    if (most == 0 || embedding % most != 0) {
      throw FormatError(fmt::format("metadata '{}': {} is not a multiple of {} heads, and '{}' is missing",
                                    key("embedding_length"), embedding, most, key("attention.key_length")));
    }
    return checked(key("embedding_length"), embedding / most, 1, kHeadLengthMax);
  }

 private:
  const Metadata& metadata_;
  std::string architecture_;
};

void add_notes(const Metadata& metadata, const Attention& attention, KvShape& shape) {
  const auto without = std::ranges::count(shape.layers, 0U, &LayerShape::kv_heads);
  if (without != 0) {
    shape.notes.push_back(fmt::format(
        "{} of {} layers keep nothing for a token: if they are recurrent, their state is not in a page", without,
        shape.layers.size()));
  }
  if (metadata.has(attention.key("attention.sliding_window"))) {
    shape.notes.push_back("layers with a sliding window are counted in full: a page serves every later token");
  }
  if (metadata.has(attention.key("attention.shared_kv_layers"))) {
    shape.notes.push_back("layers that share the KV of others are counted too: this is an upper bound");
  }
}

// Bytes of `elements` in a row; 0: they do not fill whole blocks.
std::uint64_t row_bytes(std::uint64_t elements, ElementKind kind) {
  return elements % kind.elements == 0 ? elements / kind.elements * kind.bytes : 0;
}

}  // namespace

KvShape uniform_shape(std::string name, std::uint32_t layers, LayerShape layer) {
  return {std::move(name), std::vector<LayerShape>(layers, layer), {}};
}

KvShape shape_from(const Metadata& metadata) {
  const auto architecture = metadata.text("general.architecture");
  if (!architecture || architecture->empty()) throw FormatError("metadata 'general.architecture' is missing");
  const Attention attention(metadata, *architecture);
  if (metadata.has(attention.key("attention.kv_lora_rank"))) {
    throw FormatError(
        "the model has latent attention (kv_lora_rank), which engines store in ways of their own: give what yours stores "
        "with --layers, --kv-heads, --head-dim and --value-dim");
  }
  const std::uint32_t layers = attention.needed("block_count", kLayersMax);
  const auto heads = attention.by_layer("attention.head_count", layers);
  if (!heads) throw FormatError(fmt::format("metadata '{}' is missing", attention.key("attention.head_count")));
  const auto kv_heads = attention.by_layer("attention.head_count_kv", layers).value_or(*heads);
  const auto key_length = attention.size("attention.key_length", kHeadLengthMax);
  const auto value_length = attention.size("attention.value_length", kHeadLengthMax);
  const std::uint32_t length = key_length && value_length ? 0 : attention.default_length(*heads);
  KvShape shape;
  shape.name = metadata.text("general.name").value_or(*architecture);
  for (const std::uint32_t count : kv_heads) {
    shape.layers.push_back({count, key_length.value_or(length), value_length.value_or(length)});
  }
  add_notes(metadata, attention, shape);
  return shape;
}

std::optional<ElementKind> element_kind(std::string_view name) {
  const auto* found = std::ranges::find(kKinds, name, &ElementKind::name);
  return found == std::end(kKinds) ? std::nullopt : std::optional(*found);
}

std::string element_kind_names(const char* between) {
  std::string names;
  for (const ElementKind& kind : kKinds) names += (names.empty() ? "" : between) + std::string(kind.name);
  return names;
}

PageBytes page_bytes_of(const KvShape& shape, ElementKind kind, std::uint32_t tokens_per_page, std::uint32_t planes) {
  std::uint64_t bytes = 0;  // limits above: below 2^56
  for (const LayerShape& layer : shape.layers) {
    if (layer.kv_heads == 0) continue;
    const bool split = layer.kv_heads % planes == 0;
    if (!split && planes % layer.kv_heads != 0) {
      return {0, fmt::format("{} KV heads cannot be shared evenly by {} ranks", layer.kv_heads, planes)};
    }
    const std::uint64_t heads = split ? layer.kv_heads / planes : 1;
    for (const std::uint64_t length : {layer.key_length, layer.value_length}) {
      const std::uint64_t row = row_bytes(heads * length, kind);
      if (row == 0 && length != 0) {
        return {0, fmt::format("a row of {} elements does not fill whole blocks of {} ({})", heads * length,
                               kind.elements, kind.name)};
      }
      bytes += row * tokens_per_page;
    }
  }
  if (bytes == 0) return {0, "the model keeps nothing for a token"};
  return {(bytes + 7) / 8 * 8, {}};
}

}  // namespace kvtrie::gguf
