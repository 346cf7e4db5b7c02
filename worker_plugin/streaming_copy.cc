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
constexpr std::size_t kMemoryPage = 4096;
constexpr std::size_t kStreams = 4;  // of a large piece, a memory page each
constexpr std::size_t kRoundBytes = kStreams * kMemoryPage;
// Lines are fetched a block ahead, in turn from each of its memory pages.
constexpr std::size_t kAheadPages = 8;
constexpr std::size_t kAheadBytes = kAheadPages * kMemoryPage;
// Below that, lines that a piece fills in part cost more than streaming saves.
constexpr std::size_t kUnalignedMin = 1024;

// All of a line at once, so that it leaves the core whole.
inline void move_line(std::byte* to, const std::byte* from) {
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

// Whole rounds. Returns how many bytes those are.
std::size_t move_rounds(std::byte* to, const std::byte* from, std::size_t bytes) {
  std::size_t done = 0;
  for (; bytes - done >= kRoundBytes; done += kRoundBytes) {
    const bool more = bytes - done >= 2 * kRoundBytes;
    for (std::size_t at = done; at < done + kMemoryPage; at += kLine) {
      for (std::size_t stream = 0; stream < kRoundBytes; stream += kMemoryPage) {
        if (more) _mm_prefetch(from + at + stream + kRoundBytes, _MM_HINT_T0);
        move_line(to + at + stream, from + at + stream);
      }
    }
  }
  return done;
}

}  // namespace

void StreamingCopy::add(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(to) % kLine;  // the next line begins
  if (before != 0 || bytes % kLine != 0) {
    if (bytes < kUnalignedMin) {
      std::memcpy(to, from, bytes);
      return;
    }
    const std::size_t behind = (bytes - before) % kLine;
    std::memcpy(to, from, before);
    std::memcpy(to + bytes - behind, from + bytes - behind, behind);
    to += before;
    from += before;
    bytes -= before + behind;
  }
  unordered_ = true;
  std::size_t at = move_rounds(to, from, bytes);
  // Where in the window; far behind it when it is not there.
  std::size_t place = reinterpret_cast<std::uintptr_t>(from) - reinterpret_cast<std::uintptr_t>(window_) + at;
  for (; at < bytes; at += kLine, place += kLine) {
    const std::size_t line = place % kAheadBytes / kLine;
    const std::size_t ahead =
        place / kAheadBytes * kAheadBytes + kAheadBytes + line % kAheadPages * kMemoryPage + line / kAheadPages * kLine;
    if (ahead < window_bytes_) _mm_prefetch(window_ + ahead, _MM_HINT_T0);
    move_line(to + at, from + at);
  }
}

void StreamingCopy::finish() {
  if (unordered_) _mm_sfence();
  unordered_ = false;
}
#else
void StreamingCopy::add(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void StreamingCopy::finish() {}
#endif

}  // namespace kvtrie
