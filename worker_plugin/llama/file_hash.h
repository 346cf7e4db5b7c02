// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which file it is, by all of its bytes: two models that differ in one weight must not share pages. XXH3, 128 bits:
// some 10 GB/s from the page cache, so results are remembered in a folder by device, inode, size and time of change.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvtrie::llama {

// A file as it was at some time: another one at its path, or other bytes in it, is not equal.
struct FileVersion {
  std::string path;  // absolute, through no symbolic link
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t modified_ns = 0, changed_ns = 0;
  bool operator==(const FileVersion&) const = default;
};
// Throws std::system_error: there is none.
FileVersion file_version(const std::string& path);

// As below, of files that are as they were; throws std::runtime_error where one is not.
std::string hash_of_files(const std::vector<FileVersion>& files, const std::string& memory);

// 32 hexadecimal digits over the files' sizes and bytes, in this order. `memory`: a folder for remembered hashes, made
// where missing; empty: none. Throws std::system_error: a file cannot be read.
std::string hash_of_files(const std::vector<std::string>& paths, const std::string& memory);

}  // namespace kvtrie::llama
