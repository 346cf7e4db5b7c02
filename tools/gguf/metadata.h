// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The metadata of a GGUF file (versions 2 and 3, little-endian): what stands before its tensors.
//
//   "GGUF" | version u32 | tensors u64 | pairs u64 | pairs x { key string | type u32 | value }
//   string: bytes u64 | text        array: type u32 | elements u64 | elements
//
// The file may hold any bytes. It is read front to back, no count in it is believed before the bytes that it stands for
// were seen to fit, and memory is bounded by the limits below, whatever it says. What is not needed to describe a model
// (long arrays, long texts, fractions) is checked, skipped and remembered as "not kept".
#pragma once

#include <cstdint>
#include <functional>
#include <istream>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace kvtrie::gguf {

inline constexpr std::uint64_t kPairsMax = 4096;                 // models have some 30
inline constexpr std::uint64_t kKeyBytesMax = 65535;             // as the format says
inline constexpr std::uint64_t kTextKeptMax = 4096;              // bytes
inline constexpr std::uint64_t kElementsKeptMax = 1024;          // values a layer have one element a layer
inline constexpr std::uint64_t kMetadataBytesMax = 256ULL << 20;  // vocabularies take some 10 MiB

// Not a GGUF file, damaged, or without what was asked for; what() says what and where.
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Metadata {
 public:
  // Throws FormatError. `stream`: seekable, at the file's first byte.
  static Metadata read(std::istream& stream);

  bool has(std::string_view key) const { return values_.find(key) != values_.end(); }
  // None: no such key. FormatError: it is there and is something else (negative, a text, an array, ...).
  std::optional<std::uint64_t> number(std::string_view key) const;
  std::optional<std::string> text(std::string_view key) const;
  // A number, or an array of numbers.
  std::optional<std::vector<std::uint64_t>> numbers(std::string_view key) const;

 private:
  struct NotKept {};
  using Value = std::variant<NotKept, std::uint64_t, std::vector<std::uint64_t>, std::string>;
  friend class Reader;

  template <typename T>
  const T* find(std::string_view key, const char* kind) const;

  std::map<std::string, Value, std::less<>> values_;
};

}  // namespace kvtrie::gguf
