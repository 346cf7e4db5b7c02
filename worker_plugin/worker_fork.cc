// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>

#include "shm/crash_point.h"
#include "shm/lease.h"
#include "shm/mutant.h"
#include "worker_plugin/batch.h"
#include "worker_plugin/worker.h"

namespace kvtrie {
namespace {

// Positions behind the published ones that hold something of the known tokens: each needs a copy.
std::uint32_t copied_end(const Sequence& parent, std::uint32_t page_tokens) {
  const std::uint64_t known = parent.known_tokens(page_tokens);
  const auto with_tokens = static_cast<std::uint32_t>((known + page_tokens - 1) / page_tokens);
  return std::max(parent.published, std::min(parent.positions(), with_tokens));
}

std::uint32_t pages_to_copy(const Sequence& parent, std::uint32_t page_tokens) {
  std::uint32_t pages = 0;
  for (std::uint32_t p = parent.published; p < copied_end(parent, page_tokens); ++p) {
    if (parent.own_at(p).state != OwnState::kGone) ++pages;
  }
  return pages;
}

}  // namespace

// The pages come first, since who waits for them holds nothing else. A batch may publish some of the parent's meanwhile, so
// their number is looked at again.
Status Worker::fork(Sequence& parent, std::uint32_t request_tag, std::int64_t wait_ns, Sequence& child,
                    std::vector<PageCopy>& copies) {
  if (Status status = health(); !status) return status;
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  std::uint32_t wanted = 0;
  {
    const BatchLock lock(parent);
    if (!lock.status()) return lock.status();
    wanted = pages_to_copy(parent, page_tokens);
  }
  std::vector<PageIndex> taken;
  taken.reserve(wanted);
  copies.reserve(wanted);
  child = {};
  child.shared.reserve(parent.positions());
  child.own.reserve(parent.positions());
  child.tokens.copy(parent.tokens.view());  // it may outlive its parent, and what that borrowed
  // Who has pages goes on before those who wait: they may wait for just these pages (W2).
  if (wanted > 0) {
    if (Status status = take_pages(wanted, {segment_.page_count()}, Turn::first(), wait_ns, taken); !status) {
      return status;
    }
  }
  const BatchLock lock(parent);
  const std::optional<std::uint32_t> slot = lock.status() ? take_slot(request_tag, segment_.now_tick()) : std::nullopt;
  if (!slot || (parent.published > 0 && !fork_lease(*slot, parent.node_at(parent.published - 1)))) {
    if (slot) give_slot_back(*slot);
    free_own(taken);
    if (!lock.status()) return lock.status();
    return {Code::kFull, "no free lease slot for the child: release sequences, or start kvtried with more --leases"};
  }
  fill_child(parent, request_tag, *slot, taken, child, copies);
  free_own(taken);  // the rest
  count(Counter::kForks);
  count(Counter::kPagesAllocated, copies.size());
  return {};
}

// Rule 7: a lease is never copied, though the parent's protects the page.
bool Worker::fork_lease(std::uint32_t slot, Handle page) {
  if (KVTRIE_MUTANT(fork_copies_lease)) {
    KVTRIE_CRASH_POINT("lease.before_store");
    leases_[slot].handle.store(page.raw, std::memory_order_relaxed);
    return true;
  }
  return lease_in(slot, page) != LeaseOutcome::kLost;
}

void Worker::fill_child(const Sequence& parent, std::uint32_t request_tag, std::uint32_t slot,
                        std::vector<PageIndex>& taken, Sequence& child, std::vector<PageCopy>& copies) {
  const std::uint32_t page_tokens = segment_.tokens_per_page();
  child.name_space = parent.name_space;
  child.root_generation = parent.root_generation;
  child.root_hash = parent.root_hash;
  child.options = parent.options;
  child.options.request_tag = request_tag;
  child.lease_slot = slot;
  child.published = child.linked = parent.published;
  for (std::uint32_t p = 0; p < parent.published; ++p) child.shared.push_back(parent.node_at(p));
  const std::size_t shared_since = (child.shared.size() - parent.shared.size()) * page_tokens;
  child.tokens.drop_first(shared_since);
  for (std::uint32_t p = parent.published; p < copied_end(parent, page_tokens); ++p) {
    const OwnPage& own = parent.own_at(p);
    if (own.state == OwnState::kGone) {
      child.own.push_back({{}, kNoPage, OwnState::kGone});
      continue;
    }
    const bool not_copied_yet = parent.source.any() && !parent.source.callers && parent.source.position == p;
    copies.push_back({not_copied_yet ? parent.source.page.page_index() : own.page, taken.front()});
    child.own.push_back({{}, taken.front()});
    taken.erase(taken.begin());
  }
  // What the parent would have copied into a page that it has not yet.
  if (parent.source.any() && parent.source.position >= child.positions()) {
    const std::optional<std::uint32_t> second = take_slot(request_tag, segment_.now_tick());
    if (second && lease_in(*second, parent.source.page) != LeaseOutcome::kLost) {
      child.source = parent.source;
      child.source.lease_slot = *second;
      child.source.callers = false;
    } else if (second) {
      give_slot_back(*second);
    }
  }
}

}  // namespace kvtrie
