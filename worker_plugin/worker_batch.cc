// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <unordered_map>

#include "shm/crash_point.h"
#include "shm/lease.h"
#include "shm/prefix_hash.h"
#include "worker_plugin/batch.h"
#include "worker_plugin/worker.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kNoEntry = ~std::uint32_t{0};

// Which item of a batch computes which uncached page: a trie of the batch's own, found by a hash and compared in full.
class SharePlan {
 public:
  explicit SharePlan(std::uint32_t page_tokens) : page_tokens_(page_tokens) {}

  // Says what the item borrows from those before it.
  void add(std::span<BatchItem> items, std::uint32_t index) {
    BatchItem& item = items[index];
    const Sequence& sequence = *item.sequence;
    item.borrowed_pages = 0;
    item.computed_by.clear();
    if (!item.options.publish || !item.options.read) return;
    std::uint64_t hash = sequence.parent_of(sequence.published).raw;
    Entry entry{hash, kNoEntry, index, sequence.published};
    const std::uint64_t end = std::min<std::uint64_t>(sequence.full_positions(page_tokens_),
                                                      item.total_tokens / page_tokens_);
    bool shared = true;
    for (; entry.position < end; ++entry.position) {
      const std::span<const std::uint32_t> tokens = sequence.tokens_at(entry.position, page_tokens_);
      hash = hash_page(hash, tokens);
      std::uint32_t found = shared ? find(items, hash, entry, tokens) : kNoEntry;
      shared = found != kNoEntry;
      if (shared) {
        ++item.borrowed_pages;
        item.computed_by.push_back(entries_[found].item);
      } else {
        found = static_cast<std::uint32_t>(entries_.size());
        entries_.push_back(entry);
        by_hash_.emplace(hash, found);
      }
      entry.above = 0;
      entry.parent = found;
    }
  }

 private:
  struct Entry {
    std::uint64_t above = 0;  // handle of the cached page or root; 0: of the batch's page `parent`
    std::uint32_t parent = kNoEntry;
    std::uint32_t item = 0;
    std::uint32_t position = 0;
  };

  std::uint32_t find(std::span<const BatchItem> items, std::uint64_t hash, const Entry& like,
                     std::span<const std::uint32_t> tokens) const {
    const auto [first, last] = by_hash_.equal_range(hash);
    for (auto it = first; it != last; ++it) {
      const Entry& entry = entries_[it->second];
      if (entry.above == like.above && entry.parent == like.parent &&
          std::ranges::equal(items[entry.item].sequence->tokens_at(entry.position, page_tokens_), tokens)) {
        return it->second;
      }
    }
    return kNoEntry;
  }

  std::uint32_t page_tokens_;
  std::vector<Entry> entries_;
  std::unordered_multimap<std::uint64_t, std::uint32_t> by_hash_;
};

void plan_sharing(std::span<BatchItem> items, std::uint32_t page_tokens) {
  SharePlan plan(page_tokens);
  for (std::uint32_t i = 0; i < items.size(); ++i) plan.add(items, i);
}

void join(Sequence& sequence, const std::shared_ptr<Batch>& batch) {
  if (sequence.batch) return;
  sequence.batch = batch;
  batch->members.push_back(&sequence);
}

// Whatever way a call ends.
template <typename Work>
struct AtExit {
  Work work;
  ~AtExit() { work(); }
};
template <typename Work>
AtExit(Work) -> AtExit<Work>;

std::uint64_t pages_for(std::uint64_t tokens, std::uint64_t page_tokens) {
  return tokens / page_tokens + (tokens % page_tokens != 0 ? 1 : 0);
}

// Pages that an item needs beside the cached ones and those of others.
std::uint64_t own_pages(const BatchItem& item, std::uint64_t page_tokens) {
  const std::uint64_t all = pages_for(item.total_tokens, page_tokens);
  return all - std::min(all, item.sequence->shared.size() + std::uint64_t{item.borrowed_pages});
}

}  // namespace

// Who waits holds nothing: leases are given back, and the match is made again with the pages in hand. When it finds less than
// before, all is given back and the wait goes on, in its old turn.
Status Worker::prepare_batch(std::span<BatchItem> items, std::int64_t wait_ns) {
  const std::uint64_t start = monotonic_ns();
  const auto batch = std::make_shared<Batch>();
  batch->members.reserve(items.size());
  std::vector<PageIndex> taken;
  const AtExit give_back{[&] { free_own(taken); }};
  for (;;) {
    std::uint64_t wanted = 0;
    if (const Status status = begin_batch(items, wanted); !status) return status;
    // Begins are misses on a cache that was given up; pages of it are for nobody, as in allocate.
    if (const Status status = health(); !status) {
      for (BatchItem& item : items) release(*item.sequence);
      return status;
    }
    if (add_pages(wanted, taken)) return fill_batch(items, taken, batch);
    for (BatchItem& item : items) release(*item.sequence);
    free_own(taken);
    taken.clear();
    ring_for_waiters();
    const std::int64_t left = wait_ns - static_cast<std::int64_t>(monotonic_ns() - start);
    Status status{Code::kTimeout, "not all pages of the batch came free in the time given"};
    if (wait_ns <= 0 || left > 0) {
      status = wait_for_pages(static_cast<std::uint32_t>(wanted), {segment_.page_count()}, Turn::last(),
                              start, left, taken);
    }
    if (!status) {
      count(Counter::kFailedNotNow);
      return status;
    }
  }
}

