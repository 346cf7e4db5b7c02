// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/evictor.h"

#include <algorithm>
#include <chrono>

#include "shm/crash_point.h"
#include "shm/lease_table.h"
#include "shm/mutant.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/recovery.h"
#include "shm/stripe_index.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kBatchPages = 1024;      // bounds how long a page stays Condemned
constexpr std::uint32_t kPagesBetweenLooks = 8192;
constexpr std::uint32_t kPagesAhead = 64;  // fetched before a scan looks at them
constexpr std::size_t kEntriesAhead = 8;   // of a batch: their index buckets are fetched before they are emptied
constexpr std::uint64_t kSpareLeaves = 1024;
constexpr std::uint32_t kReservePart = 32;  // of the pages: how many a scan ranks for later calls
constexpr auto kReserveFor = std::chrono::seconds(60);
constexpr int kScansMax = 3;  // of one call, when more were rescued than there were spare
constexpr std::uint32_t kNoPage = ~std::uint32_t{0};
constexpr StateWord kNoWord{~std::uint64_t{0}};  // of no state and no life that a page was seen in

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
      marks_(segment.page_count()) {}

std::uint32_t Evictor::parent_index(std::uint32_t page) const {
  const Handle parent = parents_[page];
  if (!parent.is_page() || !segment_.has(parent.page_index())) return kNoPage;
  const std::uint32_t index = parent.page_index().value;
  return parent.same_life(words_[index]) ? index : kNoPage;
}

// A page and its children have one scope, so a choice is closed: what is chosen has no children that are not.
bool Evictor::chosen(std::uint32_t scope) const {
  switch (choice_.of) {
    case EvictChoice::Of::kNamespace:
      return namespace_in(scope) == choice_.name_space;
    case EvictChoice::Of::kFlushed:
      return !scope_is_current(segment_, scope);
    case EvictChoice::Of::kAll:
      break;
  }
  return true;
}

// An incomplete page is found through its parent's child hint alone: when that names another, nobody finds it again.
bool Evictor::out_of_reach(const Descriptor& descriptor, std::uint32_t page) const {
  if (descriptor.token_count.load(std::memory_order_relaxed) == segment_.tokens_per_page()) return false;
  const Handle parent = parents_[page];
  if (parent.is_page()) {
    return segment_.has(parent.page_index()) &&
           segment_.descriptor(parent.page_index()).child_hint.load(std::memory_order_relaxed) != page + 1;
  }
  return parent.namespace_id().value < segment_.namespace_count() &&
         segment_.name_space(parent.namespace_id()).child_hint.load(std::memory_order_relaxed) != page + 1;
}

template <typename Visit>
bool Evictor::for_each_page(const std::function<bool()>& interrupted, Visit visit) const {
  for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
    if (i % kPagesBetweenLooks == 0 && interrupted()) return false;
    visit(i);
  }
  return true;
}

bool Evictor::scan(const std::function<bool()>& interrupted) {
  tick_ = segment_.now_tick();
  return for_each_page(interrupted,
                       [&](std::uint32_t i) {
                         counters_[i] =
                             segment_.announce_counter({i}).load(std::memory_order_seq_cst);
                       }) &&
         for_each_page(interrupted, [&](std::uint32_t i) {
           if (const std::uint64_t ahead = std::uint64_t{i} + kPagesAhead; ahead < segment_.page_count()) {
             __builtin_prefetch(&segment_.descriptor({static_cast<std::uint32_t>(ahead)}));
           }
           look_at(i);
         }) &&
         for_each_page(interrupted, [&](std::uint32_t i) {
           if (!words_[i].canonical()) return;
           if (const std::uint32_t parent = parent_index(i); parent != kNoPage) ++children_[parent];
         });
}

void Evictor::look_at(std::uint32_t page) {
  const Descriptor& descriptor = segment_.descriptor({page});
  words_[page] = {descriptor.state.load(std::memory_order_seq_cst)};
  children_[page] = 0;
  batch_place_[page] = 0;
  marks_[page] = 0;
  if (!words_[page].canonical()) return;
  parents_[page] = {descriptor.parent.load(std::memory_order_acquire)};
  const std::uint32_t scope = descriptor.scope.load(std::memory_order_relaxed);
  if (!chosen(scope)) marks_[page] = kNotChosen;
  // First go pages of a flushed root (rule 18), of a scope that names no namespace, which is corrupt, and those that have
  // given way to one that continues them.
  const bool current = scope_is_current(segment_, scope) || KVTRIE_MUTANT(flushed_pages_keep_their_turn);
  stamps_[page] = current && !out_of_reach(descriptor, page)
                      ? TouchWord{descriptor.touch.load(std::memory_order_relaxed)}.stamp()
                      : 0;
}

