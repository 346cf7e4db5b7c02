// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which file it is, by all of its bytes: two models that differ in one weight must not share pages. XXH3, 128 bits:
// some 10 GB/s from the page cache, so results are remembered in a folder by device, inode, size and time of change.
#pragma once

#include <string>
#include <vector>

namespace kvtrie::llama {

// 32 hexadecimal digits over the files' sizes and bytes, in this order. `memory`: a folder for remembered hashes, made
// where missing; empty: none. Throws std::system_error: a file cannot be read.
std::string hash_of_files(const std::vector<std::string>& paths, const std::string& memory);

}  // namespace kvtrie::llama
