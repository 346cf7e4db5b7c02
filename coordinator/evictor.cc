// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/evictor.h"

#include <algorithm>
#include <chrono>

#include "shm/crash_point.h"
#include "shm/lease_table.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/recovery.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kBatchPages = 1024;      // bounds how long a page stays Condemned
constexpr std::uint32_t kPagesBetweenLooks = 8192;
constexpr std::uint32_t kNoPage = ~std::uint32_t{0};

// Least recently used first; of equals, which only happens across workers, the lower page.
struct Later {
  template <typename T>
  bool operator()(const T& a, const T& b) const {
    return a.stamp != b.stamp ? a.stamp > b.stamp : a.page > b.page;
  }
};

}  // namespace

Evictor::Evictor(const Segment& segment)
    : segment_(segment), words_(segment.page_count()), parents_(segment.page_count()),
      stamps_(segment.page_count()), children_(segment.page_count()),
      counters_(segment.page_count()), batch_place_(segment.page_count()),
      leased_(segment.page_count()) {}

std::uint32_t Evictor::parent_index(std::uint32_t page) const {
  const Handle parent = parents_[page];
  if (!parent.is_page() || !segment_.has(parent.page_index())) return kNoPage;
  const std::uint32_t index = parent.page_index().value;
  return parent.same_life(words_[index]) ? index : kNoPage;
}

// A scope that names no namespace is corrupt; its page goes first too.
bool Evictor::flushed(std::uint32_t scope) const {
  const NamespaceId id = namespace_in(scope);
  return id.value >= segment_.namespace_count() ||
         scope_of(id, segment_.name_space(id).root_generation.load(std::memory_order_relaxed)) != scope;
}

bool Evictor::scan(const std::function<bool()>& interrupted) {
  const std::uint32_t pages = segment_.page_count();
  tick_ = segment_.now_tick();
  for (std::uint32_t i = 0; i < pages; ++i) {
    counters_[i] = segment_.announce_counter({i}).load(std::memory_order_seq_cst);
  }
  for (std::uint32_t i = 0; i < pages; ++i) {
    if (i % kPagesBetweenLooks == 0 && interrupted()) return false;
    const Descriptor& descriptor = segment_.descriptor({i});
    words_[i] = {descriptor.state.load(std::memory_order_seq_cst)};
    children_[i] = 0;
    batch_place_[i] = 0;
    leased_[i] = 0;
    if (!words_[i].canonical()) continue;
    parents_[i] = {descriptor.parent.load(std::memory_order_acquire)};
    const std::uint32_t scope = descriptor.scope.load(std::memory_order_relaxed);
    // Pages of a flushed root go first (rule 18).
    stamps_[i] = flushed(scope) ? 0 : TouchWord{descriptor.touch.load(std::memory_order_relaxed)}.stamp();
  }
  for (std::uint32_t i = 0; i < pages; ++i) {
    if (!words_[i].canonical()) continue;
    if (const std::uint32_t parent = parent_index(i); parent != kNoPage) ++children_[parent];
  }
  return true;
}

// Leased pages are not worth condemning. Only a saving: step 5 decides.
void Evictor::mark_leased() {
  LeaseTable(segment_).for_each([&](WorkerId, Handle handle) {
    const std::uint32_t page = handle.page_index().value;
    if (handle.same_life(words_[page])) leased_[page] = 1;
  });
}

bool Evictor::worth_ranking(std::uint32_t page) const {
  if (words_[page].state() != PageState::kLive || children_[page] != 0) return false;
  if (leased_[page] != 0 && !KVTRIE_MUTANT(evict_without_lease_scan)) return false;
  const std::uint32_t retain = segment_.descriptor({page}).retain_until.load(std::memory_order_relaxed);
  return retain == 0 || retain <= tick_ || stamps_[page] == 0;
}

void Evictor::rank() {
  heap_.clear();
  for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
    if (worth_ranking(i)) heap_.push_back({stamps_[i], i});
  }
  std::ranges::make_heap(heap_, Later{});
}

void Evictor::push(std::uint32_t page) {
  heap_.push_back({stamps_[page], page});
  std::ranges::push_heap(heap_, Later{});
}

