// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/walk.h"

#include <algorithm>
#include <array>

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

// Distances in pages, measured: kvtrie-bench hit.
constexpr std::uint32_t kStreamAhead = 16;   // neighbours that are fetched before they are compared
constexpr std::uint32_t kLookAhead = 12;     // where the end of a run is looked for
constexpr std::uint32_t kResolveAhead = 6;   // before that end its index entry is read
constexpr std::uint32_t kHashAhead = 32;     // pages hashed and a bucket of each fetched, at most; entries are read half as far ahead
constexpr std::uint32_t kShortRun = 12;      // two such in a row: neighbours are not worth trying first
constexpr std::uint32_t kNoPageAhead = ~std::uint32_t{0};

// Always inline: gcc 12 takes a call that only prefetches for one without effect, and drops it.
[[gnu::always_inline]] inline void fetch(const Segment& segment, std::uint32_t page) {
  const auto* descriptor = reinterpret_cast<const std::byte*>(&segment.descriptor({page}));
  __builtin_prefetch(descriptor);
  __builtin_prefetch(descriptor + kLineBytes);
}

class Walker {
 public:
  Walker(const Segment& segment, const StripeIndex& index, WalkStart start, std::span<const std::uint32_t> tokens,
         std::vector<Handle>& path)
      : segment_(segment), pages_(segment), index_(index), at_(start.at), root_hash_(start.root_hash), tokens_(tokens),
        page_tokens_(segment.tokens_per_page()), path_(path) {
    // Nothing is deeper than there are pages, whatever the links say.
    const std::size_t deepest = segment.page_count() > path.size() ? segment.page_count() - path.size() : 0;
    count_ = static_cast<std::uint32_t>(std::min(tokens.size() / page_tokens_, deepest));
  }

  WalkEnd walk() {
    while (done_ < count_ && by_index()) {
      while (done_ < count_ && along_run() && !scattered_ && over_jump()) {
      }
      if (!scattered_) break;
    }
    if (!end_.pending.none()) count_announced();
    return end_;
  }

 private:
  // A guess may be anybody's page, a Free one too, and what somebody wrote over those must not stop who only came past
  // (C7). What the index names was announced.
  enum class Guess : bool { kNo, kYes };

  // The end of the run that is being followed, seen before it is reached.
  struct RunEnd {
    std::uint32_t last = kNoPageAhead;
    std::uint64_t parent_hash = 0;  // of that page, as it was seen
    std::uint64_t hash = 0;         // of the page that comes after
  };

  std::span<const std::uint32_t> tokens_at(std::uint32_t position) const {
    return tokens_.subspan(std::size_t{position} * page_tokens_, page_tokens_);
  }
  std::uint64_t hash_here() const {
    if (!at_.is_page()) return root_hash_;
    return segment_.descriptor(at_.page_index()).prefix_hash.load(std::memory_order_relaxed);
  }

