// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/walk.h"

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

class Walker {
 public:
  Walker(const Segment& segment, const StripeIndex& index, Handle root, std::uint64_t root_hash,
         std::vector<Handle>& path)
      : segment_(segment), pages_(segment), index_(index), at_(root), root_hash_(root_hash),
        path_(path) {}

  // Steps to the child with these tokens.
  bool step(std::span<const std::uint32_t> tokens) {
    if (at_.is_page()) {
      const std::uint32_t neighbour = at_.page_index().value + 1;
      if (neighbour < segment_.page_count() && enter({neighbour}, tokens)) return true;
      const std::uint32_t hint = segment_.descriptor(at_.page_index())
                                     .child_hint.load(std::memory_order_relaxed) -
                                 1;  // 0, no hint, becomes a number out of range
      if (hint != neighbour && hint < segment_.page_count() && enter({hint}, tokens)) return true;
    }
    // Not the end yet when one of these was Pending: its announcer may have died before it was canonical, and the
    // canonical page, Live, stand elsewhere.
    if (end_.corrupt) return false;
    const std::uint64_t parent_hash =
        at_.is_page() ? segment_.descriptor(at_.page_index()).prefix_hash.load(std::memory_order_relaxed)
                      : root_hash_;
    return index_.for_each_candidate(index_.place_of(hash_page(parent_hash, tokens)),
                                     [&](PageIndex page) { return enter(page, tokens); });
  }

  WalkEnd end() const { return end_; }

 private:
  bool enter(PageIndex page, std::span<const std::uint32_t> tokens) {
    const StateWord word = pages_.state(page);
    if (!word.canonical()) {
      end_.corrupt |= !word.well_formed();
      return false;
    }
    if (!same_parent(page) || !pages_.matches(page, parent_to_compare(page), tokens)) return false;
    if (!word.readable()) {
      end_.pending = true;
      return false;
    }
    at_ = Handle::page(page, word);
    end_.pending = false;
    path_.push_back(at_);
    KVTRIE_CRASH_POINT("walk.after_page");
    return true;
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
};

}  // namespace

WalkEnd walk(const Segment& segment, const StripeIndex& index, Handle root, std::uint64_t root_hash,
             std::span<const std::uint32_t> tokens, std::vector<Handle>& path) {
  Walker walker(segment, index, root, root_hash, path);
  const std::size_t page_tokens = segment.tokens_per_page();
  // Nothing is deeper than there are pages, whatever the links say.
  for (std::size_t done = 0; done + page_tokens <= tokens.size() && path.size() < segment.page_count();
       done += page_tokens) {
    if (!walker.step(tokens.subspan(done, page_tokens))) break;
  }
  return walker.end();
}

}  // namespace kvtrie
