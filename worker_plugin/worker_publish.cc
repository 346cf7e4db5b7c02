// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <array>
#include <limits>

#include "shm/crash_point.h"
#include "shm/futex.h"
#include "shm/lease.h"
#include "shm/mutant.h"
#include "shm/pending_wait.h"
#include "shm/prefix_hash.h"
#include "worker_plugin/batch.h"
#include "worker_plugin/worker.h"

namespace kvtrie {
namespace {

// As long as it may be, at most to the end of the clock.
std::uint32_t retain_until(std::uint32_t tick, std::uint32_t retention_ticks) {
  constexpr std::uint32_t kLastTick = std::numeric_limits<std::uint32_t>::max();
  return retention_ticks == 0 ? 0 : tick + std::min(retention_ticks, kLastTick - tick);
}

}  // namespace

Status Worker::flushed() const {
  count(Counter::kFlushedRefused);
  return {Code::kFlushed, "the namespace was flushed since this sequence began: nothing of it is published; begin anew"};
}

// What this worker's pages are only it may change. One that is something else was written over: whatever is done with
// it now might be done to somebody else's page (C7).
bool Worker::is_mine(PageIndex page, PageState state) const {
  const StateWord word = pages_.state(page);
  if (word.state() == state && word.owner() == slot_) return true;
  distrusts_.store(true, std::memory_order_relaxed);
  count(Counter::kCorruptSeen);
  return false;
}

// `tokens` are the page's own: all that a page has, or fewer for an incomplete page.
AnnounceResult Worker::announce(Sequence& sequence, std::uint32_t position,
                                std::span<const std::uint32_t> tokens, std::uint64_t prefix_hash,
                                const Stamp& stamp) {
  PageNode node;
  node.parent = sequence.parent_of(position);
  node.name_space = sequence.name_space;
  node.root_generation = sequence.root_generation;
  node.depth = position + 1;
  node.priority = sequence.options.priority;
  node.tick = stamp.tick;
  node.touch = stamp.touch;
  node.retain_until = retain_until(stamp.tick, sequence.options.retention_ticks);
  node.publisher = slot_;
  node.prefix_hash = prefix_hash;
  OwnPage& own = sequence.own_at(position);
  if (!is_mine(own.page, PageState::kWriting)) return {AnnounceOutcome::kFailed, {}, {}};
  const AnnounceResult result = announce_page(segment_, index_, slot_, own.page, node, tokens);
  if (result.outcome == AnnounceOutcome::kAnnounced) {
    own.node = Handle::page(own.page, pages_.state(own.page));
    own.state = OwnState::kPending;
  } else if (result.outcome == AnnounceOutcome::kNoRoom) {
    count(Counter::kBucketsFull);
  }
  return result;
}

std::uint64_t Worker::hash_above(const Sequence& sequence, std::uint32_t position) const {
  const Handle parent = sequence.parent_of(position);
  return parent.is_page() ? segment_.descriptor(parent.page_index()).prefix_hash.load(std::memory_order_relaxed)
                          : sequence.root_hash;
}

// Prefix hashes of the positions from `linked` on, and where they will be entered, fetched some pages before.
class Worker::HashesAhead {
 public:
  HashesAhead(const Worker& worker, const Sequence& sequence, std::uint32_t end)
      : worker_(worker), sequence_(sequence), next_(sequence.linked), end_(end), hash_(worker.hash_above(sequence, next_)) {}

  // Positions in order, each below `end`.
  std::uint64_t of(std::uint32_t position) {
    const std::uint32_t page_tokens = worker_.segment_.tokens_per_page();
    for (const std::uint32_t to = std::min(end_, position + kAhead); next_ < to; ++next_) {
      hash_ = hashes_[next_ % kAhead] = hash_page(hash_, sequence_.tokens_at(next_, page_tokens));
      worker_.index_.prefetch_to_enter(worker_.index_.place_of(hash_));
      const PageIndex page = sequence_.page_at(next_);
      if (worker_.segment_.has(page)) __builtin_prefetch(worker_.segment_.token_words(page), 1);
    }
    return hashes_[position % kAhead];
  }