  // Page by page through the index, several pages ahead: the prefix is hashed and the bucket fetched where its entry most
  // likely stands, nearer the entry is read and the descriptor fetched, or the other bucket, which is read nearer still.
  // Slow start, since most walks that begin here end at once or go on along a run. True: it goes on along a run, or all
  // was found.
  bool by_index() {
    std::array<IndexPlace, kHashAhead> places;
    std::array<std::uint32_t, kHashAhead> found;
    std::uint32_t hashed = done_, read = done_, resolved = done_, neighbours = 0, ahead = 2;
    std::uint64_t hash = hash_here();
    const std::uint32_t enough = scattered_ ? kShortRun : 1;
    while (done_ < count_) {
      for (const std::uint32_t to = std::min(count_, done_ + ahead); hashed < to; ++hashed) {
        hash = hash_page(hash, tokens_at(hashed));
        const IndexPlace& place = places[hashed % kHashAhead] = index_.place_of(hash);
        index_.prefetch(place, 0);
        if (ahead < kHashAhead) index_.prefetch(place, 1);
      }
      for (const std::uint32_t to = std::min(hashed, done_ + ahead / 2); read < to; ++read) {
        const IndexPlace& place = places[read % kHashAhead];
        const std::uint32_t page = found[read % kHashAhead] = index_.first_candidate(place, 0);
        if (page != kNoPageAhead) {
          fetch(segment_, page);
        } else {
          index_.prefetch(place, 1);
        }
      }
      for (const std::uint32_t to = std::min(hashed, done_ + ahead * 3 / 8); resolved < to; ++resolved) {
        std::uint32_t& page = found[resolved % kHashAhead];
        if (page != kNoPageAhead) continue;
        page = index_.first_candidate(places[resolved % kHashAhead], 1);
        if (page != kNoPageAhead) fetch(segment_, page);
      }
      // Some at a time, so that the three loops above have something to loop over.
      const std::uint32_t block = std::min(count_, done_ + std::max(ahead / 8, 1U));
      ahead = std::min(2 * ahead, kHashAhead);
      while (done_ < block) {
        const std::uint32_t before = at_.is_page() ? at_.page_index().value : kNoPageAhead;
        const std::uint32_t page = found[done_ % kHashAhead];
        // What was read ahead may be another's with an equal tag, or not be there yet.
        if ((page == kNoPageAhead || !enter({page}, Guess::kNo)) && !enter_any(places[done_ % kHashAhead])) return false;
        neighbours = at_.page_index().value == before + 1 ? neighbours + 1 : 0;
        if (neighbours >= enough) {
          scattered_ = false;
          return true;
        }
      }
    }
    scattered_ = false;
    return true;
  }

  // Not the end yet when one of these is Pending: its announcer may have died before it was canonical, and the canonical
  // page, Live, stand elsewhere.
  bool enter_any(std::uint64_t hash) { return enter_any(index_.place_of(hash)); }
  bool enter_any(const IndexPlace& place) {
    return index_.for_each_candidate(place, [&](PageIndex page) { return enter(page, Guess::kNo); });
  }

  // From neighbour to neighbour, one stream through memory. False: all was found.
  bool along_run() {
    const std::uint32_t first = done_;
    run_end_ = {};
    for (std::uint32_t page = at_.page_index().value + 1; page < segment_.page_count(); ++page) {
      if (page + kStreamAhead < segment_.page_count()) fetch(segment_, page + kStreamAhead);
      look_ahead(page);
      if (!enter({page}, Guess::kYes)) break;
      if (done_ == count_) return false;
    }
    const bool is_short = done_ - first < kShortRun;
    scattered_ = is_short && last_was_short_;
    last_was_short_ = is_short;
    return true;
  }

  // While `page` is entered, whether the run ends some pages on; then what comes after it is fetched.
  void look_ahead(std::uint32_t page) {
    if (run_end_.last == kNoPageAhead) {
      const std::uint32_t there = page + kLookAhead;
      const std::uint32_t position = done_ + kLookAhead;  // of that page
      if (position >= count_ || there >= segment_.page_count()) return;
      if ((pages_.parent({there}).raw & kIndexMask) == there - 1) return;
      const Descriptor& last = segment_.descriptor({there - 1});
      run_end_.last = there - 1;
      run_end_.parent_hash = last.prefix_hash.load(std::memory_order_relaxed);
      run_end_.hash = hash_page(run_end_.parent_hash, tokens_at(position));
      index_.prefetch(index_.place_of(run_end_.hash));
      const std::uint32_t hint = last.child_hint.load(std::memory_order_relaxed) - 1;
      for (std::uint32_t i = hint; i < segment_.page_count() && i - hint < 4; ++i) fetch(segment_, i);
    } else if (page + kResolveAhead == run_end_.last) {
      index_.for_each_candidate(index_.place_of(run_end_.hash), [&](PageIndex candidate) {
        fetch(segment_, candidate.value);
        return false;
      });
    }
  }

