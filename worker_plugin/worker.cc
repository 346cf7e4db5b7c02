// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/worker.h"

#include <algorithm>
#include <utility>

#include "shm/crash_point.h"
#include "shm/lease.h"
#include "shm/mutant.h"
#include "shm/prefix_hash.h"

namespace kvtrie {
namespace {

constexpr int kRootReads = 16;  // each but the first is for a flush that came between two looks

constexpr Status kGivenToAnother{
    Code::kStale, "the namespace was unused and its place given to another: open it again"};

}  // namespace

Worker::Worker(const Segment& segment, WorkerId slot, PageSum page_sum)
    : segment_(segment), slot_(slot), page_sum_(std::move(page_sum)), free_pages_(segment), pages_(segment), index_(segment),
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

// Under the lease; at most once a tick a page (C9).
void Worker::touch_page(PageIndex page, std::uint32_t tick, std::uint8_t hint) {
  AtomicU64& word = segment_.descriptor(page).touch;
  const TouchWord before{word.load(std::memory_order_relaxed)};
  if (before.tick() == tick) return;
  const auto touches = static_cast<std::uint8_t>(std::min(before.touches() + 1, 255));
  word.store(touch_now(tick, touches, hint).raw, std::memory_order_relaxed);
}

// A record is given to another by closing it, raising the generation, writing seed and fields, and opening it. Who
// reads the new generation then reads closed, or open with the new fields; who reads the old one and a new seed reads
// the new generation at the second look. A flush raises the generation alone: then it is read again.
std::optional<Worker::Root> Worker::read_root(const NamespaceRef& name_space) const {
  const NamespaceRecord& record = segment_.name_space(name_space.id);
  for (int i = 0; i < kRootReads; ++i) {
    const std::uint64_t generation = record.root_generation.load(std::memory_order_acquire);
    const bool open = record.state.load(std::memory_order_acquire) ==
                      static_cast<std::uint32_t>(NamespaceState::kOpen);
    const std::uint64_t hash = record.hash_seed.load(std::memory_order_acquire);
    if (!open || record.fields_hash.load(std::memory_order_acquire) != name_space.fields_hash) {
      return std::nullopt;
    }
    if (record.root_generation.load(std::memory_order_acquire) == generation) {
      return Root{generation, hash};
    }
  }
  return std::nullopt;
}

bool Worker::root_is_current(const Sequence& sequence) const {
  return segment_.name_space(sequence.name_space).root_generation.load(std::memory_order_acquire) ==
         sequence.root_generation;
}

// The last one is a spare for moves (rule 7).
std::optional<std::uint32_t> Worker::take_slot(std::uint32_t request_tag, std::uint32_t tick, bool spare) {
  const std::optional<std::uint32_t> slot = spare ? leases_.take_spare() : leases_.take();
  if (slot) {
    leases_[*slot].since_tick.store(tick, std::memory_order_relaxed);
    leases_[*slot].request_tag.store(request_tag, std::memory_order_relaxed);
  }
  return slot;
}

void Worker::give_slot_back(std::uint32_t slot) {
  drop_lease(leases_[slot]);
  leases_.give_back(slot);
}

LeaseOutcome Worker::lease_in(std::uint32_t slot, Handle page) {
  const LeaseOutcome outcome = acquire_lease(segment_, leases_[slot], page);
  if (outcome == LeaseOutcome::kRescued) count(Counter::kRescues);
  return outcome;
}

// Rule 7: the page is acquired in a second slot; only then the old slot is cleared and they change places.
bool Worker::move_lease(Sequence& sequence, Handle page, Bytes bytes) {
  if (KVTRIE_MUTANT(move_by_overwrite)) {
    leases_[sequence.lease_slot].handle.store(page.raw, std::memory_order_release);
    return true;
  }
  const std::optional<std::uint32_t> second = take_slot(sequence.options.request_tag, segment_.now_tick(), true);
  if (!second) return false;
  const LeaseOutcome outcome = lease_in(*second, page);
  KVTRIE_CRASH_POINT("link.after_second_lease");
  if (outcome == LeaseOutcome::kLost || (bytes == Bytes::kCompare && !bytes_are_right(page.page_index()))) {
    give_slot_back(*second);
    return false;
  }
  give_slot_back(std::exchange(sequence.lease_slot, *second));
  return true;
}

Status Worker::begin(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
                     const SequenceOptions& options, Sequence& sequence, BeginReport& report) {
  sequence.shared.clear();
  sequence.own.clear();
  sequence.published = sequence.linked = 0;
  sequence.options = options;
  sequence.name_space = name_space.id;
  sequence.source = {};
  sequence.lease_slot = kNoSlot;
  report = {};
  const std::optional<Root> root = read_root(name_space);
  if (!root) return kGivenToAnother;
  const std::size_t page_tokens = segment_.tokens_per_page();
  // Where the first page would be named, before anything else: it comes while the rest is done.
  if (options.read && tokens.size() >= page_tokens) {
    index_.prefetch(index_.place_of(hash_page(root->hash, tokens.first(page_tokens))));
  }
  const std::uint32_t tick = segment_.now_tick();
  const std::optional<std::uint32_t> slot = take_slot(options.request_tag, tick);
  if (!slot) return {Code::kFull, "no free lease slot: release sequences, or start kvtried with more --leases"};
  sequence.lease_slot = *slot;
  count(Counter::kLookups);
  count(Counter::kTokensAsked, tokens.size());
  count(Counter::kPagesAsked, tokens.size() / page_tokens);
  if (const Status status = match(name_space, root, tokens, tick, sequence, report); !status) {
    give_slot_back(std::exchange(sequence.lease_slot, kNoSlot));
    sequence.shared.clear();
    return status;
  }
  sequence.published = sequence.linked = report.cached_pages;
  const std::size_t found = report.cached_pages * page_tokens;
  const std::span<const std::uint32_t> rest = tokens.subspan(found);
  if (options.tokens_stay) {
    sequence.tokens.borrow(rest);
  } else {
    sequence.tokens.copy(rest);
  }
  find_partial(sequence, rest, tick, report);
  count(Counter::kTokensFound, found);
  count(Counter::kPagesHit, report.cached_pages);
  return {};
}

// The root is read again under the lease, so that nothing of a generation that was over before is a hit (rule 18).
Status Worker::match(const NamespaceRef& name_space, std::optional<Root> root, std::span<const std::uint32_t> tokens,
                     std::uint32_t tick, Sequence& sequence, BeginReport& report) {
  for (int i = 0; i < kRootReads; ++i, root = read_root(name_space)) {
    if (!root) return kGivenToAnother;
    sequence.root_generation = root->generation;
    sequence.root_hash = root->hash;
    sequence.shared.clear();
    report = {};
    if (!sequence.options.read || !health()) return {};
    if (const Status status = walk_on(sequence, tokens, report); !status) return status;
    if (KVTRIE_MUTANT(touch_before_lease) && !sequence.shared.empty()) {
      touch_page(sequence.shared.back().page_index(), tick, sequence.options.hint);
    }
    report.cached_pages = lease_deepest(sequence.lease_slot, sequence.shared, 0);
    if (report.cached_pages != sequence.shared.size()) report.pending = {};
    sequence.shared.resize(report.cached_pages);
    if (root_is_current(sequence) || KVTRIE_MUTANT(begin_keeps_old_root)) {
      if (!sequence.shared.empty()) {
        touch_page(sequence.shared.back().page_index(), tick, sequence.options.hint);
      }
      return {};
    }
    drop_lease(leases_[sequence.lease_slot]);
  }
  return {Code::kNotNow, "the namespace is flushed again and again: ask again"};
}

// From the deepest page of sequence.shared, or the root, to the last one that can be walked to. Leases nothing.
Status Worker::walk_on(Sequence& sequence, std::span<const std::uint32_t> tokens, BeginReport& report) {
  const auto depth = static_cast<std::uint32_t>(sequence.shared.size());
  const WalkEnd end = walk(segment_, index_, {sequence.parent_of(depth), sequence.root_hash}, tokens,
                           sequence.shared);
  if (end.corrupt) {
    distrusts_.store(true, std::memory_order_relaxed);
    count(Counter::kCorruptSeen);
    sequence.shared.resize(depth);
    return {Code::kCorrupt, "the segment holds a state word that cannot be; begins miss from now on"};
  }
  report.pending = end.pending;
  report.pending_pages = end.pending_pages;
  report.pending_age_ticks =
      end.pending.none() ? 0 : segment_.now_tick() - std::min(end.pending_since, segment_.now_tick());
  return {};
}

// Leases in `slot` the deepest page of `path` that still is what it was, at least deeper than `above`; returns how many pages
// that makes. Nothing is leased when there is none.
std::uint32_t Worker::lease_deepest(std::uint32_t slot, std::span<const Handle> path,
                                    std::uint32_t above) {
  const std::uint32_t depth = lease_any(slot, path, above);
  if (!page_sum_) return depth;
  const std::uint32_t right = right_pages(path.first(depth), above);
  return right == depth ? depth : lease_any(slot, path.first(right), above);
}

// The same, whatever bytes they have.
std::uint32_t Worker::lease_any(std::uint32_t slot, std::span<const Handle> path, std::uint32_t above) {
  auto depth = static_cast<std::uint32_t>(path.size());
  for (; depth > above; --depth) {
    if (lease_in(slot, path[depth - 1]) != LeaseOutcome::kLost) return depth;
    count(Counter::kLeaseFallbacks);
  }
  drop_lease(leases_[slot]);
  return depth;
}

std::uint32_t Worker::right_pages(std::span<const Handle> path, std::uint32_t known) const {
  std::uint32_t right = known;
  while (right < path.size() && bytes_are_right(path[right].page_index())) ++right;
  return right;
}

// Under a lease on the page or on one below it.
bool Worker::bytes_are_right(PageIndex page) const {
  Descriptor& descriptor = segment_.descriptor(page);
  const std::uint64_t published = descriptor.checksum.load(std::memory_order_relaxed);
  if (!page_sum_ || published == 0) return true;
  count(Counter::kPagesSummed);
  if (page_sum_(page) == published) return true;
  count(Counter::kWrongChecksums);
  descriptor.touch.store(0, std::memory_order_relaxed);
  return false;
}

// A match inside the page after the last one, under a lease of its own until it is copied. Best effort.
void Worker::find_partial(Sequence& sequence, std::span<const std::uint32_t> rest, std::uint32_t tick,
                          BeginReport& report) {
  if (!sequence.options.partial || !sequence.options.read || rest.empty() || !health()) return;
  const auto depth = static_cast<std::uint32_t>(sequence.shared.size());
  CopySource found = start_in_hinted_child(segment_, sequence.parent_of(depth), rest);
  if (!found.any()) return;
  const std::optional<std::uint32_t> slot = take_slot(sequence.options.request_tag, tick);
  if (!slot) return;
  if (!KVTRIE_MUTANT(partial_without_lease) && lease_in(*slot, found.page) == LeaseOutcome::kLost) {
    give_slot_back(*slot);
    return;
  }
  KVTRIE_CRASH_POINT("begin.after_partial_lease");
  if (!bytes_are_right(found.page.page_index())) {
    give_slot_back(*slot);
    return;
  }
  found.position = depth;
  found.lease_slot = *slot;
  sequence.source = found;
  touch_page(found.page.page_index(), tick, sequence.options.hint);
  report.partial_tokens = found.tokens;
  count(Counter::kPartialMatches);
  count(Counter::kPartialTokens, found.tokens);
}

void Worker::append(Sequence& sequence, std::span<const std::uint32_t> tokens) {
  sequence.tokens.append(tokens);
}

std::optional<PageCopy> Worker::copy_due(const Sequence& sequence) const {
  const CopySource& source = sequence.source;
  if (!source.any() || source.callers || source.position >= sequence.positions()) return std::nullopt;
  const PageIndex to = sequence.own_at(source.position).page;
  if (to == kNoPage) return std::nullopt;
  return PageCopy{source.page.page_index(), to};
}

void Worker::copied(Sequence& sequence) {
  count_copy();
  drop_source(sequence);
}

void Worker::drop_source(Sequence& sequence) {
  if (!sequence.source.any()) return;
  give_slot_back(sequence.source.lease_slot);
  sequence.source = {};
}

Status Worker::probe(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
                     BeginReport& report) const {
  report = {};
  if (const Status status = health(); !status) return status;
  const std::optional<Root> root = read_root(name_space);
  if (!root) return kGivenToAnother;
  std::vector<Handle> path;
  const WalkEnd end = walk(segment_, index_, {Handle::root(name_space.id, root->generation), root->hash},
                           tokens, path);
  report.cached_pages = static_cast<std::uint32_t>(path.size());
  report.pending = end.pending;
  report.pending_pages = end.pending_pages;
  return {};
}

Status Worker::probe_hashes(const NamespaceRef& name_space,
                            std::span<const std::uint64_t> prefix_hashes,
                            std::uint32_t& cached_pages) const {
  cached_pages = 0;
  if (const Status status = health(); !status) return status;
  const std::optional<Root> root = read_root(name_space);
  if (!root) return kGivenToAnother;
  cached_pages =
      cached_depth(segment_, index_, Handle::root(name_space.id, root->generation), prefix_hashes);
  return {};
}

Status Worker::hash_tokens(const NamespaceRef& name_space, std::span<const std::uint32_t> tokens,
                           std::span<std::uint64_t> prefix_hashes) const {
  const std::optional<Root> root = read_root(name_space);
  if (!root) return kGivenToAnother;
  const std::size_t page_tokens = segment_.tokens_per_page();
  std::uint64_t hash = root->hash;
  for (std::size_t i = 0; i < std::min(prefix_hashes.size(), tokens.size() / page_tokens); ++i) {
    hash = prefix_hashes[i] = hash_page(hash, tokens.subspan(i * page_tokens, page_tokens));
  }
  return {};
}

}  // namespace kvtrie
