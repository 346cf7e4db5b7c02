// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/recovery.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "shm/crash_point.h"
#include "shm/free_pages.h"
#include "shm/futex.h"
#include "shm/mutant.h"
#include "shm/page_table.h"
#include "shm/stripe_index.h"

namespace kvtrie {
namespace {

void clear_leases(const Segment& segment, WorkerId dead, ReapReport& report) {
  WorkerRecord& record = segment.worker(dead);
  const std::span<LeaseSlot> slots = segment.leases(dead);
  const std::size_t used = std::min<std::size_t>(
      record.leases_high_water.load(std::memory_order_acquire), slots.size());
  for (LeaseSlot& slot : slots.first(used)) {
    if (slot.handle.load(std::memory_order_relaxed) != 0) ++report.leases;
    slot.handle.store(0, std::memory_order_release);
    slot.since_tick.store(0, std::memory_order_relaxed);
    slot.request_tag.store(0, std::memory_order_relaxed);
    KVTRIE_CRASH_POINT("reap.after_lease");
  }
  record.leases_high_water.store(0, std::memory_order_release);
}

// Gives back what a dead worker owns, some chunks at a time, so that the index lines of all their pages are on
// their way before the first is needed: pages that lie scattered wait for memory otherwise, 0.3 us each.
class PagesOfTheDead {
 public:
  PagesOfTheDead(const Segment& segment, WorkerId dead)
      : segment_(segment), dead_(dead), index_(segment) {}

  std::uint32_t give_back() {
    for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
      const std::uint32_t held = segment_.held_count(dead_, chunk).load(std::memory_order_acquire);
      if (held == 0) continue;
      find(chunk, held);
      if (chunks_.size() == kChunksAtOnce) finish();
    }
    finish();
    return freed_;
  }

 private:
  static constexpr std::size_t kChunksAtOnce = 32;

  struct Chunk {
    std::uint32_t number;
    bool exact;  // as many pages were found as are held
  };

  // Pages without a free bit first: an owned page has one for a moment only (F3). Who finds all that are held
  // looks no further: by F1 there are no others, and by F2 no Free page of this chunk lacks its bit.
  void find(std::uint32_t chunk, std::uint32_t held) {
    const std::uint32_t first = chunk * kChunkPages;
    const std::uint32_t count = std::min(kChunkPages, segment_.page_count() - first);
    const std::uint64_t all = count == kChunkPages ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
    const std::uint64_t free = segment_.free_bits(chunk).load(std::memory_order_acquire);
    std::uint32_t found = 0;
    for (std::uint64_t bits : {all & ~free, all & free}) {
      for (; bits != 0 && found < held; bits &= bits - 1) {
        const PageIndex page{first + static_cast<std::uint32_t>(std::countr_zero(bits))};
        const Descriptor& descriptor = segment_.descriptor(page);
        const StateWord word{descriptor.state.load(std::memory_order_acquire)};
        if (!word.owned() || word.owner() != dead_ || KVTRIE_MUTANT(reap_keeps_pages)) continue;
        ++found;
        pages_.push_back(page);
        if (word.state() != PageState::kPending) continue;  // in no bucket
        index_.prefetch(index_.place_of(descriptor.prefix_hash.load(std::memory_order_relaxed)));
      }
    }
    chunks_.push_back({chunk, found == held});
  }

  void finish() {
    for (const PageIndex page : pages_) finish_page(segment_, page);
    freed_ += static_cast<std::uint32_t>(pages_.size());
    pages_.clear();
    for (const Chunk& chunk : chunks_) {
      if (!chunk.exact && !KVTRIE_MUTANT(reap_keeps_bitmap)) FreePages(segment_).repair_chunk(chunk.number);
      KVTRIE_CRASH_POINT("reap.before_held");
      segment_.held_count(dead_, chunk.number).store(0, std::memory_order_release);
      KVTRIE_CRASH_POINT("reap.after_chunk");
    }
    chunks_.clear();
  }

  const Segment& segment_;
  WorkerId dead_;
  StripeIndex index_;
  std::vector<Chunk> chunks_;
  std::vector<PageIndex> pages_;
  std::uint32_t freed_ = 0;
};

}  // namespace

