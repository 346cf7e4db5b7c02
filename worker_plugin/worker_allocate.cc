// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <utility>

#include "shm/crash_point.h"
#include "shm/futex.h"
#include "shm/lease.h"
#include "shm/mutant.h"
#include "shm/waiting.h"
#include "worker_plugin/batch.h"
#include "worker_plugin/worker.h"

namespace kvtrie {
namespace {

// Memory first, pages second: noting what was taken cannot fail. Grows by halves, since sequences grow by single pages.
void make_room(Sequence& sequence, std::size_t more) {
  const std::size_t own = sequence.own.size() + more;
  if (own <= sequence.own.capacity()) return;
  sequence.own.reserve(std::max(own, sequence.own.capacity() + sequence.own.capacity() / 2));
}

}  // namespace

Status Worker::allocate(Sequence& sequence, std::uint64_t total_tokens, std::int64_t wait_ns) {
  if (Status status = health(); !status) return status;
  const std::uint64_t page_tokens = segment_.tokens_per_page();
  const std::uint64_t needed = total_tokens / page_tokens + (total_tokens % page_tokens != 0 ? 1 : 0);
  if (needed > segment_.page_count()) {
    count(Counter::kFailedNever);
    return {Code::kNever, "more pages than this cache has: make it larger or the request shorter"};
  }
  std::uint32_t missing = 0;
  bool goes_on = false;
  {
    const BatchLock lock(sequence);
    if (!lock.status()) return lock.status();
    goes_on = needed > sequence.published && sequence.has_incomplete() &&
              total_tokens > sequence.published * page_tokens + incomplete_tokens(sequence);
    if (needed > sequence.positions()) missing = static_cast<std::uint32_t>(needed) - sequence.positions();
    if (goes_on) ++missing;
    make_room(sequence, missing);
  }
  std::vector<PageIndex> taken;
  if (missing > 0) {
    const std::uint32_t have = sequence.positions();
    const PageIndex last = have == 0 ? kNoPage : sequence.page_at(have - 1);
    const PageIndex near{last == kNoPage ? segment_.page_count() : last.value + 1};
    taken.reserve(missing);
    // Who has pages goes on before those who wait: they may wait for just these pages (W2).
    const Turn turn = sequence.own.empty() ? Turn::last() : Turn::first();
    if (Status status = take_pages(missing, near, turn, wait_ns, taken); !status) return status;
  }
  const BatchLock lock(sequence);
  Status status = lock.status();
  if (status && goes_on) status = leave_incomplete(sequence, taken.front());
  if (!status) {
    free_own(taken);
    return status;
  }
  for (const PageIndex page : std::span(taken).subspan(goes_on ? 1 : 0)) sequence.own.push_back({{}, page});
  if (missing > 0) {
    count(Counter::kAllocations);
    count(Counter::kPagesAllocated, missing);
  }
  return announce_full(sequence, sequence.positions(), false);
}

std::uint32_t Worker::incomplete_tokens(const Sequence& sequence) const {
  const Descriptor& descriptor = segment_.descriptor(sequence.own_at(sequence.published).page);
  return std::min<std::uint32_t>(descriptor.token_count.load(std::memory_order_relaxed), segment_.tokens_per_page());
}

// `page` takes the place of the incomplete page, which others may read: its bytes are copied, never added to (C3). The lease
// on it becomes the source's, and the sequence's own stands on its parent: acquired in a second slot first (rule 7).
Status Worker::leave_incomplete(Sequence& sequence, PageIndex page) {
  const std::uint32_t position = sequence.published;
  const std::optional<std::uint32_t> second = take_slot(sequence.options.request_tag, segment_.now_tick());
  if (!second) {
    return {Code::kFull, "no free lease slot to go on from an incomplete page: release sequences, or "
                         "start kvtried with more --leases"};
  }
  const Handle parent = sequence.parent_of(position);
  if (parent.is_page() && lease_in(*second, parent) == LeaseOutcome::kLost) {
    give_slot_back(*second);  // its leased child keeps it: only broken bytes come here
    distrusts_.store(true, std::memory_order_relaxed);
    count(Counter::kCorruptSeen);
    return {Code::kCorrupt, "the parent of a leased page is gone; begins miss from now on"};
  }
  KVTRIE_CRASH_POINT("go_on.after_second_lease");
  drop_source(sequence);  // an older one, if the caller never asked for the copy
  OwnPage& own = sequence.own_at(position);
  sequence.source = {own.node, incomplete_tokens(sequence), position, sequence.lease_slot};
  sequence.lease_slot = *second;
  own = {{}, page};
  return {};
}

bool Worker::try_take(std::uint32_t wanted, PageIndex near, Turn turn, std::vector<PageIndex>& out) {
  // Beside others that wait the free pages are counted: a hint that is too high would give theirs away.
  const std::uint64_t due = pages_due_before(segment_, turn);
  if (due != 0 && free_pages_.count() < due + wanted) {
    KVTRIE_CRASH_POINT("take.stands_back");
    return false;
  }
  if (segment_.superblock().free_hint.load(std::memory_order_relaxed) < wanted &&
      free_pages_.count() < wanted) {
    return false;  // the hint may be off after a crash; the bits are counted before giving up
  }
  std::uint32_t cursor = cursor_.load(std::memory_order_relaxed);
  const std::uint32_t got = free_pages_.take(slot_, wanted, near, cursor, out);
  cursor_.store(cursor, std::memory_order_relaxed);
  if (got == wanted) return true;
  free_pages_.give_back(slot_, out);
  out.clear();
  return false;
}

Status Worker::take_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::int64_t wait_ns,
                          std::vector<PageIndex>& out) {
  if (!try_take(wanted, near, turn, out)) {
    const Status status = wait_for_pages(wanted, near, turn, 0, wait_ns, out);
    if (!status) {
      count(Counter::kFailedNotNow);
      return status;
    }
  }
  ring_if_low();
  return {};
}

