// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/recovery.h"

#include "shm/crash_point.h"
#include "shm/free_pages.h"
#include "shm/futex.h"
#include "shm/lease_table.h"
#include "shm/mutant.h"
#include "shm/pending_wait.h"
#include "shm/stripe_index.h"

namespace kvtrie {

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
  report.pages = FreePages(segment).recover(dead);
  if (!KVTRIE_MUTANT(reap_keeps_leases)) report.leases = LeaseTable(segment).recover(dead);
  WorkerRecord& record = segment.worker(dead);
  record.pages_wanted.store(0, std::memory_order_release);
  record.pages_asked.store(0, std::memory_order_release);
  record.wait_ticket.store(0, std::memory_order_relaxed);
  record.wait_seen.store(0, std::memory_order_relaxed);
  record.wait_word.store(0, std::memory_order_relaxed);
  KVTRIE_CRASH_POINT("reap.after_waits");
  segment.superblock().reaps.fetch_add(1, std::memory_order_seq_cst);
  if (!KVTRIE_MUTANT(reap_keeps_waiters)) wake_waiters_on_dead(segment, dead);
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

PageRecovery adopt_pages(const Segment& segment) {
  const PageRecovery report = PageTable(segment).recover();
  FreePages(segment).recover();
  segment.superblock().reaps.fetch_add(1, std::memory_order_seq_cst);
  wake_pending_waiters(segment);
  return report;
}

void wake_pending_waiters(const Segment& segment) {
  for (std::uint32_t slot = 1; slot < segment.slot_count(); ++slot) {
    wake_waiters_on_dead(segment, {static_cast<std::uint16_t>(slot)});
  }
}

}  // namespace kvtrie