// Matches all items, or none. `wanted`: pages that they need together beside what is cached.
Status Worker::begin_batch(std::span<BatchItem> items, std::uint64_t& wanted) {
  Status status;
  std::size_t begun = 0;
  for (; begun < items.size(); ++begun) {
    BatchItem& item = items[begun];
    status = begin(item.name_space, item.tokens, item.options, *item.sequence, item.report);
    if (!status) break;
  }
  if (status) {
    const std::uint32_t page_tokens = segment_.tokens_per_page();
    plan_sharing(items, page_tokens);
    wanted = 0;
    for (const BatchItem& item : items) wanted += own_pages(item, page_tokens);
    if (wanted <= segment_.page_count()) {
      for (const BatchItem& item : items)
        item.sequence->own.reserve(item.borrowed_pages + own_pages(item, page_tokens));
      return {};
    }
    count(Counter::kFailedNever);
    status = {Code::kNever, "the batch needs more pages than this cache has: make it larger or the batch smaller"};
  }
  for (std::size_t i = 0; i < begun; ++i) release(*items[i].sequence);
  return status;
}

bool Worker::add_pages(std::uint64_t wanted, std::vector<PageIndex>& taken) {
  if (taken.size() >= wanted) return true;
  // Who has pages goes on before those who wait: they may wait for just these (W2).
  const Turn turn = taken.empty() ? Turn::last() : Turn::first();
  std::vector<PageIndex> more;
  taken.reserve(wanted);
  const auto missing = static_cast<std::uint32_t>(wanted - taken.size());
  more.reserve(missing);
  if (!try_take(missing, {segment_.page_count()}, turn, more)) return false;
  taken.insert(taken.end(), more.begin(), more.end());
  return true;
}

// Nobody else knows these sequences yet. All memory is there, so what was taken gets noted.
Status Worker::fill_batch(std::span<BatchItem> items, std::vector<PageIndex>& taken,
                          const std::shared_ptr<Batch>& batch) {
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  std::size_t used = 0;
  for (BatchItem& item : items) {
    Sequence& sequence = *item.sequence;
    if (item.borrowed_pages > 0) drop_source(sequence);  // others compute that page
    const std::uint64_t fresh = own_pages(item, page_tokens);
    for (const std::uint32_t computer : item.computed_by) {
      const PageIndex page = items[computer].sequence->page_at(sequence.positions());
      sequence.own.push_back({.node = {}, .page = page, .borrowed = true});
      join(*items[computer].sequence, batch);
      join(sequence, batch);
    }
    for (std::uint64_t i = 0; i < fresh; ++i) sequence.own.push_back({{}, taken[used++]});
  }
  taken.erase(taken.begin(), taken.begin() + static_cast<std::ptrdiff_t>(used));  // the rest goes back
  ring_if_low();
  count(Counter::kBatches);
  count(Counter::kAllocations, items.size());
  count(Counter::kPagesAllocated, used);
  KVTRIE_CRASH_POINT("batch.after_take");
  for (BatchItem& item : items) {
    const BatchLock lock(*item.sequence);
    Status status = lock.status();
    if (status) status = announce_full(*item.sequence, item.sequence->positions(), false);
    if (status) continue;
    for (BatchItem& other : items) release(*other.sequence);
    return status;
  }
  return {};
}

// Rule 6: before pages first .. end-1 of `sequence` become Live, the lease of each sequence that has one of them stands on its
// deepest one. These are Pending pages of this worker, below all that the lease stood on before.
void Worker::lease_for_borrowers(const Sequence& sequence, std::uint32_t first, std::uint32_t end) {
  for_each_shared_page(sequence, [&](Sequence& member, std::uint32_t position) {
    if (position < first || position >= end) return;
    leases_[member.lease_slot].handle.store(sequence.node_at(position).raw, std::memory_order_release);
    KVTRIE_CRASH_POINT("batch.after_shared_lease");
    member.published = std::max(member.published, position + 1);
    member.linked = std::max(member.linked, member.published);
  });
}

// B2. What is Pending may be a parent; what is another's page is for the borrower to lease itself.
void Worker::tell_borrowers(const Sequence& sequence) {
  for_each_shared_page(sequence, [&](Sequence& member, std::uint32_t position) {
    const OwnPage& mine = sequence.own_at(position);
    OwnPage& theirs = member.own_at(position);
    if (mine.borrowed || !theirs.borrowed) return;
    theirs.node = mine.node;
    theirs.state = mine.state;
    theirs.before_other = mine.before_other;
  });
}

// B4. Afterwards what the others use is not this sequence's: published pages are nobody's, the rest is the first user's.
void Worker::leave_batch(Sequence& sequence) {
  if (!sequence.batch) return;
  tell_borrowers(sequence);
  for_each_shared_page(sequence, [&](Sequence& member, std::uint32_t position) {
    OwnPage& mine = sequence.own_at(position);
    OwnPage& theirs = member.own_at(position);
    if (mine.borrowed || !theirs.borrowed) return;
    theirs.borrowed = false;
    if (mine.state != OwnState::kLive) mine.borrowed = true;  // the next ones borrow from that member
  });
  std::erase(sequence.batch->members, &sequence);
}

}  // namespace kvtrie
