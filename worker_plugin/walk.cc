// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/walk.h"

#include <algorithm>

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

class Walker {
 public:
  Walker(const Segment& segment, const StripeIndex& index, WalkStart start, std::vector<Handle>& path)
      : segment_(segment), pages_(segment), index_(index), at_(start.at), root_hash_(start.root_hash),
        path_(path) {}

  // Steps to the child with these tokens.
  bool step(std::span<const std::uint32_t> tokens) {
    if (at_.is_page()) {
      const std::uint32_t neighbour = at_.page_index().value + 1;
      if (neighbour < segment_.page_count() && enter({neighbour}, tokens, Guess::kYes)) return true;
      const std::uint32_t hint = segment_.descriptor(at_.page_index())
                                     .child_hint.load(std::memory_order_relaxed) -
                                 1;  // 0, no hint, becomes a number out of range
      if (hint != neighbour && hint < segment_.page_count() && enter({hint}, tokens, Guess::kYes)) return true;
    }
    // Not the end yet when one of these was Pending: its announcer may have died before it was canonical, and the
    // canonical page, Live, stand elsewhere.
    const std::uint64_t parent_hash =
        at_.is_page() ? segment_.descriptor(at_.page_index()).prefix_hash.load(std::memory_order_relaxed)
                      : root_hash_;
    return index_.for_each_candidate(index_.place_of(hash_page(parent_hash, tokens)),
                                     [&](PageIndex page) { return enter(page, tokens, Guess::kNo); });
  }

  // After a walk that ended before a Pending page: over it, as long as pages are announced (rule 1: nothing Live lies
  // below). What is counted is an estimate.
  void count_announced(std::span<const std::uint32_t> tokens) {
    const std::size_t page_tokens = segment_.tokens_per_page();
    end_.pending_since =
        segment_.descriptor(end_.pending.page_index()).since_tick.load(std::memory_order_relaxed);
    over_pending_ = true;
    at_ = end_.pending;
    do {
      ++end_.pending_pages;
      tokens = tokens.subspan(page_tokens);
    } while (tokens.size() >= page_tokens && end_.pending_pages < segment_.page_count() &&
             step(tokens.first(page_tokens)));
  }

  WalkEnd end() const { return end_; }

 private:
  // A guess may be anybody's page, a Free one too, and what somebody wrote over those must not stop who only came past
  // (C7). What the index names was announced.
  enum class Guess : bool { kNo, kYes };

  bool enter(PageIndex page, std::span<const std::uint32_t> tokens, Guess guess) {
    const StateWord word = pages_.state(page);
    if (!word.canonical()) {
      end_.corrupt |= guess == Guess::kNo && !word.well_formed();
      return false;
    }
    const std::uint32_t depth_class = segment_.descriptor(page).depth_class.load(std::memory_order_relaxed);
    if (depth_in(depth_class) != depth_to_enter()) return false;
    if (!same_parent(page) || !pages_.matches(page, parent_to_compare(page), tokens)) return false;
    if (over_pending_) {
      at_ = Handle::page(page, word);
      return true;
    }
    if (!word.readable()) {
      end_.pending = Handle::page(page, word);
      return false;
    }
    at_ = Handle::page(page, word);
    end_.pending = {};
    path_.push_back(at_);
    KVTRIE_CRASH_POINT("walk.after_page");
    return true;
  }

  // A link that was written over may lead back; no page has two depths, so none is entered twice (C7).
  std::uint32_t depth_to_enter() const {
    return static_cast<std::uint32_t>(path_.size()) + 1 + (over_pending_ ? end_.pending_pages : 0);
  }

  bool same_parent(PageIndex page) const {
    if (!KVTRIE_MUTANT(walk_ignores_generation) && !KVTRIE_MUTANT(flush_ignored)) return true;
    return (pages_.parent(page).raw & kIndexMask) == (at_.raw & kIndexMask);
  }
  Handle parent_to_compare(PageIndex page) const {
    const bool loose = (KVTRIE_MUTANT(walk_ignores_generation) && at_.is_page()) ||
                       (KVTRIE_MUTANT(flush_ignored) && at_.is_root());
    return loose ? pages_.parent(page) : at_;
  }

  const Segment& segment_;
  const PageTable pages_;
  const StripeIndex& index_;
  Handle at_;
  std::uint64_t root_hash_;
  std::vector<Handle>& path_;
  WalkEnd end_;
  bool over_pending_ = false;
};

}  // namespace

WalkEnd walk(const Segment& segment, const StripeIndex& index, WalkStart start,
             std::span<const std::uint32_t> tokens, std::vector<Handle>& path) {
  Walker walker(segment, index, start, path);
  const std::size_t page_tokens = segment.tokens_per_page();
  std::size_t done = 0;
  // Nothing is deeper than there are pages, whatever the links say.
  for (; done + page_tokens <= tokens.size() && path.size() < segment.page_count();
       done += page_tokens) {
    if (!walker.step(tokens.subspan(done, page_tokens))) break;
  }
  if (!walker.end().pending.none()) walker.count_announced(tokens.subspan(done));
  return walker.end();
}

CopySource start_in_hinted_child(const Segment& segment, Handle at,
                                 std::span<const std::uint32_t> tokens) {
  const PageTable pages(segment);
  const AtomicU32& hint = at.is_page() ? segment.descriptor(at.page_index()).child_hint
                                       : segment.name_space(at.namespace_id()).child_hint;
  const PageIndex page{hint.load(std::memory_order_relaxed) - 1};
  if (!segment.has(page)) return {};
  const StateWord word = pages.state(page);
  if (!word.readable() || pages.parent(page) != at) return {};
  const std::size_t there = std::min<std::size_t>(
      segment.descriptor(page).token_count.load(std::memory_order_acquire), segment.tokens_per_page());
  const std::size_t most = std::min(there, tokens.size());
  const AtomicU64* words = segment.token_words(page);
  std::uint32_t same = 0;
  while (same < most) {
    const std::uint64_t two = words[same / 2].load(std::memory_order_acquire);
    if (static_cast<std::uint32_t>(same % 2 == 0 ? two : two >> 32) != tokens[same]) break;
    ++same;
  }
  return {.page = Handle::page(page, word), .tokens = same};
}

std::uint32_t cached_depth(const Segment& segment, const StripeIndex& index, Handle root,
                           std::span<const std::uint64_t> prefix_hashes) {
  const PageTable pages(segment);
  const auto scope = scope_of(root.namespace_id(), root.generation());
  const auto is_cached = [&](std::uint64_t hash) {
    return index.for_each_candidate(index.place_of(hash), [&](PageIndex page) {
      const Descriptor& descriptor = segment.descriptor(page);
      return pages.state(page).readable() &&
             descriptor.prefix_hash.load(std::memory_order_relaxed) == hash &&
             descriptor.scope.load(std::memory_order_relaxed) == scope;
    });
  };
  // What is below a page that is not cached is not cached.
  const auto end = std::ranges::partition_point(prefix_hashes, is_cached);
  return static_cast<std::uint32_t>(end - prefix_hashes.begin());
}

}  // namespace kvtrie