void finish_page(const Segment& segment, PageIndex page) {
  Descriptor& descriptor = segment.descriptor(page);
  const std::uint64_t hash = descriptor.prefix_hash.load(std::memory_order_relaxed);
  if (KVTRIE_MUTANT(free_before_unindex)) {
    FreePages(segment).free_retired(page);
    KVTRIE_CRASH_POINT("finish.after_unindex");
    StripeIndex(segment).remove(hash, page);
    return;
  }
  // A Writing page never had an entry, and its hash may be half of another life's.
  if (StateWord{descriptor.state.load(std::memory_order_relaxed)}.state() != PageState::kWriting) {
    StripeIndex(segment).remove(hash, page);
  }
  KVTRIE_CRASH_POINT("finish.after_unindex");
  FreePages(segment).free_retired(page);
}

ReapReport reap_worker(const Segment& segment, WorkerId dead) {
  ReapReport report;
  report.pages = PagesOfTheDead(segment, dead).give_back();
  segment.superblock().free_hint.fetch_add(report.pages, std::memory_order_relaxed);
  if (!KVTRIE_MUTANT(reap_keeps_leases)) clear_leases(segment, dead, report);
  WorkerRecord& record = segment.worker(dead);
  record.pages_wanted.store(0, std::memory_order_release);
  record.pages_asked.store(0, std::memory_order_release);
  record.wait_ticket.store(0, std::memory_order_relaxed);
  record.wait_word.store(0, std::memory_order_relaxed);
  KVTRIE_CRASH_POINT("reap.after_waits");
  segment.superblock().reaps.fetch_add(1, std::memory_order_seq_cst);
  wake_pending_waiters(segment);
  return report;
}

std::optional<ReapReport> reap_slot(const Segment& segment, WorkerId slot, SlotWord expected,
                                    bool died) {
  const WorkerTable table(segment);
  if (!table.begin_reap(slot, expected)) return std::nullopt;
  if (KVTRIE_MUTANT(reap_slot_first)) table.finish_reap(slot);
  const ReapReport report = reap_worker(segment, slot);
  if (died) segment.count(kCoordinatorSlot, Counter::kReapedWorkers);
  segment.count(kCoordinatorSlot, Counter::kReapedPages, report.pages);
  segment.count(kCoordinatorSlot, Counter::kReapedLeases, report.leases);
  if (!KVTRIE_MUTANT(reap_slot_first)) table.finish_reap(slot);
  return report;
}

AdoptReport adopt_pages(const Segment& segment) {
  AdoptReport report;
  const PageTable pages(segment);
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const PageIndex page{i};
    const StateWord word = pages.state(page);
    if (word.state() == PageState::kCondemned && !KVTRIE_MUTANT(adopt_keeps_condemned)) {
      if (pages.move(Handle::page(page, word), PageState::kCondemned, PageState::kLive)) {
        ++report.condemned;
      }
    } else if (word.state() == PageState::kRetiring) {
      if (KVTRIE_MUTANT(adopt_revives_retiring)) {
        pages.move(Handle::page(page, word), PageState::kRetiring, PageState::kLive);
      } else {
        finish_page(segment, page);
      }
      ++report.retiring;
    } else if (word.owned()) {
      const WorkerId owner = word.owner();
      const bool nobody = owner.value >= segment.slot_count() ||
                          static_cast<SlotState>(segment.worker(owner).slot_state.load(
                                                     std::memory_order_acquire) &
                                                 0xFF) == SlotState::kFree;
      if (nobody) {
        finish_page(segment, page);
        ++report.orphans;
      }
    }
    KVTRIE_CRASH_POINT("adopt.after_page");
  }
  const FreePages free_pages(segment);
  for (std::uint32_t chunk = 0; chunk < segment.chunk_count(); ++chunk) {
    if (!KVTRIE_MUTANT(adopt_keeps_bitmap)) free_pages.repair_chunk(chunk);
    KVTRIE_CRASH_POINT("adopt.after_chunk");
  }
  segment.superblock().free_hint.store(static_cast<std::int64_t>(free_pages.count()),
                                       std::memory_order_relaxed);
  segment.superblock().reaps.fetch_add(1, std::memory_order_seq_cst);
  wake_pending_waiters(segment);
  return report;
}

void wake_pending_waiters(const Segment& segment) {
  WakeWord& epoch = segment.superblock().pending_epoch;
  epoch.word.fetch_add(1, std::memory_order_seq_cst);
  futex_wake_all(epoch.word);
}

}  // namespace kvtrie
