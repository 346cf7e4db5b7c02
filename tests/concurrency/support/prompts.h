// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Prompts by the names of their pages, and the bytes that a page of a prompt must have: each word is a function of all
// tokens up to that page's end, its position and its plane (tools/replay/content.h), so a page of another path, in
// another place, half written or overwritten is a wrong one.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "tools/replay/content.h"
#include "worker_plugin/kvtrie.hpp"

#ifdef KVTRIE_TSAN
extern "C" {  // of the sanitizer's library
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace kvtrie::test {

inline constexpr std::uint32_t kTokensPerPage = 4;
inline constexpr std::uint32_t kPlanes = 2;
inline constexpr std::uint32_t kPageBytes = 128;  // in one plane

// What a page's tokens are made of. Equal names at equal places below equal pages are the same page.
using PageName = std::uint32_t;
using Path = std::vector<PageName>;

struct Prompt {
  explicit Prompt(std::span<const PageName> path) { extend(path); }
  void extend(std::span<const PageName> path) {
    for (const PageName name : path) {
      for (std::uint32_t i = 0; i < kTokensPerPage; ++i) tokens.push_back(name * kTokensPerPage + i);
    }
    replay::append_digests(1, tokens, kTokensPerPage, digests);
  }
  std::uint32_t pages() const { return static_cast<std::uint32_t>(digests.size()); }

  std::vector<std::uint32_t> tokens;
  std::vector<replay::PathDigest> digests;  // of each page
};

// While one lives, the thread sanitizer passes by what this thread reads and writes. What orders the bytes of a page
// that is evicted and taken by another thread goes through kvtried: a process that this one's sanitizer cannot see.
class OrderedByKvtried {
 public:
#ifdef KVTRIE_TSAN
  OrderedByKvtried() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~OrderedByKvtried() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  OrderedByKvtried() {}
  ~OrderedByKvtried() {}
#endif
  OrderedByKvtried(const OrderedByKvtried&) = delete;
  OrderedByKvtried& operator=(const OrderedByKvtried&) = delete;
};

inline std::span<std::uint64_t> words_of(const client::Worker& worker, std::uint32_t page, std::uint32_t plane) {
  return {static_cast<std::uint64_t*>(worker.page_address(page, plane)), kPageBytes / sizeof(std::uint64_t)};
}

inline void write_page(const client::Worker& worker, std::uint32_t page, const replay::PathDigest& digest,
                       std::uint64_t position) {
  const OrderedByKvtried bytes;
  for (std::uint32_t plane = 0; plane < kPlanes; ++plane)
    replay::fill_page(words_of(worker, page, plane), digest, position, plane);
}

inline bool page_has(const client::Worker& worker, std::uint32_t page, const replay::PathDigest& digest,
                     std::uint64_t position) {
  const OrderedByKvtried bytes;
  for (std::uint32_t plane = 0; plane < kPlanes; ++plane) {
    const auto words = words_of(worker, page, plane);
    if (replay::first_wrong_word(words, digest, position, plane) != replay::npos) return false;
  }
  return true;
}

}  // namespace kvtrie::test
