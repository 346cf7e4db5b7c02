// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Copies that are larger than a core's caches: by stores that do not read the lines first that they overwrite
// (non-temporal), and reading from several pages of memory at a time, since one page after the other waits for each.
// 1.3 to 1.8 times memcpy, which takes such stores only for single pieces of many megabytes; but what was written is in
// no cache, so small copies are memcpy's. On processors other than x86-64 all of it is memcpy's.
//
// Not thread-safe. What was added is ordered before later stores of this thread after finish().
#pragma once

#include <cstddef>

namespace kvtrie {

class StreamingCopy {
 public:
  StreamingCopy() = default;
  StreamingCopy(const StreamingCopy&) = delete;
  StreamingCopy& operator=(const StreamingCopy&) = delete;
  ~StreamingCopy() { finish(); }

  // A hint: pieces added next are read from there, one about after the other.
  void reads_in_order(const std::byte* from, std::size_t bytes) {
    window_ = from;
    window_bytes_ = bytes;
  }
  // The bytes do not overlap.
  void add(std::byte* to, const std::byte* from, std::size_t bytes);
  void finish();

 private:
  const std::byte* window_ = nullptr;
  std::size_t window_bytes_ = 0;
  bool unordered_ = false;  // stores of add()
};

}  // namespace kvtrie
