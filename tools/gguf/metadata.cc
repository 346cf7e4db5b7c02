// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/gguf/metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace kvtrie::gguf {
namespace {

enum class Type : std::uint32_t {
  kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64  // the format's numbers
};
constexpr std::array<std::uint8_t, 13> kBytesOf = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: not fixed

constexpr std::uint64_t kSkipByReading = 4096;  // seeking throws the stream's buffer away

bool is_unsigned(Type type) {
  return type == Type::kU8 || type == Type::kU16 || type == Type::kU32 || type == Type::kU64;
}
bool is_signed(Type type) {
  return type == Type::kI8 || type == Type::kI16 || type == Type::kI32 || type == Type::kI64;
}

// As far as it can be a terminal's; keys are ASCII.
std::string quoted(std::string_view key) {
  std::string text = "'";
  for (const char c : key.substr(0, 80)) text += c >= 0x20 && c < 0x7F ? c : '?';
  return text + (key.size() > 80 ? "...'" : "'");
}

}  // namespace

// Front to back over the metadata; every take is checked against what is left.
class Reader {
 public:
  explicit Reader(std::istream& stream) : stream_(stream) {
    stream_.seekg(0, std::ios::end);
    const auto end = stream_.tellg();
    stream_.seekg(0);
    if (!stream_ || end < 0) throw FormatError("it cannot be read");
    left_ = std::min(static_cast<std::uint64_t>(end), kMetadataBytesMax);
    cut_short_ = left_ < static_cast<std::uint64_t>(end);
  }

  void read_all(Metadata& metadata) {
    check_header();
    const std::uint64_t pairs = number(8);
    if (pairs > kPairsMax) fail(fmt::format("it says to have {} metadata pairs, more than {}", pairs, kPairsMax));
    for (std::uint64_t i = 0; i < pairs; ++i) {
      std::string key = read_key();
      at_ = quoted(key);
      Metadata::Value value = read_value(type());
      if (!metadata.values_.emplace(std::move(key), std::move(value)).second) fail("the key stands twice");
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw FormatError(at_.empty() ? what : fmt::format("metadata {}: {}", at_, what));
  }

  void check_header() {
    if (number(4) != 0x46554747) fail("it does not begin with GGUF: not a GGUF file");
    const std::uint64_t version = number(4);
    if (version == std::uint64_t{2} << 24 || version == std::uint64_t{3} << 24) {
      fail("it is a big-endian GGUF file; only little-endian ones are understood");
    }
    if (version != 2 && version != 3) fail(fmt::format("GGUF version {}; 2 and 3 are understood", version));
    number(8);  // tensors: they come later, and are not read
  }

  void claim(std::uint64_t bytes) {
    if (bytes > left_) {
      fail(cut_short_ ? fmt::format("the metadata are larger than {} MiB", kMetadataBytesMax >> 20)
                      : "the file ends too early: truncated, or a count in it is wrong");
    }
    left_ -= bytes;
  }

  void take(char* out, std::uint64_t bytes) {
    claim(bytes);
    stream_.read(out, static_cast<std::streamsize>(bytes));
    if (!stream_) fail("reading failed: the file changed, or the disk has an error");
  }

  void skip(std::uint64_t bytes) {
    claim(bytes);
    if (bytes <= kSkipByReading) {
      stream_.ignore(static_cast<std::streamsize>(bytes));
    } else {
      stream_.seekg(static_cast<std::streamoff>(bytes), std::ios::cur);
    }
    if (!stream_) fail("reading failed: the file changed, or the disk has an error");
  }

  std::uint64_t number(unsigned bytes) {
    std::array<unsigned char, 8> raw{};
    take(reinterpret_cast<char*>(raw.data()), bytes);
    std::uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) value |= std::uint64_t{raw[i]} << (8 * i);
    return value;
  }