// Leased pages are not worth condemning. Only a saving: step 5 decides.
void Evictor::mark_leased() {
  LeaseTable(segment_).for_each([&](WorkerId worker, Handle handle) {
    const std::uint32_t page = handle.page_index().value;
    if (KVTRIE_MUTANT(evict_ignores_pins) && worker == kCoordinatorSlot) return;
    if (handle.same_life(words_[page])) marks_[page] |= worker == kCoordinatorSlot ? kPinned : kLeased;
  });
}

bool Evictor::worth_ranking(std::uint32_t page) const {
  if (words_[page].state() != PageState::kLive) return false;
  if (children_[page] != 0 && !KVTRIE_MUTANT(evict_interior_pages)) return false;
  if ((marks_[page] & kNotChosen) != 0) return false;
  if (marks_[page] != 0 && !KVTRIE_MUTANT(evict_without_lease_scan)) return false;
  const std::uint32_t retain = segment_.descriptor({page}).retain_until.load(std::memory_order_relaxed);
  return retain == 0 || retain <= tick_ || stamps_[page] == 0;
}

// Keeps the least recently used leaves only, somewhat more than are wanted since some may be rescued. As long as no
// more pages are chosen than were kept, a leaf that was not kept would not have been chosen either: while one that
// was kept is left, that one comes first, whatever parents became leaves in between.
bool Evictor::rank(std::uint64_t wanted, const std::function<bool()>& interrupted) {
  constexpr Later kLater;
  choices_ = wanted + kSpareLeaves;
  more_leaves_ = false;
  heap_.clear();
  const auto drop_latest = [&] {
    const auto last = heap_.begin() + static_cast<std::ptrdiff_t>(choices_) - 1;
    std::ranges::nth_element(heap_, last, [&](const Candidate& a, const Candidate& b) { return kLater(b, a); });
    heap_.resize(choices_);
    more_leaves_ = true;
  };
  const bool whole = for_each_page(interrupted, [&](std::uint32_t i) {
    if (!worth_ranking(i)) return;
    const Candidate leaf{stamps_[i], i};
    if (more_leaves_ && kLater(leaf, heap_[choices_ - 1])) return;
    heap_.push_back(leaf);
    if (heap_.size() >= 2 * choices_) drop_latest();
  });
  if (heap_.size() > choices_) drop_latest();
  std::ranges::make_heap(heap_, kLater);
  return whole;
}

void Evictor::push(std::uint32_t page) {
  heap_.push_back({stamps_[page], page});
  std::ranges::push_heap(heap_, Later{});
}

// Children come before their parents: a parent is pushed when its last child is chosen.
void Evictor::choose(std::uint64_t wanted) {
  batch_.clear();
  while (batch_.size() < std::min<std::uint64_t>(wanted, kBatchPages) && !heap_.empty() &&
         (choices_ > 0 || !more_leaves_)) {
    std::ranges::pop_heap(heap_, Later{});
    const std::uint32_t page = heap_.back().page;
    heap_.pop_back();
    if (choices_ > 0) --choices_;
    if (children_[page] != 0 && !KVTRIE_MUTANT(evict_interior_pages)) continue;  // a child was rescued meanwhile
    if (touched_since_scan({page})) {
      marks_[page] |= kRescued;
      continue;
    }
    batch_.push_back({Handle::page({page}, words_[page])});
    batch_place_[page] = static_cast<std::uint32_t>(batch_.size());
    const std::uint32_t parent = parent_index(page);
    if (parent == kNoPage) continue;
    if (stamps_[page] > stamps_[parent]) stamps_[parent] = stamps_[page];
    if (--children_[parent] == 0 && worth_ranking(parent)) push(parent);
  }
}

// Somebody used it and is gone again. (Pages of a flushed root have no stamp.)
bool Evictor::touched_since_scan(PageIndex page) const {
  const TouchWord now{segment_.descriptor(page).touch.load(std::memory_order_relaxed)};
  return stamps_[page.value] != 0 && now.stamp() > stamps_[page.value];
}

void Evictor::condemn() {
  const PageTable pages(segment_);
  for (Condemned& victim : batch_) {
    victim.kept = touched_since_scan(victim.page.page_index()) ||
                  !pages.move(victim.page, PageState::kLive, PageState::kCondemned);
    KVTRIE_CRASH_POINT("evict.after_condemn");
  }
}

void Evictor::keep(Condemned& victim) {
  PageTable(segment_).move(victim.page, PageState::kCondemned, PageState::kLive);
  victim.kept = true;
}

