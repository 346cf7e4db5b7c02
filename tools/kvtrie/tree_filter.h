// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which pages of a trie somebody wants to see: those for which every condition that was given holds. The way to them is
// shown too, so a tree stays a tree.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/segment.h"
#include "tools/kvtrie/snapshot.h"
#include "tools/kvtrie/trie_snapshot.h"

namespace kvtrie::inspect {

struct TreeFilter {
  std::vector<std::uint32_t> prefix;       // tokens; pages at and below those that continue it
  std::optional<std::uint32_t> below;      // this page and what hangs on it
  std::optional<PageState> state;          // Pending, Live or Condemned
  std::optional<std::uint32_t> worker;     // slot that wrote it, or is writing it
  std::uint32_t pages_min = 0;             // of its subtree
  bool leased = false;

  bool any() const {
    return !prefix.empty() || below || state || worker || pages_min > 1 || leased;
  }
};

// What became of a prefix.
struct PrefixMatch {
  std::uint64_t tokens_given = 0;
  std::uint64_t tokens_cached = 0;  // the longest beginning of it that stands under some root
};

struct FilterResult {
  std::vector<bool> wanted;  // by page
  std::uint64_t pages = 0;   // that are
  PrefixMatch prefix;
};

FilterResult apply(const TreeFilter& filter, const Segment& segment, const TrieSnapshot& trie,
                   const std::vector<LeaseView>& leases);

// "1,2,3", also with spaces or line ends between; none: not tokens, or none at all.
std::optional<std::vector<std::uint32_t>> parse_tokens(const std::string& text);

}  // namespace kvtrie::inspect
