// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Writes small GGUF files by hand, the well-formed and the others.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvtrie::test {

class GgufBytes {
 public:
  enum Type : std::uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

  explicit GgufBytes(std::uint32_t version = 3) : version_(version) {}

  GgufBytes& number(std::string_view key, std::uint64_t value, Type type = kU32) {
    begin(key, type);
    put(value, bytes_of(type));
    return *this;
  }
  GgufBytes& text(std::string_view key, std::string_view value) {
    begin(key, kString);
    string(value);
    return *this;
  }
  GgufBytes& numbers(std::string_view key, const std::vector<std::uint64_t>& values, Type type = kU32) {
    begin(key, kArray);
    put(type, 4);
    put(values.size(), 8);
    for (const std::uint64_t value : values) put(value, bytes_of(type));
    return *this;
  }
  GgufBytes& texts(std::string_view key, const std::vector<std::string>& values) {
    begin(key, kArray);
    put(kString, 4);
    put(values.size(), 8);
    for (const std::string& value : values) string(value);
    return *this;
  }
  // Bytes as they are, as one more pair.
  GgufBytes& raw(std::string_view bytes) {
    ++pairs_;
    body_ += bytes;
    return *this;
  }

  std::string file() const {
    GgufBytes head;
    head.body_ = "GGUF";
    head.put(version_, 4);
    head.put(0, 8);  // tensors
    head.put(pairs_, 8);
    return head.body_ + body_;
  }

 private:
  static unsigned bytes_of(Type type) {
    constexpr unsigned kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return kBytes[type];
  }
  void put(std::uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; ++i) body_ += static_cast<char>(value >> (8 * i));
  }
  void string(std::string_view text) {
    put(text.size(), 8);
    body_ += text;
  }
  void begin(std::string_view key, Type type) {
    ++pairs_;
    string(key);
    put(type, 4);
  }

  std::uint32_t version_;
  std::uint64_t pairs_ = 0;
  std::string body_;
};

// As a converter writes one: 8 KV heads of 128, with a vocabulary in between.
inline GgufBytes small_llama(std::uint32_t layers = 32) {
  GgufBytes file;
  file.text("general.architecture", "llama")
      .text("general.name", "Small Llama")
      .number("general.quantization_version", 2)
      .texts("tokenizer.ggml.tokens", {"<s>", "</s>", "a", std::string(5000, 'b')})
      .numbers("tokenizer.ggml.scores", {0, 1, 2, 3}, GgufBytes::kF32)
      .number("llama.block_count", layers)
      .number("llama.embedding_length", 4096)
      .number("llama.attention.head_count", 32)
      .number("llama.attention.head_count_kv", 8);
  return file;
}

}  // namespace kvtrie::test
