// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A file that is there whole or not at all: FILE.tmp, locked (flock) while
// it is written, synced, renamed to FILE. A place in it can be gone back
// to, since a page may turn out to be lost when half of it is written.
//
// Crash: FILE as it was, perhaps FILE.tmp with nobody's lock / the next save writes it anew /
// SaveCacheTest.DiesWhileItSaves
//
// Not thread-safe. Errors name errno.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "shm/shared_object.h"
#include "shm/status.h"

namespace kvtrie {

class SaveFile {
 public:
  // Readable and writable by its owner only. kBusy: another process writes the same file. kRefused:
  // FILE.tmp is another user's.
  static Result<SaveFile> create(const std::string& path);
  SaveFile(SaveFile&&) noexcept = default;
  SaveFile& operator=(SaveFile&&) = delete;
  ~SaveFile();  // removes FILE.tmp unless it was committed

  Status append(std::span<const std::byte> bytes);
  std::uint64_t size_bytes() const { return buffered_from_ + buffer_.size(); }
  // What is behind `size` is forgotten. size <= size_bytes().
  void go_back_to(std::uint64_t size);
  Status commit();

 private:
  SaveFile(std::string path, FileDescriptor file)
      : path_(std::move(path)), file_(std::move(file)) {}
  std::string temporary() const { return path_ + ".tmp"; }
  Status flush();

  std::string path_;
  FileDescriptor file_;
  std::vector<std::byte> buffer_;
  std::uint64_t buffered_from_ = 0;  // place in the file of the buffer's first byte
};

}  // namespace kvtrie