 private:
  static constexpr std::uint32_t kAhead = 16;

  const Worker& worker_;
  const Sequence& sequence_;
  std::uint32_t next_;
  const std::uint32_t end_;
  std::uint64_t hash_;
  std::array<std::uint64_t, kAhead> hashes_;
};

Worker::Stamp Worker::stamp_now(const Sequence& sequence) {
  const std::uint32_t tick = segment_.now_tick();
  return {tick, touch_now(tick, 1, sequence.options.hint)};
}

// Announces full pages from `linked` up to position `end`, as far as the rules let it. With `link_live`, a Live page
// of the same key is leased and what follows goes below it (rule 9); that needs everything before to be published.
Status Worker::announce_full(Sequence& sequence, std::uint32_t end, bool link_live) {
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  end = std::min({end, sequence.positions(), sequence.full_positions(page_tokens)});
  if (!sequence.options.publish || sequence.linked >= end) return {};
  if (!root_is_current(sequence)) return {};
  const Stamp stamp = stamp_now(sequence);
  Status status;
  HashesAhead hashes(*this, sequence, end);
  std::uint64_t announced = 0;
  while (status && sequence.linked < end && announce_next(sequence, stamp, link_live, hashes, announced, status)) {
  }
  if (announced > 0) count(Counter::kPagesAnnounced, announced);
  tell_borrowers(sequence);
  return status;
}

// The page at `linked`. True: it may be a parent now, and is behind us.
bool Worker::announce_next(Sequence& sequence, const Stamp& stamp, bool link_live, HashesAhead& hashes,
                           std::uint64_t& announced, Status& status) {
  const std::uint32_t position = sequence.linked;
  OwnPage& own = sequence.own_at(position);
  if (own.state == OwnState::kGone || own.state == OwnState::kIncomplete) return false;
  if (own.borrowed) {
    if (own.state == OwnState::kPrivate) {
      return link_live && !own.node.none() && link_to(sequence, position, own.node);
    }
    ++sequence.linked;
    return true;
  }
  // Announced by the sequence of the batch that it was borrowed from, which has been released since.
  if (own.state == OwnState::kPending) {
    ++sequence.linked;
    return true;
  }
  if (own.before_other && !link_live) return false;  // looked for again at publish time
  const AnnounceResult result =
      announce(sequence, position, sequence.tokens_at(position, segment_.tokens_per_page()), hashes.of(position), stamp);
  switch (result.outcome) {
    case AnnounceOutcome::kAnnounced:
      ++announced;
      ++sequence.linked;
      return true;
    case AnnounceOutcome::kDuplicate:
      if (!own.before_other) count(Counter::kDuplicates);
      own.before_other = true;
      if (KVTRIE_MUTANT(parent_of_other_worker)) {
        own.node = result.other;
        ++sequence.linked;
        return true;
      }
      return link_live && result.other_state.readable() && link_to(sequence, position, result.other);
    case AnnounceOutcome::kNoRoom:
    case AnnounceOutcome::kBusy:
      return false;
    case AnnounceOutcome::kFailed:
      status = health();
      return false;
  }
  return false;
}

// What follows goes below the other's page. It is under this sequence's lease then.
bool Worker::link_to(Sequence& sequence, std::uint32_t position, Handle other) {
  if (sequence.published != position || !move_lease(sequence, other, Bytes::kCompare)) return false;
  sequence.own_at(position).node = other;
  sequence.linked = sequence.published = position + 1;
  touch_page(other.page_index(), segment_.now_tick(), sequence.options.hint);
  return true;
}

// Pending to Live. The leases stand already (rule 6).
void Worker::go_live(Sequence& sequence, std::uint32_t position, const Stamp& stamp) {
  OwnPage& own = sequence.own_at(position);
  Descriptor& descriptor = segment_.descriptor(own.page);
  const StateWord word{descriptor.state.load(std::memory_order_relaxed)};
  descriptor.touch.store(stamp.touch.raw, std::memory_order_relaxed);
  descriptor.since_tick.store(stamp.tick, std::memory_order_relaxed);
  if (page_sum_) descriptor.checksum.store(page_sum_(own.page), std::memory_order_relaxed);
  descriptor.state.store(word.with(PageState::kLive).raw, std::memory_order_release);
  KVTRIE_CRASH_POINT("publish.after_live");
  const Handle parent = sequence.parent_of(position);
  AtomicU32& hint = parent.is_page() ? segment_.descriptor(parent.page_index()).child_hint
                                     : segment_.name_space(sequence.name_space).child_hint;
  hint.store(own.page.value + 1, std::memory_order_relaxed);
}

// Own Pending pages published .. end-1 become Live: the leases first, then parents first (rule 6).
Status Worker::publish_group(Sequence& sequence, std::uint32_t end, PublishReport& report) {
  LeaseSlot& lease = leases_[sequence.lease_slot];
  const std::uint32_t first = sequence.published;
  for (std::uint32_t position = first; position < end; ++position) {
    if (!is_mine(sequence.own_at(position).page, PageState::kPending)) return health();
  }
  std::vector<PageIndex> done;
  done.reserve(end - first);
  const std::uint64_t deepest = sequence.node_at(end - 1).raw;
  const Stamp stamp = stamp_now(sequence);
  if (!KVTRIE_MUTANT(lease_after_live)) lease.handle.store(deepest, std::memory_order_release);
  if (!KVTRIE_MUTANT(share_publisher_only)) lease_for_borrowers(sequence, first, end);
  KVTRIE_CRASH_POINT("publish.after_lease");
  for (std::uint32_t i = first; i < end; ++i) {
    const std::uint32_t position = KVTRIE_MUTANT(publish_children_first) ? end - 1 - (i - first) : i;
    go_live(sequence, position, stamp);
    sequence.own_at(position).state = OwnState::kLive;
    done.push_back(sequence.own_at(position).page);
  }
  if (KVTRIE_MUTANT(lease_after_live)) lease.handle.store(deepest, std::memory_order_release);
  sequence.published = end;
  free_pages_.drop_held(slot_, done);
  if (!KVTRIE_MUTANT(publish_keeps_waiters)) wake_waiters_on(segment_, slot_);
  report.pages_published += end - first;
  return {};
}

Status Worker::publish(Sequence& sequence, std::uint64_t token_count, PublishReport& report) {
  const BatchLock lock(sequence);
  return lock.status() ? publish_locked(sequence, token_count, report) : lock.status();
}

Status Worker::publish_locked(Sequence& sequence, std::uint64_t token_count, PublishReport& report) {
  report = {};
  if (Status status = health(); !status) return status;
  if (!root_is_current(sequence) && !KVTRIE_MUTANT(publish_after_flush)) return flushed();
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  const auto end = static_cast<std::uint32_t>(
      std::min<std::uint64_t>({token_count / page_tokens, sequence.positions(),
                               sequence.full_positions(page_tokens)}));
  if (sequence.source.any() && sequence.source.position < end) drop_source(sequence);  // its bytes are final
  for (;;) {
    const std::uint32_t before = sequence.published;
    // Private pages look again: their stripe may be free now, or the canonical page gone or Live (rule 9).
    if (Status status = announce_full(sequence, sequence.positions(), true); !status) return status;
    std::uint32_t ready = sequence.published;
    while (ready < std::min(end, sequence.linked) && !sequence.own_at(ready).borrowed) ++ready;
    Status status;
    if (sequence.published < ready) status = publish_group(sequence, ready, report);
    tell_borrowers(sequence);
    if (!status) return status;
    if (sequence.published == before || sequence.published >= end) break;
  }
  report.published = sequence.published;
  count(Counter::kPagesPublished, report.pages_published);
  for (auto position = static_cast<std::uint32_t>(sequence.shared.size()); position < end; ++position) {
    const OwnState state = sequence.own_at(position).state;
    if (state == OwnState::kPrivate || state == OwnState::kPending) ++report.pages_private;
  }
  return {};
}

// Borrowed from or lent to another of its batch.
bool Worker::is_shared_in_batch(const Sequence& sequence, std::uint32_t position) {
  bool shared = sequence.own_at(position).borrowed;
  for_each_shared_page(sequence, [&](const Sequence&, std::uint32_t at) { shared = shared || at == position; });
  return shared;
}

Status Worker::publish_incomplete(Sequence& sequence, std::uint64_t token_count, PublishReport& report) {
  const BatchLock lock(sequence);
  if (!lock.status()) return lock.status();
  if (const Status status = publish_locked(sequence, token_count, report); !status) return status;
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  const auto rest = static_cast<std::uint32_t>(token_count % page_tokens);
  const std::uint64_t position = token_count / page_tokens;
  if (rest == 0 || position >= sequence.positions() || !sequence.options.publish) return {};
  if (token_count > sequence.known_tokens(page_tokens)) return {};
  // Behind pages that are not Live, announced whole already, or used by others of the batch, who would hold it without
  // a lease or write into it: it stays private.
  if (position != sequence.published || position != sequence.linked ||
      sequence.own_at(sequence.published).state != OwnState::kPrivate ||
      is_shared_in_batch(sequence, sequence.published)) {
    if (sequence.has_incomplete()) {
      report.incomplete_tokens = incomplete_tokens(sequence);
    } else {
      ++report.pages_private;
    }
    return {};
  }
  return publish_last(sequence, rest, report);
}

// The own page at `published`, of which `tokens` are there.
Status Worker::publish_last(Sequence& sequence, std::uint32_t tokens, PublishReport& report) {
  const std::uint32_t position = sequence.published;
  const Stamp stamp = stamp_now(sequence);
  const std::span<const std::uint32_t> held = sequence.tokens_at(position, segment_.tokens_per_page()).first(tokens);
  const AnnounceResult result =
      announce(sequence, position, held, hash_page(hash_above(sequence, position), held), stamp);
  if (result.outcome == AnnounceOutcome::kAnnounced) count(Counter::kPagesAnnounced);
  if (result.outcome == AnnounceOutcome::kFailed) return health();
  if (result.outcome != AnnounceOutcome::kAnnounced) {
    // Another's copy of the same tokens serves as well.
    if (result.outcome == AnnounceOutcome::kDuplicate) {
      count(Counter::kDuplicates);
      if (result.other_state.readable()) report.incomplete_tokens = tokens;
    }
    ++report.pages_private;
    return {};
  }
  OwnPage& own = sequence.own_at(position);
  leases_[sequence.lease_slot].handle.store(own.node.raw, std::memory_order_release);
  KVTRIE_CRASH_POINT("publish.after_lease");
  go_live(sequence, position, stamp);
  own.state = OwnState::kIncomplete;
  free_pages_.drop_held(slot_, {&own.page, 1});
  wake_waiters_on(segment_, slot_);
  ++report.pages_published;
  report.incomplete_tokens = tokens;
  count(Counter::kPagesPublished);
  count(Counter::kIncompletePublished);
  return {};
}

// Own pages, deepest first: index entries go before any page is freed. Who waits for one of them looks again.
void Worker::free_own(std::span<const PageIndex> pages) {
  const auto unindex = [&](PageIndex page) {
    index_.remove(segment_.descriptor(page).prefix_hash.load(std::memory_order_relaxed), page);
  };
  bool announced = false;
  for (const PageIndex page : pages) {
    if (pages_.state(page).state() != PageState::kPending) continue;
    announced = true;
    if (KVTRIE_MUTANT(abort_frees_before_unindex)) continue;
    unindex(page);
    KVTRIE_CRASH_POINT("release.after_unindex");
  }
  free_pages_.give_back(slot_, pages);
  if (KVTRIE_MUTANT(abort_frees_before_unindex)) {
    for (const PageIndex page : pages) unindex(page);
  }
  if (announced) wake_waiters_on(segment_, slot_);
}

Status Worker::give_back(Sequence& sequence, std::uint32_t first, std::uint32_t count_of) {
  const BatchLock lock(sequence);
  if (!lock.status()) return lock.status();
  const std::uint32_t end = first + count_of;
  if (end < first || end > sequence.positions() || first < sequence.shared.size()) {
    return {Code::kInvalid, "only pages of the sequence's own can be given back"};
  }
  if (const char* problem = give_back_problem(sequence, first, end)) return {Code::kInvalid, problem};
  std::vector<PageIndex> back;
  back.reserve(end - first);
  for (std::uint32_t position = end; position-- > first;) {
    OwnPage& own = sequence.own_at(position);
    // One that was written over is left to whoever has it by now.
    if (is_mine(own.page, own.state == OwnState::kPending ? PageState::kPending : PageState::kWriting))
      back.push_back(own.page);
    if (position < sequence.published) {
      own = {own.node, own.node.page_index(), OwnState::kLive};  // the other's page serves instead
    } else {
      own = {{}, kNoPage, OwnState::kGone};
      if (sequence.source.position == position) sequence.source.callers = false;  // with that page's bytes
    }
  }
  // Own copies that gave way to others' pages stand before what is announced: that stays announced.
  if (end > sequence.published) sequence.linked = std::min(sequence.linked, std::max(first, sequence.published));
  while (!sequence.own.empty() && sequence.own.back().state == OwnState::kGone) sequence.own.pop_back();
  free_own(back);
  count(Counter::kPagesGivenBack, back.size());
  ring_for_waiters();
  return {};
}

// Null: each of [first, end) can go.
const char* Worker::give_back_problem(const Sequence& sequence, std::uint32_t first, std::uint32_t end) const {
  for (std::uint32_t position = first; position < end; ++position) {
    const OwnPage& own = sequence.own_at(position);
    if (own.state == OwnState::kGone) return "a page among these was given back before";
    if (own.state == OwnState::kLive || own.state == OwnState::kIncomplete)
      return "a page among these is published: it is everybody's, release the sequence instead";
    if (own.borrowed) return "a page among these belongs to another sequence of the batch";
  }
  if (end < sequence.linked && end > sequence.published)
    return "pages after these are announced below them: give those back too";
  bool lent = false;
  for_each_shared_page(sequence, [&](const Sequence&, std::uint32_t position) {
    lent = lent || (position >= first && position < end);
  });
  return lent ? "another sequence of the batch uses a page among these" : nullptr;
}

// Index entries go before any page is freed, the lease goes last. The state words decide what is still this worker's,
// not the sequence's notes: a thread may have ended inside an allocate or publish of it. (One that ended in here may have
// given pages back that others of this worker took since: handle_table.h never lets anybody into that sequence again.)
// (Rule 8's first step is not needed: publish moves the
// lease and stores Live in one call, and of a path whose thread ended in between everything goes.)
void Worker::release(Sequence& sequence) {
  std::vector<PageIndex> back;
  back.reserve(sequence.own.size());  // or nothing was done yet
  {
    const BatchLock lock(sequence);
    if (lock.status()) {
      leave_batch(sequence);
      for (std::size_t i = sequence.own.size(); i-- > 0;) {
        const OwnPage& own = sequence.own[i];
        if (own.borrowed || own.state == OwnState::kGone) continue;
        const StateWord word = pages_.state(own.page);
        if (word.owned() && word.owner() == slot_) back.push_back(own.page);  // else it is published
      }
      free_own(back);
      drop_source(sequence);
      KVTRIE_CRASH_POINT("release.before_lease");
      drop_lease(leases_[sequence.lease_slot]);
      KVTRIE_CRASH_POINT("release.after_lease");
      leases_.give_back(sequence.lease_slot);
    }
  }
  sequence.lease_slot = kNoSlot;
  sequence.batch.reset();
  sequence.own.clear();
  sequence.shared.clear();
  sequence.tokens.clear();
  sequence.published = sequence.linked = 0;
  count(Counter::kReleases);
  count(Counter::kPagesGivenBack, back.size());
  ring_for_waiters();
}

}  // namespace kvtrie
