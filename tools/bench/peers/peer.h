// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Ways to find the longest cached prefix of a prompt, behind one interface, so that all answer the same questions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "shm/prefix_hash.h"
#include "tools/bench/prompts.h"

namespace kvtrie::bench {

// A prompt of whole pages, and the pages that kvtrie has cached it in: the values of all peers.
struct CachedPrompt {
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint32_t> pages;
};
using Corpus = std::vector<CachedPrompt>;

// One process's way in. Not for several threads.
class Lookup {
 public:
  virtual ~Lookup() = default;
  // How many pages of the prompt are cached, from its start. Writes which to `pages`, which has room for all
  // (Peer::gives_pages). Throws std::runtime_error.
  virtual std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) = 0;
};

// Holds the corpus, or will in each process. Made in a process without threads, which forks those that look up. The
// corpus outlives it.
class Peer {
 public:
  virtual ~Peer() = default;
  virtual std::string name() const = 0;
  // How it is set up, and why: a sentence for the report.
  virtual std::string configuration() const = 0;
  // In a process that looks up, once.
  virtual std::unique_ptr<Lookup> open() const = 0;
  // What it holds once for all processes. Empty: each process has a copy of its own, on its heap.
  virtual std::optional<double> shared_bytes() const { return std::nullopt; }
  virtual bool gives_pages() const { return true; }
};

inline std::uint64_t pages_of(const Corpus& corpus) {
  std::uint64_t pages = 0;
  for (const CachedPrompt& prompt : corpus) pages += prompt.pages.size();
  return pages;
}

// Calls visit(hash, tokens of the page, position) for each page until it returns false: keys as kvtrie's, the hash of a
// page is seeded with that of its parent.
template <typename Visit>
void for_each_page(std::span<const std::uint32_t> tokens, Visit&& visit) {
  std::uint64_t hash = 0x6b767472;
  for (std::uint32_t i = 0; i < tokens.size() / kTokensPerPage; ++i) {
    const auto page = tokens.subspan(std::size_t{i} * kTokensPerPage, kTokensPerPage);
    hash = hash_page(hash, page);
    if (!visit(hash, page, i)) return;
  }
}

// Bytes that this process has allocated on its heap.
double heap_bytes();

}  // namespace kvtrie::bench
