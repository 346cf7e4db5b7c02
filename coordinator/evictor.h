// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Eviction: exact LRU along paths. Only the coordinator that holds the cache's lock runs it, in one thread.
//
// A scan copies what ranking needs into private memory; then batch after batch of the least recently used leaves is
// condemned and, where nobody objects, retired (rules 10 and 11):
//
//   1 read all announce counters      2 scan states, parents, touches; count children      3 rank the leaves
//   for each batch
//   4 condemn: CAS Live -> Condemned, unless touched since 2                      (seq_cst, pairs with lease.h)
//   5 read all lease slots; rescue what is leased: CAS Condemned -> Live          (after 4)
//   6 read the batch's announce counters again; changed: rescue                   (after 5)
//   7 children first: CAS Condemned -> Retiring, unless the page or a child of it in the batch was rescued by anybody
//   8 index entry out, the parent's touch raised, Free with the next generation, free bit   (recovery.h: finish_page)
//
// Why 5 before 6: a worker may drop its lease on P only after it has raised P's counter for a child (announce.h), so
// who sees the slot empty sees the counter changed.
// A child that the scan knew is either in the batch or a reason not to choose its parent. A child that came after the
// scan's look has raised the counter since step 1.
//
// The dead may be reaped between parts of the scan and between batches (`interrupted` does it), never within a batch.
// That frees Writing and Pending pages behind the scan's back: a child that the scan counted keeps its parent a round
// too long, a page that is taken again has another generation, and its announcement raises its new parent's counter.
// A dead announcer that had not raised the counter yet has a Pending page, which is freed before its lease goes.
// (tests/model/reap_in_scan.pml)
//
// evict_on: passes that want few pages would pay for a scan of all. So a scan ranks more leaves than its call wants (a
// 32nd of all pages, or as many again) and later calls go on where that one ended, as if it had been one call with
// pauses in it (ADR 0015).
// Nothing above depends on how old a scan is:
//   chosen by the scan, and since   touched           passed by: it is younger than all that the reserve holds
//                                   freed, used anew  has another generation: its CAS fails
//                                   got a child       its counter is not that of before the scan: rescued
//                                   leased            rescued
//   not chosen by the scan, since   it was younger, is new or was touched: younger than the reserve, so not its turn
//                                   it was leased or retained, or had a Pending child that was given up: it may be its
//                                   turn, and it waits for the next scan. There the order is not exact, as within one
//                                   long call
// So a scan is good for that many pages and a minute, and until somebody is reaped or evict() scans (flushes do).
//
// A reader that meets a Condemned page walks over it, and rescues it if it is the deepest: no false miss.
//
// Crash: died after / left behind / repaired by / test
//   4, 5, 6 / Condemned pages / adoption makes them Live / step_kill evict.chain
//   7       / Retiring page / adoption finishes it, never back to Live / step_kill evict.chain
//   8       / Retiring page without entry; Free page without bit / adoption / step_kill evict.chain
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

struct EvictReport {
  std::uint64_t evicted = 0;
  std::uint64_t rescued = 0;     // condemned and kept
  bool interrupted = false;
};

// Which pages a call may take.
struct EvictChoice {
  enum class Of : std::uint8_t { kAll, kNamespace, kFlushed };
  Of of = Of::kAll;
  NamespaceId name_space{};  // kNamespace
};

// Of the pages that the last call might take, those that stayed, each by the first reason that holds.
struct EvictLeft {
  std::uint64_t pinned = 0;
  std::uint64_t leased = 0;    // or used while it ran
  std::uint64_t pending = 0;
  std::uint64_t interior = 0;  // pages below them stayed
  std::uint64_t other = 0;     // retained, or not reached
  std::uint64_t all() const { return pinned + leased + pending + interior + other; }
};

// Zeros, from the system and so not touched before the first scan: a coordinator starts without waiting for them.
template <typename T>
class ByPage {
 public:
  explicit ByPage(std::size_t pages) : values_(static_cast<T*>(std::calloc(pages, sizeof(T)))) {
    static_assert(std::is_trivially_copyable_v<T>, "zero bytes are its zero");
    if (values_ == nullptr) throw std::bad_alloc();
  }
  T& operator[](std::size_t page) { return values_.get()[page]; }
  const T& operator[](std::size_t page) const { return values_.get()[page]; }

