// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/tree_filter.h"

#include <algorithm>
#include <charconv>
#include <span>
#include <string_view>

namespace kvtrie::inspect {
namespace {

// How many of `tokens` the page begins with; all that are left of them, or all of the page's: it continues the prefix.
std::size_t common_tokens(const Segment& segment, std::uint32_t page, std::span<const std::uint32_t> tokens) {
  const std::size_t held = std::min<std::size_t>(
      segment.descriptor({page}).token_count.load(std::memory_order_relaxed), segment.tokens_per_page());
  const std::size_t limit = std::min(held, tokens.size());
  const AtomicU64* words = segment.token_words({page});
  std::size_t same = 0;
  while (same < limit &&
         static_cast<std::uint32_t>(words[same / 2].load(std::memory_order_acquire) >> (same % 2 * 32)) == tokens[same]) {
    ++same;
  }
  return same;
}

class PrefixWalk {
 public:
  PrefixWalk(const Segment& segment, const TrieSnapshot& trie, const std::vector<std::uint32_t>& tokens)
      : segment_(segment), trie_(trie), tokens_(tokens) {
    match_.tokens_given = tokens.size();
    for (const Root& root : trie.roots()) {
      for (const std::uint32_t page : root.children) open_.push_back({page, 0});
    }
    while (!open_.empty()) step();
  }

  const PrefixMatch& match() const { return match_; }
  // Pages in which the prefix ends.
  const std::vector<std::uint32_t>& ends() const { return ends_; }

 private:
  struct Step {
    std::uint32_t page;
    std::size_t done;  // tokens of the prefix above it
  };

  // Ends: the snapshot's children form a tree.
  void step() {
    const auto [page, done] = open_.back();
    open_.pop_back();
    const std::span<const std::uint32_t> left = std::span(tokens_).subspan(done);
    const std::size_t same = common_tokens(segment_, page, left);
    match_.tokens_cached = std::max<std::uint64_t>(match_.tokens_cached, done + same);
    if (same == left.size()) {
      ends_.push_back(page);
    } else if (same == segment_.tokens_per_page()) {
      for (const std::uint32_t child : trie_.children(page)) open_.push_back({child, done + same});
    }
  }

  const Segment& segment_;
  const TrieSnapshot& trie_;
  const std::vector<std::uint32_t>& tokens_;
  std::vector<Step> open_;
  std::vector<std::uint32_t> ends_;
  PrefixMatch match_;
};

// Of these pages and all below them. Pages that no root reaches are left out: they may be in a cycle.
std::vector<bool> subtrees(const TrieSnapshot& trie, std::vector<std::uint32_t> tops) {
  std::erase_if(tops, [&](std::uint32_t page) { return trie.subtree_pages(page) == 0; });
  std::vector<bool> in(trie.page_count(), false);
  for (const std::uint32_t page : trie.reachable_from(std::move(tops))) in[page] = true;
  return in;
}

std::vector<bool> leased_pages(const TrieSnapshot& trie, const std::vector<LeaseView>& leases) {
  std::vector<bool> leased(trie.page_count(), false);
  for (const LeaseView& lease : leases) {
    if (lease.target == LeaseTarget::kPage) leased[lease.handle.page_index().value] = true;
  }
  return leased;
}

bool written_by(const Segment& segment, std::uint32_t page, StateWord word, std::uint32_t slot) {
  if (word.owned()) return word.owner().value == slot;
  return segment.descriptor({page}).publisher.load(std::memory_order_relaxed) == slot;
}

void keep_if(std::vector<bool>& wanted, const std::vector<bool>& condition) {
  for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = wanted[i] && condition[i];
}

}  // namespace

FilterResult apply(const TreeFilter& filter, const Segment& segment, const TrieSnapshot& trie,
                   const std::vector<LeaseView>& leases) {
  FilterResult result;
  result.wanted.resize(trie.page_count());
  for (std::uint32_t page = 0; page < trie.page_count(); ++page) {
    const StateWord word = trie.state(page);
    result.wanted[page] = trie.subtree_pages(page) >= std::max(filter.pages_min, 1U) &&
                          (!filter.state || word.state() == *filter.state) &&
                          (!filter.worker || written_by(segment, page, word, *filter.worker));
  }
  if (!filter.prefix.empty()) {
    const PrefixWalk walk(segment, trie, filter.prefix);
    result.prefix = walk.match();
    keep_if(result.wanted, subtrees(trie, walk.ends()));
  }
  if (filter.below) keep_if(result.wanted, subtrees(trie, {*filter.below}));
  if (filter.leased) keep_if(result.wanted, leased_pages(trie, leases));
  result.pages = static_cast<std::uint64_t>(std::ranges::count(result.wanted, true));
  return result;
}

std::optional<std::vector<std::uint32_t>> parse_tokens(const std::string& text) {
  std::vector<std::uint32_t> tokens;
  const char* at = text.data();
  const char* const end = at + text.size();
  constexpr std::string_view kBetween = ", \t\r\n";
  while (true) {
    while (at != end && kBetween.find(*at) != std::string_view::npos) ++at;
    if (at == end) break;
    std::uint32_t token = 0;
    const auto [stopped, error] = std::from_chars(at, end, token);
    const bool ended = stopped == end || kBetween.find(*stopped) != std::string_view::npos;
    if (error != std::errc{} || !ended) return std::nullopt;
    tokens.push_back(token);
    at = stopped;
  }
  if (tokens.empty()) return std::nullopt;
  return tokens;
}

}  // namespace kvtrie::inspect