  // From the last page of a run to wherever its child is. False: it has none with these tokens.
  bool over_jump() {
    const Descriptor& last = segment_.descriptor(at_.page_index());
    const std::uint32_t hint = last.child_hint.load(std::memory_order_relaxed) - 1;  // 0, no hint: out of range then
    if (hint < segment_.page_count() && enter({hint}, Guess::kYes)) return true;
    const std::uint64_t parent_hash = hash_here();
    const bool ready = run_end_.last == at_.page_index().value && run_end_.parent_hash == parent_hash;
    return enter_any(ready ? run_end_.hash : hash_page(parent_hash, tokens_at(done_)));
  }

  // After a walk that ended before a Pending page: over it, as long as pages are announced (rule 1: nothing Live lies
  // below). What is counted is an estimate.
  void count_announced() {
    end_.pending_since = segment_.descriptor(end_.pending.page_index()).since_tick.load(std::memory_order_relaxed);
    over_pending_ = true;
    at_ = end_.pending;
    do {
      ++end_.pending_pages;
      ++done_;
    } while (done_ < count_ && enter_neighbour_or_any());
  }
  bool enter_neighbour_or_any() {
    const std::uint32_t neighbour = at_.page_index().value + 1;
    if (neighbour < segment_.page_count() && enter({neighbour}, Guess::kYes)) return true;
    return enter_any(hash_page(hash_here(), tokens_at(done_)));
  }

  // Steps to the page if it is the child with the tokens of position done_.
  bool enter(PageIndex page, Guess guess) {
    const StateWord word = pages_.state(page);
    if (!word.canonical()) {
      end_.corrupt |= guess == Guess::kNo && !word.well_formed();
      return false;
    }
    const std::uint32_t depth_class = segment_.descriptor(page).depth_class.load(std::memory_order_relaxed);
    if (depth_in(depth_class) != depth_to_enter()) return false;
    if (!same_parent(page) || !pages_.matches(page, parent_to_compare(page), tokens_at(done_))) return false;
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
    ++done_;
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
  std::span<const std::uint32_t> tokens_;
  const std::uint32_t page_tokens_;
  std::uint32_t count_ = 0;  // whole pages of `tokens`
  std::uint32_t done_ = 0;   // of these, entered
  std::vector<Handle>& path_;
  WalkEnd end_;
  bool over_pending_ = false;
  bool scattered_ = false;       // runs are short here
  bool last_was_short_ = false;
  RunEnd run_end_;
};

}  // namespace

WalkEnd walk(const Segment& segment, const StripeIndex& index, WalkStart start,
             std::span<const std::uint32_t> tokens, std::vector<Handle>& path) {
  return Walker(segment, index, start, tokens, path).walk();
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

// What is below a page that is not cached is not cached: often all is there, else a search by intervals, of each of which
// kWays places are looked at at once, since each look waits for memory twice.
std::uint32_t cached_depth(const Segment& segment, const StripeIndex& index, Handle root,
                           std::span<const std::uint64_t> prefix_hashes) {
  constexpr std::size_t kWays = 4;
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
  if (!prefix_hashes.empty() && is_cached(prefix_hashes.back())) return static_cast<std::uint32_t>(prefix_hashes.size());
  std::size_t first = 0, end = prefix_hashes.size();  // those before `first` are cached, those from `end` on are not
  while (first < end) {
    const std::size_t step = (end - first + kWays - 1) / kWays;
    const auto each = [&](auto&& visit) {
      for (std::size_t at = first + step - 1; at < end; at += step) {
        if (!visit(at)) return;
      }
    };
    each([&](std::size_t at) {
      index.prefetch(index.place_of(prefix_hashes[at]));
      return true;
    });
    each([&](std::size_t at) {
      index.for_each_candidate(index.place_of(prefix_hashes[at]), [&](PageIndex page) {
        __builtin_prefetch(&segment.descriptor(page));
        return false;
      });
      return true;
    });
    std::size_t not_cached = end;
    each([&](std::size_t at) {
      if (!is_cached(prefix_hashes[at])) {
        not_cached = at;
        return false;
      }
      first = at + 1;
      return true;
    });
    end = not_cached;
  }
  return static_cast<std::uint32_t>(first);
}

}  // namespace kvtrie
