// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "dump/page_layout.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

namespace kvtrie::dump {
namespace {

constexpr std::uint64_t kItemsMax = std::uint64_t{1} << 48;

struct NamedType {
  std::string_view name;
  DType dtype;
};
constexpr std::array<NamedType, 12> kTypes = {{{"f32", DType::kF32},
                                              {"float32", DType::kF32},
                                              {"f16", DType::kF16},
                                              {"float16", DType::kF16},
                                              {"bf16", DType::kBf16},
                                              {"bfloat16", DType::kBf16},
                                              {"raw", DType::kRaw},
                                              {"u8", DType::kRaw},
                                              {"i8", DType::kRaw},
                                              {"int8", DType::kRaw},
                                              {"f8", DType::kRaw},
                                              {"fp8", DType::kRaw}}};

std::string_view first_word(std::string_view text) { return text.substr(0, text.find(' ')); }

// "2x16x64"; empty when it is no such thing.
std::vector<std::uint64_t> shape_of(std::string_view text) {
  std::vector<std::uint64_t> shape;
  while (!text.empty()) {
    std::uint64_t count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    if (error != std::errc{} || count == 0) return {};
    shape.push_back(count);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (text.empty()) break;
    if (text.front() != 'x' || text.size() == 1) return {};
    text.remove_prefix(1);
  }
  return shape;
}

// 0: too many to be true.
std::uint64_t items_of(const std::vector<std::uint64_t>& shape) {
  std::uint64_t items = 1;
  for (const std::uint64_t count : shape) {
    if (count != 0 && items > kItemsMax / count) return 0;
    items *= count;
  }
  return items;
}

// Reads forward; once something is not there it stays at the end and says so.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T take() {
    T value{};
    if (bytes_.size() - at_ < sizeof value) {
      good_ = false;
    } else {
      std::memcpy(&value, bytes_.data() + at_, sizeof value);
      at_ += sizeof value;
    }
    return value;
  }
  void skip(std::uint64_t bytes) {
    if (bytes > bytes_.size() - at_) {
      good_ = false;
    } else {
      at_ += bytes;
    }
  }
  bool good() const { return good_; }
  std::uint64_t at() const { return at_; }

 private:
  std::span<const std::byte> bytes_;
  std::uint64_t at_ = 0;
  bool good_ = true;
};

// ggml's numbers of types.
DType of_ggml(std::int32_t type) {
  if (type == 0) return DType::kF32;
  if (type == 1) return DType::kF16;
  if (type == 30) return DType::kBf16;
  return DType::kRaw;
}

// Rows of `row_bytes` bytes; false: not there, or no whole items.
bool add_rows(Reader& reader, std::string name, DType dtype, std::uint64_t rows, std::uint64_t row_bytes,
              std::vector<Part>& parts) {
  const bool whole = row_bytes != 0 && row_bytes % item_bytes(dtype) == 0;
  if (!reader.good() || !whole || rows > kItemsMax / row_bytes) return false;
  Part part{std::move(name), reader.at(), dtype, {rows, row_bytes / item_bytes(dtype)}};
  reader.skip(rows * row_bytes);
  if (!reader.good()) return false;
  parts.push_back(std::move(part));
  return true;
}

}  // namespace

const char* name_of(DType dtype) {
  constexpr std::array kNames = {"raw", "f32", "f16", "bf16"};
  return kNames.at(static_cast<std::size_t>(dtype));
}

std::uint64_t item_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : dtype == DType::kRaw ? 1 : 2; }

std::optional<DType> dtype_of(std::string_view name) {
  for (const NamedType& type : kTypes) {
    if (type.name == name) return type.dtype;
  }
  // q8_0, q4_K, iq4_nl, fp8_e4m3, ...
  if (name.starts_with("q") || name.starts_with("iq") || name.starts_with("fp8_")) return DType::kRaw;
  return std::nullopt;
}

std::uint64_t Part::items() const { return items_of(shape); }

std::vector<Part> whole_page(std::uint64_t page_bytes, DType dtype, std::vector<std::uint64_t> shape) {
  if (page_bytes % item_bytes(dtype) != 0) {
    dtype = DType::kRaw;
    shape.clear();
  }
  const std::uint64_t items = page_bytes / item_bytes(dtype);
  if (shape.empty() || items_of(shape) != items) shape = {items};
  return {{"page", 0, dtype, std::move(shape)}};
}

std::optional<std::vector<Part>> parts_of_llama_state(std::span<const std::byte> page) {
  Reader reader(page);
  std::vector<Part> parts;
  reader.skip(8);  // magic and sequence
  const auto streams = reader.take<std::uint32_t>();
  const auto cells = reader.take<std::uint32_t>();
  reader.skip(std::uint64_t{cells} * 12);
  const auto transposed = reader.take<std::uint32_t>();
  const auto layers = reader.take<std::uint32_t>();
  if (!reader.good() || streams != 1 || cells == 0 || transposed > 1 || layers == 0) return std::nullopt;
  for (const bool value : {false, true}) {
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const DType dtype = of_ggml(reader.take<std::int32_t>());
      std::uint64_t rows = cells;
      std::uint64_t row_bytes = 0;
      if (value && transposed == 1) {
        const auto element_bytes = reader.take<std::uint32_t>();
        rows = reader.take<std::uint32_t>();
        row_bytes = std::uint64_t{element_bytes} * cells;
      } else {
        row_bytes = reader.take<std::uint64_t>();
      }
      const std::string name = (value ? "v." : "k.") + std::to_string(layer);
      if (!add_rows(reader, name, dtype, rows, row_bytes, parts)) return std::nullopt;
    }
  }
  return parts;
}

std::optional<std::string_view> field_of(std::string_view fields, std::string_view key) {
  while (!fields.empty()) {
    const std::string_view line = fields.substr(0, fields.find('\n'));
    const std::size_t equal = line.find('=');
    if (equal != std::string_view::npos && line.substr(0, equal) == key) return line.substr(equal + 1);
    fields.remove_prefix(std::min(fields.size(), line.size() + 1));
  }
  return std::nullopt;
}

std::vector<Part> parts_of_page(std::string_view fields, std::span<const std::byte> page) {
  if (field_of(fields, "engine").value_or("").starts_with("llama.cpp")) {
    if (auto parts = parts_of_llama_state(page)) return *std::move(parts);
    return whole_page(page.size(), DType::kRaw);
  }
  const DType dtype = dtype_of(first_word(field_of(fields, "kv").value_or("raw"))).value_or(DType::kRaw);
  return whole_page(page.size(), dtype, shape_of(field_of(fields, "kv_shape").value_or("")));
}

}  // namespace kvtrie::dump
