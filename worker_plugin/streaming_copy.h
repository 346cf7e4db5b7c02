// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Copies that are larger than a core's caches: by stores that do not read the lines first that they overwrite
// (non-temporal), in four streams at a time, since one stream waits for memory. 1.3 to 1.8 times memcpy, which takes such
// stores only for single pieces of many megabytes; but what was written is in no cache, so small copies are memcpy's.
// On processors other than x86-64 all of it is memcpy's.
//
// Not thread-safe. What was added is copied, and ordered before later stores of this thread, after finish().
#pragma once

#include <array>
#include <cstddef>

namespace kvtrie {

class StreamingCopy {
 public:
  StreamingCopy() = default;
  StreamingCopy(const StreamingCopy&) = delete;
  StreamingCopy& operator=(const StreamingCopy&) = delete;
  ~StreamingCopy() { finish(); }

  // The bytes do not overlap, and stay as they are until finish().
  void add(std::byte* to, const std::byte* from, std::size_t bytes);
  void finish();

 private:
  struct Piece {
    std::byte* to;
    const std::byte* from;
  };
  static constexpr std::size_t kStreams = 4;

  void flush();

  std::array<Piece, kStreams> pieces_{};  // wait for more of their size
  std::size_t count_ = 0;
  std::size_t bytes_ = 0;  // of each
};

}  // namespace kvtrie