// The coordinator looks again after it has stopped being busy, so a take that it did not see is seen then.
void Worker::ring_if_low() {
  Superblock& block = segment_.superblock();
  const auto low = static_cast<std::int64_t>(block.low_pages.load(std::memory_order_relaxed));
  if (block.free_hint.load(std::memory_order_seq_cst) < low &&
      block.evictor_busy.load(std::memory_order_seq_cst) == 0) {
    ring(block.doorbell);
  }
}

// Somebody sleeps for pages: there may be some now, or some may be evicted now.
void Worker::ring_for_waiters() {
  Superblock& block = segment_.superblock();
  if (block.pages_waiters.load(std::memory_order_seq_cst) != 0) ring(block.doorbell);
}

// Says what is wanted, wakes the coordinator, and sleeps on this worker's own word (rule 16: the word is read
// before the last look, and the futex compares it). Who does not wait only asks: the evictor makes room.
// States and who binds whom: shm/waiting.h.
// `ticket`: of a wait that this one goes on with; 0: it begins now.
Status Worker::wait_for_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::uint64_t ticket,
                              std::int64_t wait_ns, std::vector<PageIndex>& out) {
  WorkerRecord& me = segment_.worker(slot_);
  Superblock& block = segment_.superblock();
  const std::uint64_t start = monotonic_ns();
  if (wait_ns <= 0) {
    me.pages_asked.store(wanted, std::memory_order_seq_cst);
    ring(block.doorbell);
    return {Code::kNotNow,
            "not enough free pages at the moment, or others waited for them: release something or ask again"};
  }
  const PrivateLock my_threads(wait_turn_, wait_ns);
  if (!my_threads.status()) {
    return {Code::kTimeout, "no pages came free in the time given; other threads waited before this one"};
  }
  if (ticket == 0) ticket = start;
  if (turn != Turn::first()) turn = {ticket, slot_.value};
  std::uint32_t known = me.wait_word.load(std::memory_order_seq_cst);  // what differs is a call
  me.wait_ticket.store(ticket, std::memory_order_relaxed);
  me.wait_seen.store(start, std::memory_order_relaxed);
  me.pages_wanted.store(wanted, std::memory_order_seq_cst);
  KVTRIE_CRASH_POINT("wait.after_wanted");
  count(Counter::kWaits);
  Status status{Code::kTimeout, "no pages came free in the time given"};
  for (;;) {
    const std::uint64_t now = monotonic_ns();
    me.wait_seen.store(now, std::memory_order_relaxed);  // a stopped process does not get here
    const std::uint32_t seen = me.wait_word.load(std::memory_order_seq_cst);
    const bool called = seen != std::exchange(known, seen);
    if (!KVTRIE_MUTANT(wait_without_recheck) &&
        try_take(wanted, near, called ? Turn::first() : turn, out)) {
      status = {};
      break;
    }
    const std::int64_t left = wait_ns - static_cast<std::int64_t>(now - start);
    if (left <= 0) break;
    if (segment_.poisoned()) {
      status = health();
      break;
    }
    ring(block.doorbell);
    // Without a coordinator nobody wakes it when another worker releases (C6): so it looks by itself now and then.
    futex_wait(me.wait_word, seen, KVTRIE_MUTANT(wait_without_recheck) ? left : std::min(left, kLookAgainNs));
    if (KVTRIE_MUTANT(wait_without_recheck) && try_take(wanted, near, Turn::first(), out)) {
      status = {};
      break;
    }
  }
  me.pages_wanted.store(0, std::memory_order_release);
  KVTRIE_CRASH_POINT("wait.after_end");
  if (!status) ring(block.doorbell);  // those behind it may be served now
  return status;
}

}  // namespace kvtrie
