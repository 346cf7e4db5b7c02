// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// numpy's .npy files, version 1.0, as numpy.load reads them. bf16, which numpy does not have, stands there as its bits
// (u2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dump/page_layout.h"

namespace kvtrie::dump {

// What comes before the items: a multiple of 64 bytes.
std::string npy_header(DType dtype, const std::vector<std::uint64_t>& shape);

// The items of a whole file that has this type and shape; empty when it is another or is cut short.
std::span<const std::byte> npy_items(std::span<const std::byte> file, DType dtype,
                                     const std::vector<std::uint64_t>& shape);

}  // namespace kvtrie::dump
