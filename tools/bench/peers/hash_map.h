// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The index of most engines: a hash table in the process's own memory, keyed by the chained hash of the prefix.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "tools/bench/peers/peer.h"

namespace kvtrie::bench {

// The hash decides.
struct HashedEntry {
  std::uint32_t page;
  static HashedEntry of(std::uint32_t page, std::span<const std::uint32_t>) { return {page}; }
  bool is(std::span<const std::uint32_t>) const { return true; }
};

// The tokens decide, as in kvtrie.
struct ExactEntry {
  std::uint32_t page;
  std::array<std::uint32_t, kTokensPerPage> tokens;
  static ExactEntry of(std::uint32_t page, std::span<const std::uint32_t> tokens) {
    ExactEntry entry{page, {}};
    std::ranges::copy(tokens, entry.tokens.begin());
    return entry;
  }
  bool is(std::span<const std::uint32_t> asked) const {
    return std::memcmp(tokens.data(), asked.data(), sizeof tokens) == 0;
  }
};

// Map: from std::uint64_t to one of these.
template <typename Map>
class MapLookup : public Lookup {
 public:
  explicit MapLookup(const Corpus& corpus) {
    map_.reserve(pages_of(corpus));
    for (const CachedPrompt& prompt : corpus) {
      for_each_page(prompt.tokens, [&](std::uint64_t hash, auto tokens, std::uint32_t i) {
        map_.emplace(hash, Map::mapped_type::of(prompt.pages[i], tokens));
        return true;
      });
    }
  }
  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) override {
    std::uint32_t found = 0;
    for_each_page(tokens, [&](std::uint64_t hash, auto page_tokens, std::uint32_t i) {
      const auto entry = map_.find(hash);
      if (entry == map_.end() || !entry->second.is(page_tokens)) return false;
      pages[i] = entry->second.page;
      found = i + 1;
      return true;
    });
    return found;
  }

 private:
  Map map_;
};

template <typename Map>
class MapPeer : public Peer {
 public:
  MapPeer(const Corpus& corpus, std::string name) : corpus_(corpus), name_(std::move(name)) {}
  std::string name() const override { return name_; }
  std::string configuration() const override {
    return "its own hash function over the chained XXH3-64, reserved for all pages; " + what_decides() +
           "; a copy in each process; looked up only: what was found is not protected";
  }
  std::unique_ptr<Lookup> open() const override { return std::make_unique<MapLookup<Map>>(corpus_); }

 private:
  static std::string what_decides() {
    if constexpr (std::is_same_v<typename Map::mapped_type, ExactEntry>) {
      return "the entry has the page's 64 bytes of tokens, which are compared, as kvtrie does";
    } else {
      return "the hash decides: a collision would be a wrong page";
    }
  }

  const Corpus& corpus_;
  std::string name_;
};

// The same map with each of the entries.
template <typename Hashed, typename Exact>
std::unique_ptr<Peer> make_map(const Corpus& corpus, const std::string& name, bool exact) {
  if (exact) return std::make_unique<MapPeer<Exact>>(corpus, name + ", exact");
  return std::make_unique<MapPeer<Hashed>>(corpus, name);
}

}  // namespace kvtrie::bench
