// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/save_plan.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <tuple>

#include "shm/namespace_table.h"
#include "shm/page_table.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kNotPlanned = ~std::uint32_t{0};
constexpr std::uint32_t kFlushed = kNotPlanned - 1;

template <std::size_t N>
std::string copy_text(const char (&field)[N], std::size_t bytes) {
  std::string text(std::min(bytes, N), '\0');
  for (std::size_t i = 0; i < text.size(); ++i)
    text[i] = __atomic_load_n(field + i, __ATOMIC_ACQUIRE);
  return text;
}

// An open namespace, all of one generation (namespace_table.h says why the second look decides).
std::optional<PlannedNamespace> read_namespace(const Segment& segment, NamespaceId id) {
  const NamespaceRecord& record = segment.name_space(id);
  const std::uint64_t generation = record.root_generation.load(std::memory_order_acquire);
  if (record.state.load(std::memory_order_acquire) !=
      static_cast<std::uint32_t>(NamespaceState::kOpen)) {
    return std::nullopt;
  }
  const std::uint32_t bytes = record.fields_bytes.load(std::memory_order_acquire);
  PlannedNamespace found{Handle::root(id, generation),
                         copy_text(record.label, sizeof record.label - 1),
                         copy_text(record.fields, bytes)};
  found.label.resize(std::min(found.label.find('\0'), found.label.size()));
  if (record.root_generation.load(std::memory_order_acquire) != generation) return std::nullopt;
  if (!namespace_fields_problem(found.fields).empty()) return std::nullopt;
  return found;
}

std::optional<PlannedPage> read_page(const Segment& segment, PageIndex page) {
  const Descriptor& d = segment.descriptor(page);
  const StateWord word{d.state.load(std::memory_order_acquire)};
  if (!word.well_formed() || !word.readable()) return std::nullopt;
  const PlannedPage found{Handle::page(page, word),
                          {d.parent.load(std::memory_order_acquire)},
                          d.touch.load(std::memory_order_acquire),
                          page.value,
                          depth_in(d.depth_class.load(std::memory_order_acquire))};
  const StateWord after{d.state.load(std::memory_order_acquire)};
  if (!after.readable() || !found.page.same_life(after)) return std::nullopt;
  return found;
}

class Planner {
 public:
  explicit Planner(const Segment& segment) : segment_(segment) {}

  SavePlan run() {
    find_namespaces();
    find_pages();
    const auto by_depth = [](const PlannedPage& a, const PlannedPage& b) {
      return a.depth < b.depth;
    };
    std::ranges::sort(plan_.pages, by_depth);
    keep_what_reaches_a_root();
    pass_recency_up();
    std::ranges::sort(plan_.pages, more_recent_first);
    std::erase_if(plan_.namespaces, [&](const PlannedNamespace& n) {
      return !has_pages_[n.root.namespace_id().value];
    });
    return std::move(plan_);
  }

 private:
  // The stamp's order is the evictor's; touches and flags do not
  // count. A parent has its child's source or a smaller one.
  static bool more_recent_first(const PlannedPage& a, const PlannedPage& b) {
    const auto key = [](const PlannedPage& p) {
      return std::make_tuple(~TouchWord{p.recency}.stamp(), p.source, p.depth);
    };
    return key(a) < key(b);
  }

  void find_namespaces() {
    roots_.resize(segment_.namespace_count());
    has_pages_.resize(segment_.namespace_count());
    for (std::uint32_t i = 0; i < segment_.namespace_count(); ++i) {
      std::optional<PlannedNamespace> found =
          read_namespace(segment_, {static_cast<std::uint16_t>(i)});
      if (!found) continue;
      roots_[i] = found->root;
      plan_.namespaces.push_back(std::move(*found));
    }
  }

  void find_pages() {
    place_.assign(segment_.page_count(), kNotPlanned);
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
      if (const std::optional<PlannedPage> page = read_page(segment_, {i})) {
        plan_.pages.push_back(*page);
      }
    }
  }

  bool present_root(Handle root) const {
    const std::uint32_t id = root.namespace_id().value;
    return id < roots_.size() && roots_[id] == root;
  }

  // Sorted by depth, so a parent was looked at before its children; one that was not cannot be.
  void keep_what_reaches_a_root() {
    std::size_t kept = 0;
    for (const PlannedPage& page : plan_.pages) {
      std::uint32_t& place = place_[page.page.page_index().value];
      if (page.parent.is_root() ? present_root(page.parent) : parent_of(page) != nullptr) {
        place = static_cast<std::uint32_t>(kept);
        if (page.parent.is_root()) has_pages_[page.parent.namespace_id().value] = true;
        plan_.pages[kept++] = page;
      } else if (page.parent.is_root() || below_flushed(page)) {
        place = kFlushed;
        ++plan_.flushed;
      } else {
        ++plan_.unreachable;
      }
    }
    plan_.pages.resize(kept);
  }

  bool below_flushed(const PlannedPage& page) const {
    const PageIndex up = page.parent.page_index();
    return page.parent.is_page() && segment_.has(up) && place_[up.value] == kFlushed;
  }

  // Null when it is not kept, or of another life.
  PlannedPage* parent_of(const PlannedPage& page) {
    const PageIndex up = page.parent.page_index();
    if (!page.parent.is_page() || !segment_.has(up) || place_[up.value] >= kFlushed) return nullptr;
    PlannedPage& parent = plan_.pages[place_[up.value]];
    return parent.page == page.parent ? &parent : nullptr;
  }

  void pass_recency_up() {
    for (auto page = plan_.pages.rbegin(); page != plan_.pages.rend(); ++page) {
      PlannedPage* parent = page->parent.is_page() ? parent_of(*page) : nullptr;
      if (parent == nullptr) continue;
      const std::uint64_t mine = TouchWord{page->recency}.stamp();
      const std::uint64_t its = TouchWord{parent->recency}.stamp();
      if (mine > its) parent->recency = page->recency;
      if (mine > its || (mine == its && page->source < parent->source))
        parent->source = page->source;
    }
  }

  const Segment& segment_;
  SavePlan plan_;
  std::vector<Handle> roots_;    // by namespace; none: not open
  std::vector<bool> has_pages_;  // by namespace
  std::vector<std::uint32_t>
      place_;  // by page: where it is in plan_.pages, until that is sorted anew
};

}  // namespace

SavePlan plan_save(const Segment& segment) { return Planner(segment).run(); }

}  // namespace kvtrie
