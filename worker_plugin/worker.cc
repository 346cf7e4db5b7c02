// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/worker.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "shm/crash_point.h"
#include "shm/futex.h"
#include "shm/lease.h"
#include "shm/mutant.h"
#include "shm/prefix_hash.h"
#include "shm/waiting.h"
#include "worker_plugin/walk.h"

namespace kvtrie {
namespace {

constexpr int kRootReads = 16;  // each but the first is for a flush that came between two looks

// As long as it may be, at most to the end of the clock.
std::uint32_t retain_until(std::uint32_t tick, std::uint32_t retention_ticks) {
  constexpr std::uint32_t kLastTick = std::numeric_limits<std::uint32_t>::max();
  return retention_ticks == 0 ? 0 : tick + std::min(retention_ticks, kLastTick - tick);
}

bool try_lock_for(std::unique_lock<std::timed_mutex>& lock, std::int64_t wait_ns) {
#ifdef KVTRIE_TSAN
  // The thread sanitizer does not know clocklock, and then takes the unlock for a fault.
  const std::uint64_t end = monotonic_ns() + static_cast<std::uint64_t>(wait_ns);
  while (!lock.try_lock()) {
    if (monotonic_ns() >= end) return false;
    std::this_thread::yield();
  }
  return true;
#else
  return lock.try_lock_for(std::chrono::nanoseconds(wait_ns));
#endif
}

}  // namespace

Worker::Worker(const Segment& segment, WorkerId slot)
    : segment_(segment), slot_(slot), free_pages_(segment), pages_(segment), index_(segment),
      leases_(segment, slot),
      // Workers start at different places, so that their pages become runs of their own.
      cursor_(static_cast<std::uint32_t>(std::uint64_t{slot.value} * 0x9E37'79B9U %
                                         segment.chunk_count())) {}

Status Worker::health() const {
  if (segment_.poisoned()) {
    return {Code::kPoisoned, "this cache was given up: detach and attach again"};
  }
  if (distrusts()) return {Code::kCorrupt, "this cache holds impossible bytes: detach"};
  return {};
}

TouchWord Worker::touch_now(std::uint32_t tick, std::uint8_t touches, std::uint8_t hint) {
  std::uint64_t seen = last_stamp_.load(std::memory_order_relaxed);
  std::uint64_t next = 0;
  do {
    const bool same_tick = seen >> 16 == tick;
    const std::uint64_t order = same_tick ? std::min<std::uint64_t>((seen & 0xFFFF) + 1, 0xFFFF) : 0;
    next = std::uint64_t{tick} << 16 | order;
  } while (!last_stamp_.compare_exchange_weak(seen, next, std::memory_order_relaxed));
  return TouchWord::make(tick, static_cast<std::uint16_t>(next & 0xFFFF), touches, hint);
}

// A record is given to another by closing it, raising the generation, writing seed and fields, and opening it. Who
// reads the new generation then reads closed, or open with the new fields; who reads the old one and a new seed reads
// the new generation at the second look. A flush raises the generation alone: then it is read again.
bool Worker::read_root(const NamespaceRef& name_space, Sequence& sequence) const {
  const NamespaceRecord& record = segment_.name_space(name_space.id);
  for (int i = 0; i < kRootReads; ++i) {
    const std::uint64_t generation = record.root_generation.load(std::memory_order_acquire);
    const bool open = record.state.load(std::memory_order_acquire) ==
                      static_cast<std::uint32_t>(NamespaceState::kOpen);
    sequence.root_hash = record.hash_seed.load(std::memory_order_acquire);
    if (!open || record.fields_hash.load(std::memory_order_acquire) != name_space.fields_hash) {
      return false;
    }
    sequence.root_generation = generation;
    if (record.root_generation.load(std::memory_order_acquire) == generation) return true;
  }
  return false;
}

Status Worker::begin(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
                     const SequenceOptions& options, Sequence& sequence, BeginReport& report) {
  sequence.shared.clear();
  sequence.own.clear();
  sequence.published = sequence.linked = 0;
  sequence.options = options;
  report = {};

  sequence.name_space = name_space.id;
  if (!read_root(name_space, sequence)) {
    return {Code::kStale, "the namespace was unused and its place given to another: open it again"};
  }
  const std::optional<std::uint32_t> slot = leases_.take();
  if (!slot) {
    return {Code::kFull, "no free lease slot: release sequences, or start kvtried with more --leases"};
  }
  sequence.lease_slot = *slot;
  LeaseSlot& lease = leases_[*slot];
  const std::uint32_t tick = segment_.now_tick();
  lease.since_tick.store(tick, std::memory_order_relaxed);
  lease.request_tag.store(options.request_tag, std::memory_order_relaxed);

  if (options.read && health().ok()) {
    const WalkEnd end = walk(segment_, index_, sequence.root(), sequence.root_hash, tokens,
                             sequence.shared);
    if (end.corrupt) {
      distrusts_.store(true, std::memory_order_relaxed);
      count(Counter::kCorruptSeen);
      leases_.give_back(*slot);
      sequence.shared.clear();
      return {Code::kCorrupt, "the segment holds a state word that cannot be; begins miss from now on"};
    }
    if (KVTRIE_MUTANT(touch_before_lease) && !sequence.shared.empty()) {
      touch_page(sequence.shared.back().page_index(), tick, options.hint);
    }
    report.cached_pages = lease_deepest(sequence);
    report.pending_next = end.pending && report.cached_pages == sequence.shared.size();
    sequence.shared.resize(report.cached_pages);
    if (!sequence.shared.empty()) {
      touch_page(sequence.shared.back().page_index(), tick, options.hint);
    }
  }
  sequence.published = sequence.linked = report.cached_pages;
  const std::size_t page_tokens = segment_.tokens_per_page();
  const std::size_t found = report.cached_pages * page_tokens;
  sequence.tokens.assign(tokens.begin() + static_cast<std::ptrdiff_t>(found), tokens.end());
  count(Counter::kLookups);
  count(Counter::kTokensAsked, tokens.size());
  count(Counter::kTokensFound, found);
  count(Counter::kPagesAsked, tokens.size() / page_tokens);
  count(Counter::kPagesHit, report.cached_pages);
  return {};
}

// Leases the deepest matched page that still is what it was; returns how many pages that makes.
std::uint32_t Worker::lease_deepest(Sequence& sequence) {
  LeaseSlot& lease = leases_[sequence.lease_slot];
  auto depth = static_cast<std::uint32_t>(sequence.shared.size());
  for (; depth > 0; --depth) {
    const LeaseOutcome outcome = acquire_lease(segment_, lease, sequence.shared[depth - 1]);
    if (outcome == LeaseOutcome::kRescued) count(Counter::kRescues);
    if (outcome != LeaseOutcome::kLost) break;
    count(Counter::kLeaseFallbacks);
  }
  if (depth == 0) drop_lease(lease);
  return depth;
}

// Under the lease; at most once a tick a page (C9).
void Worker::touch_page(PageIndex page, std::uint32_t tick, std::uint8_t hint) {
  AtomicU64& word = segment_.descriptor(page).touch;
  const TouchWord before{word.load(std::memory_order_relaxed)};
  if (before.tick() == tick) return;
  const auto touches = static_cast<std::uint8_t>(std::min(before.touches() + 1, 255));
  word.store(touch_now(tick, touches, hint).raw, std::memory_order_relaxed);
}

void Worker::append(Sequence& sequence, std::span<const std::uint32_t> tokens) {
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
}

Status Worker::allocate(Sequence& sequence, std::uint64_t total_tokens, std::int64_t wait_ns) {
  if (Status status = health(); !status) return status;
  const std::uint64_t page_tokens = segment_.tokens_per_page();
  const std::uint64_t needed = total_tokens / page_tokens + (total_tokens % page_tokens != 0 ? 1 : 0);
  if (needed > segment_.page_count()) {
    count(Counter::kFailedNever);
    return {Code::kNever, "more pages than this cache has: make it larger or the request shorter"};
  }
  const std::uint32_t have = sequence.positions();
  if (needed > have) {
    const auto missing = static_cast<std::uint32_t>(needed - have);
    const PageIndex near{have == 0 ? segment_.page_count() : sequence.page_at(have - 1).value + 1};
    std::vector<PageIndex> taken;
    taken.reserve(missing);
    // Who has pages goes on before those who wait: they may wait for just these pages (W2).
    const Turn turn = sequence.own.empty() ? Turn::last() : Turn::first();
    if (Status status = take_pages(missing, near, turn, wait_ns, taken); !status) return status;
    sequence.own.reserve(sequence.own.size() + missing);
    for (const PageIndex page : taken) sequence.own.push_back({{}, page});
    count(Counter::kAllocations);
    count(Counter::kPagesAllocated, missing);
  }
  return announce_full(sequence, sequence.positions(), false);
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
    const Status status = wait_for_pages(wanted, near, turn, wait_ns, out);
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

// Says what is wanted, wakes the coordinator, and sleeps on this worker's own word (rule 16: the word is read
// before the last look, and the futex compares it). Who does not wait only asks: the evictor makes room.
// States and who binds whom: shm/waiting.h.
Status Worker::wait_for_pages(std::uint32_t wanted, PageIndex near, Turn turn, std::int64_t wait_ns,
                              std::vector<PageIndex>& out) {
  WorkerRecord& me = segment_.worker(slot_);
  Superblock& block = segment_.superblock();
  const std::uint64_t start = monotonic_ns();
  if (wait_ns <= 0) {
    me.pages_asked.store(wanted, std::memory_order_seq_cst);
    ring(block.doorbell);
    return {Code::kNotNow,
            "not enough free pages at the moment, or others waited for them: release something or ask again"};
  }
  std::unique_lock<std::timed_mutex> my_threads(wait_turn_, std::defer_lock);
  if (!try_lock_for(my_threads, wait_ns)) {
    return {Code::kTimeout, "no pages came free in the time given; other threads waited before this one"};
  }
  if (turn != Turn::first()) turn = {start, slot_.value};
  std::uint32_t known = me.wait_word.load(std::memory_order_seq_cst);  // what differs is a call
  me.wait_ticket.store(start, std::memory_order_relaxed);
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

PageNode Worker::node_for(const Sequence& sequence, std::uint32_t position, std::uint32_t tick) {
  PageNode node;
  node.parent = sequence.parent_of(position);
  node.name_space = sequence.name_space;
  node.root_generation = sequence.root_generation;
  node.depth = position + 1;
  node.priority = sequence.options.priority;
  node.tick = tick;
  node.retain_until = retain_until(tick, sequence.options.retention_ticks);
  node.publisher = slot_;
  const std::size_t page_tokens = segment_.tokens_per_page();
  const std::span<const std::uint32_t> tokens = sequence.tokens;
  const std::uint64_t parent_hash =
      node.parent.is_page()
          ? segment_.descriptor(node.parent.page_index()).prefix_hash.load(std::memory_order_relaxed)
          : sequence.root_hash;
  node.prefix_hash = hash_page(
      parent_hash, tokens.subspan((position - sequence.shared.size()) * page_tokens, page_tokens));
  return node;
}

// Announces full pages from `linked` up to position `end`, as far as the rules let it. With `link_live`, a Live page
// of the same key is leased and what follows goes below it (rule 9); that needs everything before to be published.
Status Worker::announce_full(Sequence& sequence, std::uint32_t end, bool link_live) {
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  end = std::min({end, sequence.positions(), sequence.full_positions(page_tokens)});
  if (!sequence.options.publish || sequence.linked >= end) return {};
  const std::uint32_t tick = segment_.now_tick();
  const TouchWord touch = touch_now(tick, 1, sequence.options.hint);
  while (sequence.linked < end) {
    const std::uint32_t position = sequence.linked;
    OwnPage& own = sequence.own_at(position);
    if (own.before_other && !link_live) return {};  // looked for again at publish time
    PageNode node = node_for(sequence, position, tick);
    node.touch = touch;
    const std::span<const std::uint32_t> tokens = sequence.tokens;
    const AnnounceResult result = announce_page(
        segment_, slot_, own.page, node,
        tokens.subspan((position - sequence.shared.size()) * page_tokens, page_tokens));
    switch (result.outcome) {
      case AnnounceOutcome::kAnnounced:
        own.node = Handle::page(own.page, pages_.state(own.page));
        own.state = OwnState::kPending;
        ++sequence.linked;
        count(Counter::kPagesAnnounced);
        break;
      case AnnounceOutcome::kDuplicate:
        if (!own.before_other) count(Counter::kDuplicates);
        own.before_other = true;
        if (KVTRIE_MUTANT(parent_of_other_worker)) {
          own.node = result.other;
          ++sequence.linked;
          break;
        }
        if (!link_live || !link_to(sequence, position, result)) return {};
        break;
      case AnnounceOutcome::kNoRoom:
        count(Counter::kBucketsFull);
        return {};
      case AnnounceOutcome::kBusy:
        return {};
      case AnnounceOutcome::kFailed:
        return health();
    }
  }
  return {};
}

// Rule 7: the other's page is acquired in a second slot; only then the old slot is cleared and they change places.
bool Worker::link_to(Sequence& sequence, std::uint32_t position, const AnnounceResult& found) {
  if (!found.other_state.readable() || sequence.published != position) return false;
  if (KVTRIE_MUTANT(move_by_overwrite)) {
    leases_[sequence.lease_slot].handle.store(found.other.raw, std::memory_order_release);
  } else {
    const std::optional<std::uint32_t> second = leases_.take_spare();
    if (!second) return false;
    LeaseSlot& slot = leases_[*second];
    slot.since_tick.store(segment_.now_tick(), std::memory_order_relaxed);
    slot.request_tag.store(sequence.options.request_tag, std::memory_order_relaxed);
    const LeaseOutcome outcome = acquire_lease(segment_, slot, found.other);
    KVTRIE_CRASH_POINT("link.after_second_lease");
    if (outcome == LeaseOutcome::kRescued) count(Counter::kRescues);
    if (outcome == LeaseOutcome::kLost) {
      drop_lease(slot);
      leases_.give_back(*second);
      return false;
    }
    const std::uint32_t first = sequence.lease_slot;
    sequence.lease_slot = *second;
    drop_lease(leases_[first]);
    leases_.give_back(first);
  }
  sequence.own_at(position).node = found.other;
  sequence.linked = sequence.published = position + 1;
  touch_page(found.other.page_index(), segment_.now_tick(), sequence.options.hint);
  return true;
}

// Own Pending pages published .. end-1 become Live: the lease first, then parents first (rule 6).
void Worker::publish_group(Sequence& sequence, std::uint32_t end, PublishReport& report) {
  LeaseSlot& lease = leases_[sequence.lease_slot];
  const std::uint32_t first = sequence.published;
  std::vector<PageIndex> done;
  done.reserve(end - first);
  const std::uint64_t deepest = sequence.node_at(end - 1).raw;
  const std::uint32_t tick = segment_.now_tick();
  const TouchWord touch = touch_now(tick, 1, sequence.options.hint);
  if (!KVTRIE_MUTANT(lease_after_live)) lease.handle.store(deepest, std::memory_order_release);
  KVTRIE_CRASH_POINT("publish.after_lease");
  for (std::uint32_t i = first; i < end; ++i) {
    const std::uint32_t position = KVTRIE_MUTANT(publish_children_first) ? end - 1 - (i - first) : i;
    OwnPage& own = sequence.own_at(position);
    const Handle parent = sequence.parent_of(position);
    Descriptor& descriptor = segment_.descriptor(own.page);
    const StateWord word{descriptor.state.load(std::memory_order_relaxed)};
    descriptor.touch.store(touch.raw, std::memory_order_relaxed);
    descriptor.since_tick.store(tick, std::memory_order_relaxed);
    descriptor.state.store(word.with(PageState::kLive).raw, std::memory_order_release);
    KVTRIE_CRASH_POINT("publish.after_live");
    if (parent.is_page()) {
      segment_.descriptor(parent.page_index())
          .child_hint.store(own.page.value + 1, std::memory_order_relaxed);
    }
    own.state = OwnState::kLive;
    done.push_back(own.page);
  }
  if (KVTRIE_MUTANT(lease_after_live)) lease.handle.store(deepest, std::memory_order_release);
  sequence.published = end;
  free_pages_.drop_held(slot_, done);
  report.pages_published += end - first;
}

Status Worker::publish(Sequence& sequence, std::uint64_t token_count, PublishReport& report) {
  report = {};
  if (Status status = health(); !status) return status;
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  const auto end = static_cast<std::uint32_t>(
      std::min<std::uint64_t>({token_count / page_tokens, sequence.positions(),
                               sequence.full_positions(page_tokens)}));
  for (;;) {
    const std::uint32_t before = sequence.published;
    // Private pages look again: their stripe may be free now, or the canonical page gone or Live (rule 9).
    if (Status status = announce_full(sequence, sequence.positions(), true); !status) return status;
    const std::uint32_t ready = std::min(end, sequence.linked);
    if (sequence.published < ready) publish_group(sequence, ready, report);
    if (sequence.published == before || sequence.published >= end) break;
  }
  count(Counter::kPagesPublished, report.pages_published);
  for (std::uint32_t position = static_cast<std::uint32_t>(sequence.shared.size()); position < end;
       ++position) {
    if (sequence.own_at(position).state != OwnState::kLive) ++report.pages_private;
  }
  return {};
}

// Index entries go before any page is freed, the lease goes last. The state words decide what is still this worker's,
// not the sequence's notes: a thread may have ended inside an allocate or publish of it. (One that ended in here may have
// given pages back that others of this worker took since: handle_table.h never lets anybody into that sequence again.)
// (Rule 8's first step is not needed: publish moves the
// lease and stores Live in one call, and of a path whose thread ended in between everything goes.)
void Worker::release(Sequence& sequence) {
  std::vector<PageIndex> back;
  back.reserve(sequence.own.size());  // or nothing was done yet
  for (std::size_t i = sequence.own.size(); i-- > 0;) {
    const PageIndex page = sequence.own[i].page;
    const StateWord word = pages_.state(page);
    if (!word.owned() || word.owner() != slot_) continue;  // published
    if (word.state() == PageState::kPending && !KVTRIE_MUTANT(abort_frees_before_unindex)) {
      index_.remove(segment_.descriptor(page).prefix_hash.load(std::memory_order_relaxed), page);
      KVTRIE_CRASH_POINT("release.after_unindex");
    }
    back.push_back(page);
  }
  free_pages_.give_back(slot_, back);
  if (KVTRIE_MUTANT(abort_frees_before_unindex)) {
    for (const PageIndex page : back) {
      index_.remove(segment_.descriptor(page).prefix_hash.load(std::memory_order_relaxed), page);
    }
  }
  KVTRIE_CRASH_POINT("release.before_lease");
  drop_lease(leases_[sequence.lease_slot]);
  KVTRIE_CRASH_POINT("release.after_lease");
  leases_.give_back(sequence.lease_slot);
  sequence.own.clear();
  sequence.shared.clear();
  sequence.tokens.clear();
  sequence.published = sequence.linked = 0;
  count(Counter::kReleases);
  count(Counter::kPagesGivenBack, back.size());
  // Somebody sleeps for pages: there may be some now, or some may be evicted now.
  Superblock& block = segment_.superblock();
  if (block.pages_waiters.load(std::memory_order_seq_cst) != 0) ring(block.doorbell);
}

}  // namespace kvtrie