 private:
  struct Free {
    void operator()(T* values) const { std::free(values); }
  };
  std::unique_ptr<T, Free> values_;
};

class Evictor {
 public:
  explicit Evictor(const Segment& segment);

  // Evicts up to `wanted` pages, the least recently used leaf first, exactly that many if there are that many.
  // `interrupted` is asked between parts of some 100 us (8,192 pages, one batch); true ends the call, the next one
  // scans anew.
  // `on_pause` is told how long each batch was Condemned, in seconds.
  EvictReport evict(std::uint64_t wanted, const std::function<bool()>& interrupted,
                    const std::function<void(double)>& on_pause, const EvictChoice& choice = {});
  // As evict() of all pages, but goes on with an earlier call's scan while that is good (above).
  EvictReport evict_on(std::uint64_t wanted, const std::function<bool()>& interrupted,
                       const std::function<void(double)>& on_pause);
  // Of evict(), by what the last call saw; means nothing when its scan was interrupted. One line of private memory a
  // page.
  EvictLeft left() const;

 private:
  using Clock = std::chrono::steady_clock;

  // What a page is marked with during a call.
  static constexpr std::uint8_t kLeased = 1;
  static constexpr std::uint8_t kPinned = 2;
  static constexpr std::uint8_t kNotChosen = 4;  // not of the call's choice
  static constexpr std::uint8_t kRescued = 8;    // somebody used it while it was condemned, or a page below it

  struct Candidate {
    std::uint64_t stamp;
    std::uint32_t page;
  };
  struct Condemned {
    Handle page;
    bool kept = false;  // rescued, or a child of it was
  };

  // Calls visit(page index) for every page; false when it was interrupted.
  template <typename Visit>
  bool for_each_page(const std::function<bool()>& interrupted, Visit visit) const;
  bool chosen(std::uint32_t scope) const;
  bool out_of_reach(const Descriptor& descriptor, std::uint32_t page) const;
  bool scan(const std::function<bool()>& interrupted);
  void look_at(std::uint32_t page);
  void mark_leased();
  bool rank(std::uint64_t wanted, const std::function<bool()>& interrupted);
  bool worth_ranking(std::uint32_t page) const;
  bool reserve_is_good() const;
  void begin_reserve();
  void scan_and_evict(std::uint64_t wanted, std::uint64_t for_later, const std::function<bool()>& interrupted,
                      const std::function<void(double)>& on_pause, EvictReport& report);
  void evict_ranked(std::uint64_t wanted, const std::function<bool()>& interrupted,
                    const std::function<void(double)>& on_pause, EvictReport& report);
  void push(std::uint32_t page);
  void choose(std::uint64_t wanted);
  bool touched_since_scan(PageIndex page) const;
  void condemn();
  void rescue_leased();
  void rescue_announced();
  void retire(EvictReport& report);
  void keep(Condemned& page);
  void pass_touch_to_parent(PageIndex page);
  std::uint32_t parent_index(std::uint32_t page) const;

  const Segment& segment_;
  // Private copy of the segment as the scan saw it, by page.
  ByPage<StateWord> words_;
  ByPage<Handle> parents_;
  ByPage<std::uint64_t> stamps_;
  ByPage<std::uint32_t> children_;  // Live, Pending or Condemned, not retired by this evictor
  ByPage<std::uint32_t> counters_;  // announce counters before the scan
  ByPage<std::uint32_t> batch_place_;  // place in batch_ + 1; 0: not in it
  ByPage<std::uint8_t> marks_;
  EvictChoice choice_;
  std::vector<Candidate> heap_;
  std::uint64_t choices_ = 0;  // left before leaves that were not kept in the heap would count
  bool more_leaves_ = false;   // than are kept
  std::vector<Condemned> batch_;
  std::uint32_t tick_ = 0;
  std::uint64_t reserve_ = 0;      // pages that evict_on may still take by the last scan
  Clock::time_point reserve_until_;
  std::uint64_t reserve_reaps_ = 0;  // Superblock::reaps before that scan
};

}  // namespace kvtrie
