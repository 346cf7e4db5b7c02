// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/streaming_copy.h"

#include <cstdint>
#include <cstring>

#ifdef __SSE2__  // part of x86-64
#include <emmintrin.h>
#endif

namespace kvtrie {

#ifdef __SSE2__
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kStreamBytes = 4096;  // of a large piece: neighbouring streams do not share a page of memory
// Below that, lines that a piece fills in part cost more than streaming saves.
constexpr std::size_t kUnalignedMin = 1024;

// All of a line at once, so that it leaves the core whole.
void move_line(std::byte* to, const std::byte* from) {
  const auto* source = reinterpret_cast<const __m128i*>(from);
  auto* target = reinterpret_cast<__m128i*>(to);
  const __m128i a = _mm_loadu_si128(source);
  const __m128i b = _mm_loadu_si128(source + 1);
  const __m128i c = _mm_loadu_si128(source + 2);
  const __m128i d = _mm_loadu_si128(source + 3);
  _mm_stream_si128(target, a);
  _mm_stream_si128(target + 1, b);
  _mm_stream_si128(target + 2, c);
  _mm_stream_si128(target + 3, d);
}

}  // namespace

void StreamingCopy::add(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(to) % kLine;  // the next line begins
  const std::size_t behind = before < bytes ? (bytes - before) % kLine : 0;
  if (bytes < kUnalignedMin && before + behind != 0) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(to, from, before);
  std::memcpy(to + bytes - behind, from + bytes - behind, behind);
  to += before;
  from += before;
  bytes -= before + behind;
  for (; bytes >= kStreams * kStreamBytes; bytes -= kStreams * kStreamBytes) {
    for (std::size_t at = 0; at < kStreamBytes; at += kLine) {
      for (std::size_t stream = 0; stream < kStreams; ++stream) {
        move_line(to + stream * kStreamBytes + at, from + stream * kStreamBytes + at);
      }
    }
    to += kStreams * kStreamBytes;
    from += kStreams * kStreamBytes;
  }
  if (bytes == 0) return;
  if (bytes != bytes_) flush();
  bytes_ = bytes;
  pieces_[count_++] = {to, from};
  if (count_ == kStreams) flush();
}

void StreamingCopy::flush() {
  for (std::size_t at = 0; at < bytes_; at += kLine) {
    for (std::size_t i = 0; i < count_; ++i) move_line(pieces_[i].to + at, pieces_[i].from + at);
  }
  count_ = 0;
}

void StreamingCopy::finish() {
  flush();
  _mm_sfence();
}
#else
void StreamingCopy::add(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void StreamingCopy::flush() {}
void StreamingCopy::finish() {}
#endif

}  // namespace kvtrie
