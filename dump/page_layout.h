// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the bytes of a page are: parts, each an array of one type. Bytes between them (headers, scales) are in no part.
// docs/dumps.md has the rules by which a namespace says it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvtrie::dump {

enum class DType : std::uint8_t { kRaw, kF32, kF16, kBf16 };  // kRaw: bytes, also of quantized types

const char* name_of(DType dtype);                      // raw, f32, f16, bf16
std::uint64_t item_bytes(DType dtype);                 // 1, 4, 2, 2
std::optional<DType> dtype_of(std::string_view name);  // of those names; of other types that engines have: kRaw

struct Part {
  std::string name;
  std::uint64_t offset = 0;  // of its first byte in the page
  DType dtype = DType::kRaw;
  std::vector<std::uint64_t> shape;  // C order

  std::uint64_t items() const;
  std::uint64_t bytes() const { return items() * item_bytes(dtype); }
};

// One part over the whole page. `shape` empty, or not of page_bytes: one dimension; a dtype whose items do not fill the
// page: raw.
std::vector<Part> whole_page(std::uint64_t page_bytes, DType dtype, std::vector<std::uint64_t> shape = {});

// A state of one sequence that llama.cpp wrote (engine "llama.cpp"): K and V of each layer are parts "k.0", "v.0", ...
// Nothing when the bytes are none: they come from a pool and are believed in nothing.
std::optional<std::vector<Part>> parts_of_llama_state(std::span<const std::byte> page);

// By the namespace's fields, lines "key=value", and by the bytes themselves where these say it.
std::vector<Part> parts_of_page(std::string_view fields, std::span<const std::byte> page);

// The value of a field; nothing when it is not there.
std::optional<std::string_view> field_of(std::string_view fields, std::string_view key);

}  // namespace kvtrie::dump