// Children come before their parents: a parent is pushed when its last child is chosen.
void Evictor::choose(std::uint64_t wanted) {
  batch_.clear();
  while (batch_.size() < std::min<std::uint64_t>(wanted, kBatchPages) && !heap_.empty()) {
    std::ranges::pop_heap(heap_, Later{});
    const std::uint32_t page = heap_.back().page;
    heap_.pop_back();
    if (children_[page] != 0) continue;  // a child was rescued since it was pushed
    batch_.push_back({Handle::page({page}, words_[page])});
    batch_place_[page] = static_cast<std::uint32_t>(batch_.size());
    const std::uint32_t parent = parent_index(page);
    if (parent == kNoPage) continue;
    if (stamps_[page] > stamps_[parent]) stamps_[parent] = stamps_[page];
    if (--children_[parent] == 0 && worth_ranking(parent)) push(parent);
  }
}

void Evictor::condemn() {
  const PageTable pages(segment_);
  for (Condemned& victim : batch_) {
    if (!pages.move(victim.page, PageState::kLive, PageState::kCondemned)) victim.kept = true;
    KVTRIE_CRASH_POINT("evict.after_condemn");
  }
}

void Evictor::keep(Condemned& victim) {
  PageTable(segment_).move(victim.page, PageState::kCondemned, PageState::kLive);
  victim.kept = true;
}

void Evictor::rescue_leased() {
  LeaseTable(segment_).for_each([&](WorkerId, Handle handle) {
    const std::uint32_t place = batch_place_[handle.page_index().value];
    if (place != 0 && batch_[place - 1].page == handle) keep(batch_[place - 1]);
  });
}

void Evictor::rescue_announced() {
  for (Condemned& victim : batch_) {
    const PageIndex page = victim.page.page_index();
    if (segment_.announce_counter(page).load(std::memory_order_seq_cst) != counters_[page.value]) {
      keep(victim);
    }
  }
}

void Evictor::pass_touch_to_parent(PageIndex page) {
  const std::uint32_t parent = parent_index(page.value);
  if (parent == kNoPage) return;
  const TouchWord mine{segment_.descriptor(page).touch.load(std::memory_order_relaxed)};
  AtomicU64& word = segment_.descriptor({parent}).touch;
  TouchWord theirs{word.load(std::memory_order_relaxed)};
  // A worker may touch the parent meanwhile: then its newer word stands.
  while (theirs.stamp() < mine.stamp() &&
         !word.compare_exchange_weak(theirs.raw, mine.raw, std::memory_order_relaxed)) {
  }
}

void Evictor::retire(EvictReport& report) {
  const PageTable pages(segment_);
  for (Condemned& victim : batch_) {
    const PageIndex page = victim.page.page_index();
    batch_place_[page.value] = 0;
    if (victim.kept) keep(victim);
    if (!victim.kept && pages.move(victim.page, PageState::kCondemned, PageState::kRetiring)) {
      KVTRIE_CRASH_POINT("evict.after_retire");
      pass_touch_to_parent(page);
      finish_page(segment_, page);
      words_[page.value] = {};
      ++report.evicted;
      continue;
    }
    ++report.rescued;
    // It lives on, so its parent must (rule 11), in this batch and in later ones of this scan.
    const std::uint32_t parent = parent_index(page.value);
    if (parent == kNoPage) continue;
    ++children_[parent];
    const std::uint32_t place = batch_place_[parent];
    if (place != 0 && !KVTRIE_MUTANT(evict_parent_of_rescued)) batch_[place - 1].kept = true;
  }
}

EvictReport Evictor::evict(std::uint64_t wanted, const std::function<bool()>& interrupted,
                           const std::function<void(double)>& on_pause) {
  EvictReport report;
  if (wanted == 0) return report;
  if (!scan(interrupted)) {
    report.interrupted = true;
    return report;
  }
  mark_leased();
  rank();
  while (report.evicted < wanted) {
    if (interrupted()) {
      report.interrupted = true;
      break;
    }
    choose(wanted - report.evicted);
    if (batch_.empty()) break;
    const auto start = std::chrono::steady_clock::now();
    if (KVTRIE_MUTANT(evict_scan_before_condemn)) rescue_leased();
    condemn();
    if (!KVTRIE_MUTANT(evict_without_lease_scan) && !KVTRIE_MUTANT(evict_scan_before_condemn)) {
      rescue_leased();
    }
    if (!KVTRIE_MUTANT(evict_without_counter_check)) rescue_announced();
    retire(report);
    on_pause(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  segment_.superblock().free_hint.fetch_add(static_cast<std::int64_t>(report.evicted),
                                            std::memory_order_relaxed);
  segment_.count(kCoordinatorSlot, Counter::kEvictions, report.evicted);
  segment_.count(kCoordinatorSlot, Counter::kEvictionRescued, report.rescued);
  return report;
}

}  // namespace kvtrie
