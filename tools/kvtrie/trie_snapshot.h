// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The trie of all namespaces as it was a moment ago: (state, parent) of each page copied into
// private memory, and the children of each page computed from that. 32 bytes a page.
//
// In the trie are Pending, Live and Condemned pages. Each has one parent at most, so walking down
// from the roots meets a page once at most, whatever the parent links say: a cycle is never
// entered, and what is in or below one is counted as detached. On a live segment a few pages may
// look detached because they changed while being read.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie::inspect {

// Why a page of the trie does not hang on its parent.
enum class Detached : std::uint8_t {
  kNoParent,          // handle is none or of an impossible kind
  kParentOutOfRange,  // page or namespace that this segment does not have
  kParentOtherLife,   // the parent was recycled
  kParentNotInTrie,   // the parent is Free, Writing or Retiring
  kBelowDetached,     // hangs on one of the above
  kInCycle,           // in a cycle of parents, or below one
};
inline constexpr std::size_t kDetachedKinds = 6;

constexpr const char* name_of(Detached kind) {
  constexpr const char* kNames[] = {"no_parent",         "parent_out_of_range",
                                    "parent_other_life", "parent_not_in_trie",
                                    "below_detached",    "in_cycle"};
  return kNames[static_cast<std::uint8_t>(kind)];
}

struct Root {
  Handle handle;
  bool current = false;  // its generation is its namespace's present one
  std::vector<std::uint32_t> children;
  std::uint64_t pages = 0;
};

class TrieSnapshot {
 public:
  explicit TrieSnapshot(const Segment& segment);

  std::uint32_t page_count() const { return static_cast<std::uint32_t>(state_.size()); }
  bool in_trie(std::uint32_t page) const { return StateWord{state_[page]}.canonical(); }
  StateWord state(std::uint32_t page) const { return {state_[page]}; }
  std::uint32_t touch_tick(std::uint32_t page) const { return touch_tick_[page]; }
  std::span<const std::uint32_t> children(std::uint32_t page) const {
    return {children_.data() + first_child_[page], children_.data() + first_child_[page + 1]};
  }
  // Pages of the subtree with the page itself; 0 for pages that no root reaches.
  std::uint32_t subtree_pages(std::uint32_t page) const { return subtree_[page]; }

  // By pages, most first.
  const std::vector<Root>& roots() const { return roots_; }

  // These pages and all below them; each must be reached from a root, or hang on nothing.
  std::vector<std::uint32_t> reachable_from(std::vector<std::uint32_t> pages) const;
  // From now on only the wanted pages and the way to them are there.
  void keep(const std::vector<bool>& wanted);

  std::uint64_t changed_while_read() const { return changed_; }
  std::uint64_t detached(Detached kind) const { return detached_[static_cast<std::size_t>(kind)]; }
  // A few of each kind, for a person to look at.
  const std::vector<std::uint32_t>& examples(Detached kind) const {
    return examples_[static_cast<std::size_t>(kind)];
  }

 private:
  void copy(const Segment& segment);
  void link(const Segment& segment);
  void measure();
  std::vector<std::uint32_t> pages_of_roots() const;
  void count_subtrees(const std::vector<std::uint32_t>& top_down);
  void keep_children(const std::vector<bool>& kept);
  void note_detached(Detached kind, std::uint32_t page);

  std::vector<std::uint64_t> state_;
  std::vector<std::uint64_t> parent_;  // emptied once linked
  std::vector<std::uint32_t> touch_tick_;
  std::vector<std::uint32_t> up_;  // parent's page number, kAtRoot or kNowhere
  std::vector<std::uint32_t> first_child_;
  std::vector<std::uint32_t> children_;
  std::vector<std::uint32_t> subtree_;
  std::vector<Root> roots_;
  std::vector<std::uint32_t> broken_;  // pages with kNowhere
  std::uint64_t changed_ = 0;
  std::array<std::uint64_t, kDetachedKinds> detached_{};
  std::array<std::vector<std::uint32_t>, kDetachedKinds> examples_;
};

}  // namespace kvtrie::inspect
