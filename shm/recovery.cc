// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/recovery.h"

#include <algorithm>

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

std::uint32_t give_back_chunk(const Segment& segment, WorkerId dead, std::uint32_t chunk) {
  std::uint32_t freed = 0;
  const std::uint32_t first = chunk * kChunkPages;
  const std::uint32_t end = std::min(first + kChunkPages, segment.page_count());
  for (std::uint32_t i = first; i < end; ++i) {
    const StateWord word{segment.descriptor({i}).state.load(std::memory_order_acquire)};
    if (!word.owned() || word.owner() != dead || KVTRIE_MUTANT(reap_keeps_pages)) continue;
    finish_page(segment, {i});
    ++freed;
  }
  if (!KVTRIE_MUTANT(reap_keeps_bitmap)) FreePages(segment).repair_chunk(chunk);
  return freed;
}

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
  StripeIndex(segment).remove(hash, page);
  KVTRIE_CRASH_POINT("finish.after_unindex");
  FreePages(segment).free_retired(page);
}

ReapReport reap_worker(const Segment& segment, WorkerId dead) {
  ReapReport report;
  for (std::uint32_t chunk = 0; chunk < segment.chunk_count(); ++chunk) {
    AtomicU16& held = segment.held_count(dead, chunk);
    if (held.load(std::memory_order_acquire) == 0) continue;
    report.pages += give_back_chunk(segment, dead, chunk);
    KVTRIE_CRASH_POINT("reap.before_held");
    held.store(0, std::memory_order_release);
    KVTRIE_CRASH_POINT("reap.after_chunk");
  }
  segment.superblock().free_hint.fetch_add(report.pages, std::memory_order_relaxed);
  if (!KVTRIE_MUTANT(reap_keeps_leases)) clear_leases(segment, dead, report);
  WorkerRecord& record = segment.worker(dead);
  record.pages_wanted.store(0, std::memory_order_release);
  record.pages_asked.store(0, std::memory_order_release);
  record.wait_ticket.store(0, std::memory_order_relaxed);
  record.wait_seen.store(0, std::memory_order_relaxed);
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