  Type type() {
    const std::uint64_t value = number(4);
    if (value >= kBytesOf.size()) fail(fmt::format("type {} is none of GGUF's", value));
    return static_cast<Type>(value);
  }

  std::string read_key() {
    at_ = "after " + (at_.empty() ? "the header" : at_);
    const std::uint64_t bytes = number(8);
    if (bytes == 0 || bytes > kKeyBytesMax) fail(fmt::format("a key of {} bytes", bytes));
    std::string key(bytes, '\0');
    take(key.data(), bytes);
    return key;
  }

  Metadata::Value read_value(Type type) {
    if (type == Type::kArray) return read_array();
    if (type == Type::kString) return read_text();
    const std::uint64_t raw = number(kBytesOf[static_cast<std::size_t>(type)]);
    if (type == Type::kBool && raw > 1) fail(fmt::format("a truth value of {}", raw));
    return whole_number(type, raw);
  }

  // Negative ones and fractions describe no size, so they are not kept.
  static Metadata::Value whole_number(Type type, std::uint64_t raw) {
    const unsigned bits = 8U * kBytesOf[static_cast<std::size_t>(type)];
    const bool negative = is_signed(type) && (raw >> (bits - 1) & 1) != 0;
    if ((is_unsigned(type) || is_signed(type)) && !negative) return raw;
    return Metadata::NotKept{};
  }

  Metadata::Value read_text() {
    const std::uint64_t bytes = number(8);
    if (bytes > kTextKeptMax) {
      skip(bytes);
      return Metadata::NotKept{};
    }
    std::string text(bytes, '\0');
    take(text.data(), bytes);
    return text;
  }

  Metadata::Value read_array() {
    const Type of = type();
    const std::uint64_t count = number(8);
    if (of == Type::kArray) fail("an array of arrays, which no model has");
    if (of == Type::kString) {
      for (std::uint64_t i = 0; i < count; ++i) skip(number(8));  // ends: each takes 8 bytes of what is left
      return Metadata::NotKept{};
    }
    const unsigned bytes = kBytesOf[static_cast<std::size_t>(of)];
    if (count > left_ / bytes || count > kElementsKeptMax) {
      skip(count > left_ / bytes ? left_ + 1 : count * bytes);
      return Metadata::NotKept{};
    }
    std::vector<std::uint64_t> numbers;
    bool whole = true;
    for (std::uint64_t i = 0; i < count; ++i) {
      const Metadata::Value value = whole_number(of, number(bytes));
      const auto* element = std::get_if<std::uint64_t>(&value);
      whole = whole && element != nullptr;
      if (element != nullptr) numbers.push_back(*element);
    }
    if (!whole) return Metadata::NotKept{};
    return numbers;
  }

  std::istream& stream_;
  std::uint64_t left_ = 0;  // bytes that may still be taken
  bool cut_short_ = false;  // the file has more
  std::string at_;          // the pair that is being read, for messages
};

Metadata Metadata::read(std::istream& stream) {
  Metadata metadata;
  Reader(stream).read_all(metadata);
  return metadata;
}

template <typename T>
const T* Metadata::find(std::string_view key, const char* kind) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return nullptr;
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) throw FormatError(fmt::format("metadata {}: not {}", quoted(key), kind));
  return value;
}

std::optional<std::uint64_t> Metadata::number(std::string_view key) const {
  const auto* value = find<std::uint64_t>(key, "a whole number");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<std::string> Metadata::text(std::string_view key) const {
  const auto* value = find<std::string>(key, "a text of a usual length");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<std::vector<std::uint64_t>> Metadata::numbers(std::string_view key) const {
  const auto found = values_.find(key);
  if (found != values_.end()) {
    if (const auto* one = std::get_if<std::uint64_t>(&found->second)) return std::vector{*one};
  }
  const auto* value = find<std::vector<std::uint64_t>>(key, "a whole number or a short array of them");
  return value == nullptr ? std::nullopt : std::optional(*value);
}

}  // namespace kvtrie::gguf
