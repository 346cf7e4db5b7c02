// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "dump/npy.h"

#include <algorithm>
#include <cstring>

namespace kvtrie::dump {
namespace {

const char* descr_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "<f4";
    case DType::kF16: return "<f2";
    case DType::kBf16: return "<u2";
    case DType::kRaw: break;
  }
  return "|u1";
}

}  // namespace

std::string npy_header(DType dtype, const std::vector<std::uint64_t>& shape) {
  std::string dict = std::string("{'descr': '") + descr_of(dtype) + "', 'fortran_order': False, 'shape': (";
  for (const std::uint64_t count : shape) dict += std::to_string(count) + ", ";
  if (shape.size() > 1) dict.resize(dict.size() - 2);
  dict += "), }";
  constexpr std::size_t kBefore = 10;  // magic, version, length
  dict.append(63 - (kBefore + dict.size()) % 64, ' ');
  dict += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(dict.size() & 0xFF);
  header += static_cast<char>(dict.size() >> 8);
  return header + dict;
}

std::span<const std::byte> npy_items(std::span<const std::byte> file, DType dtype,
                                     const std::vector<std::uint64_t>& shape) {
  const std::string header = npy_header(dtype, shape);
  const std::uint64_t bytes = Part{{}, 0, dtype, shape}.bytes();
  if (file.size() != header.size() + bytes || std::memcmp(file.data(), header.data(), header.size()) != 0) return {};
  return file.subspan(header.size());
}

}  // namespace kvtrie::dump
