// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/trie_snapshot.h"

#include <algorithm>
#include <unordered_map>

namespace kvtrie::inspect {
namespace {

constexpr std::uint32_t kAtRoot = 0xFFFF'FFFF;
constexpr std::uint32_t kNowhere = 0xFFFF'FFFE;
constexpr std::size_t kExamplesMax = 5;
constexpr int kReadAttempts = 4;

}  // namespace

TrieSnapshot::TrieSnapshot(const Segment& segment) {
  copy(segment);
  link(segment);
  measure();
}

void TrieSnapshot::copy(const Segment& segment) {
  const std::uint32_t count = segment.page_count();
  state_.resize(count);
  parent_.resize(count);
  touch_tick_.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    const Descriptor& descriptor = segment.descriptor({i});
    std::uint64_t before = descriptor.state.load(std::memory_order_acquire);
    for (int attempt = 1;; ++attempt) {
      parent_[i] = descriptor.parent.load(std::memory_order_acquire);
      const TouchWord touch{descriptor.touch.load(std::memory_order_acquire)};
      touch_tick_[i] = touch.tick();
      const std::uint64_t after = descriptor.state.load(std::memory_order_acquire);
      const bool stable = after == before;
      before = after;
      if (stable) break;
      if (attempt == kReadAttempts) {
        ++changed_;
        break;
      }
    }
    // Words that cannot be are nobody's pages; status and verify report them.
    state_[i] = StateWord{before}.well_formed() ? before : 0;
  }
}

void TrieSnapshot::note_detached(Detached kind, std::uint32_t page) {
  const auto at = static_cast<std::size_t>(kind);
  ++detached_[at];
  if (examples_[at].size() < kExamplesMax) examples_[at].push_back(page);
}

void TrieSnapshot::link(const Segment& segment) {
  const std::uint32_t count = page_count();
  up_.assign(count, kNowhere);
  first_child_.assign(std::size_t{count} + 1, 0);
  std::unordered_map<std::uint64_t, std::size_t> root_at;
  auto classify = [&](std::uint32_t page) {
    const Handle parent{parent_[page]};
    if (parent.is_root()) {
      if (parent.namespace_id().value >= segment.namespace_count())
        return Detached::kParentOutOfRange;
      const auto [found, fresh] = root_at.try_emplace(parent.raw, roots_.size());
      if (fresh) {
        const NamespaceRecord& record = segment.name_space(parent.namespace_id());
        const bool open = record.state.load(std::memory_order_acquire) ==
                          static_cast<std::uint32_t>(NamespaceState::kOpen);
        const Handle now = Handle::root(parent.namespace_id(),
                                        record.root_generation.load(std::memory_order_acquire));
        roots_.push_back({parent, open && now == parent, {}, 0});
      }
      roots_[found->second].children.push_back(page);
      up_[page] = kAtRoot;
      return Detached::kNoParent;
    }
    if (!parent.is_page()) return Detached::kNoParent;
    const std::uint32_t above = parent.page_index().value;
    if (above >= count) return Detached::kParentOutOfRange;
    if (!parent.same_life(state(above))) return Detached::kParentOtherLife;
    if (!in_trie(above)) return Detached::kParentNotInTrie;
    up_[page] = above;
    ++first_child_[above + 1];
    return Detached::kNoParent;
  };
  for (std::uint32_t page = 0; page < count; ++page) {
    if (!in_trie(page)) continue;
    const Detached reason = classify(page);
    if (up_[page] != kNowhere) continue;
    note_detached(reason, page);
    broken_.push_back(page);
  }
  parent_ = {};
  for (std::uint32_t page = 0; page < count; ++page)
    first_child_[page + 1] += first_child_[page];
  children_.resize(first_child_[count]);
  std::vector<std::uint32_t> next(first_child_.begin(), first_child_.end() - 1);
  for (std::uint32_t page = 0; page < count; ++page) {
    if (up_[page] < count) children_[next[up_[page]]++] = page;
  }
}

// Breadth first. Every page has one parent, so each comes once at most when the start pages have
// none.
std::vector<std::uint32_t> TrieSnapshot::reachable_from(std::vector<std::uint32_t> pages) const {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const auto below = children(pages[i]);
    pages.insert(pages.end(), below.begin(), below.end());
  }
  return pages;
}

std::vector<std::uint32_t> TrieSnapshot::pages_of_roots() const {
  std::vector<std::uint32_t> start;
  for (const Root& root : roots_)
    start.insert(start.end(), root.children.begin(), root.children.end());
  return reachable_from(std::move(start));
}

void TrieSnapshot::count_subtrees(const std::vector<std::uint32_t>& top_down) {
  subtree_.assign(page_count(), 0);
  for (auto page = top_down.rbegin(); page != top_down.rend(); ++page) {
    ++subtree_[*page];
    if (up_[*page] < page_count()) subtree_[up_[*page]] += subtree_[*page];
  }
  for (Root& root : roots_) {
    root.pages = 0;
    for (const std::uint32_t page : root.children)
      root.pages += subtree_[page];
  }
  std::ranges::sort(roots_, [](const Root& a, const Root& b) {
    return a.pages != b.pages ? a.pages > b.pages : a.handle.raw < b.handle.raw;
  });
}

void TrieSnapshot::measure() {
  const std::vector<std::uint32_t> order = pages_of_roots();
  count_subtrees(order);
  std::vector<bool> seen(page_count(), false);
  for (const std::uint32_t page : order)
    seen[page] = true;
  for (const std::uint32_t page : broken_)
    seen[page] = true;
  for (const std::uint32_t page : reachable_from(broken_)) {
    if (seen[page]) continue;
    seen[page] = true;
    note_detached(Detached::kBelowDetached, page);
  }
  for (std::uint32_t page = 0; page < page_count(); ++page) {
    if (in_trie(page) && !seen[page]) note_detached(Detached::kInCycle, page);
  }
}

void TrieSnapshot::keep(const std::vector<bool>& wanted) {
  const std::vector<std::uint32_t> order = pages_of_roots();
  std::vector<bool> kept(page_count(), false);
  for (auto page = order.rbegin(); page != order.rend(); ++page) {
    if (wanted[*page]) kept[*page] = true;
    if (kept[*page] && up_[*page] < page_count()) kept[up_[*page]] = true;
  }
  keep_children(kept);
  for (Root& root : roots_) std::erase_if(root.children, [&](std::uint32_t page) { return !kept[page]; });
  std::erase_if(roots_, [](const Root& root) { return root.children.empty(); });
  count_subtrees(pages_of_roots());
}

void TrieSnapshot::keep_children(const std::vector<bool>& kept) {
  std::uint32_t out = 0;
  std::uint32_t from = 0;
  for (std::uint32_t page = 0; page < page_count(); ++page) {
    const std::uint32_t to = first_child_[page + 1];
    for (; from < to; ++from) {
      if (kept[children_[from]]) children_[out++] = children_[from];
    }
    first_child_[page + 1] = out;
  }
  children_.resize(out);
}

}  // namespace kvtrie::inspect