void Evictor::rescue_leased() {
  LeaseTable(segment_).for_each([&](WorkerId worker, Handle handle) {
    if (KVTRIE_MUTANT(evict_ignores_pins) && worker == kCoordinatorSlot) return;
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
  const StripeIndex index(segment_);
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    if (i + kEntriesAhead < batch_.size()) {
      const Descriptor& ahead = segment_.descriptor(batch_[i + kEntriesAhead].page.page_index());
      index.prefetch(index.place_of(ahead.prefix_hash.load(std::memory_order_relaxed)));
    }
    Condemned& victim = batch_[i];
    const PageIndex page = victim.page.page_index();
    batch_place_[page.value] = 0;
    if (victim.kept) keep(victim);
    if (!victim.kept && pages.move(victim.page, PageState::kCondemned, PageState::kRetiring)) {
      KVTRIE_CRASH_POINT("evict.after_retire");
      pass_touch_to_parent(page);
      finish_page(segment_, page);
      words_[page.value] = kNoWord;
      ++report.evicted;
      continue;
    }
    ++report.rescued;
    marks_[page.value] |= kRescued;
    // It lives on, so its parent must (rule 11), in this batch and in later ones of this scan.
    const std::uint32_t parent = parent_index(page.value);
    if (parent == kNoPage) continue;
    ++children_[parent];
    const std::uint32_t place = batch_place_[parent];
    if (place != 0 && !KVTRIE_MUTANT(evict_parent_of_rescued)) batch_[place - 1].kept = true;
  }
}

EvictReport Evictor::evict(std::uint64_t wanted, const std::function<bool()>& interrupted,
                           const std::function<void(double)>& on_pause, const EvictChoice& choice) {
  EvictReport report;
  reserve_ = 0;
  choice_ = choice;
  scan_and_evict(wanted, 0, interrupted, on_pause, report);
  return report;
}

EvictReport Evictor::evict_on(std::uint64_t wanted, const std::function<bool()>& interrupted,
                              const std::function<void(double)>& on_pause) {
  EvictReport report;
  const std::uint64_t reserve = wanted <= reserve_ && reserve_is_good() ? reserve_ : 0;
  if (reserve > 0) evict_ranked(wanted, interrupted, on_pause, report);
  reserve_ = reserve - std::min(reserve, report.evicted);
  if (report.evicted < wanted && !report.interrupted) {
    choice_ = {};
    begin_reserve();
    const std::uint64_t for_later = std::max<std::uint64_t>(segment_.page_count() / kReservePart, wanted);
    scan_and_evict(wanted, for_later, interrupted, on_pause, report);
    if (report.evicted >= wanted) reserve_ = for_later;
  }
  return report;
}

bool Evictor::reserve_is_good() const {
  return Clock::now() < reserve_until_ && segment_.superblock().reaps.load(std::memory_order_relaxed) == reserve_reaps_;
}

void Evictor::begin_reserve() {
  reserve_ = 0;
  reserve_until_ = Clock::now() + kReserveFor;
  reserve_reaps_ = segment_.superblock().reaps.load(std::memory_order_relaxed);
}

void Evictor::scan_and_evict(std::uint64_t wanted, std::uint64_t for_later, const std::function<bool()>& interrupted,
                             const std::function<void(double)>& on_pause, EvictReport& report) {
  for (int scans = 0; scans < kScansMax && report.evicted < wanted && !report.interrupted; ++scans) {
    if (!scan(interrupted)) {
      report.interrupted = true;
      break;
    }
    mark_leased();
    if (!rank(wanted - report.evicted + for_later, interrupted)) {
      report.interrupted = true;
      break;
    }
    evict_ranked(wanted, interrupted, on_pause, report);
    if (!more_leaves_) break;
  }
}

EvictLeft Evictor::left() const {
  EvictLeft left;
  for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
    if (!words_[i].canonical() || (marks_[i] & kNotChosen) != 0) continue;
    std::uint64_t& reason = (marks_[i] & kPinned) != 0                 ? left.pinned
                            : (marks_[i] & kLeased) != 0               ? left.leased
                            : words_[i].state() == PageState::kPending ? left.pending
                            : children_[i] != 0                        ? left.interior
                            : (marks_[i] & kRescued) != 0              ? left.leased
                                                                       : left.other;
    ++reason;
  }
  return left;
}

void Evictor::evict_ranked(std::uint64_t wanted, const std::function<bool()>& interrupted,
                           const std::function<void(double)>& on_pause, EvictReport& report) {
  while (report.evicted < wanted) {
    const EvictReport before = report;
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
    // Now, not at the end: who finds the hint too low counts the pages, which takes longer than taking one.
    segment_.superblock().free_hint.fetch_add(static_cast<std::int64_t>(report.evicted - before.evicted),
                                              std::memory_order_relaxed);
    segment_.count(kCoordinatorSlot, Counter::kEvictions, report.evicted - before.evicted);
    segment_.count(kCoordinatorSlot, Counter::kEvictionRescued, report.rescued - before.rescued);
  }
}

}  // namespace kvtrie
