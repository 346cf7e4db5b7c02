// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/announce.h"

#include "shm/crash_point.h"
#include "shm/mutant.h"

namespace kvtrie {
namespace {

// Under the stripe's lock: the canonical page of this key, if there is one.
AnnounceResult look_for_same_key(const Segment& segment, const StripeIndex& index,
                                 const IndexPlace& place, const PageNode& node,
                                 std::span<const std::uint32_t> tokens) {
  const PageTable pages(segment);
  AnnounceResult result{AnnounceOutcome::kAnnounced, {}, {}};
  index.for_each_candidate(place, [&](PageIndex candidate) {
    const StateWord word = pages.state(candidate);
    if (!word.canonical() || !pages.matches(candidate, node.parent, tokens)) return false;
    // Still the same life: then what was compared is this page's. Condemned and Live may have changed places.
    const StateWord again = pages.state(candidate);
    if (!again.canonical() || again.generation() != word.generation()) return false;
    result = {AnnounceOutcome::kDuplicate, Handle::page(candidate, again), again};
    return true;
  });
  return result;
}

// Steps 4 and 5. A plain store: nobody else writes the word of an owned page.
void make_pending(const Segment& segment, WorkerId me, PageIndex page, AtomicU64& slot,
                  const IndexPlace& place) {
  AtomicU64& state = segment.descriptor(page).state;
  const StateWord word{state.load(std::memory_order_relaxed)};
  if (!KVTRIE_MUTANT(index_before_pending)) {
    state.store(word.with(PageState::kPending, me).raw, std::memory_order_release);
  }
  KVTRIE_CRASH_POINT("announce.after_pending");
  StripeIndex::enter(slot, place, page);
  KVTRIE_CRASH_POINT("announce.after_index_store");
}

}  // namespace

AnnounceResult announce_page(const Segment& segment, const StripeIndex& index, WorkerId me, PageIndex page,
                             const PageNode& node, std::span<const std::uint32_t> tokens) {
  const PageTable pages(segment);
  pages.write_node(page, node, tokens);
  KVTRIE_CRASH_POINT("announce.after_node");
  const IndexPlace place = index.place_of(node.prefix_hash);
  if (const Status status = index.lock(me, place); !status) {
    const bool busy = status.code() == Code::kBusy;
    return {busy ? AnnounceOutcome::kBusy : AnnounceOutcome::kFailed, {}, {}};
  }
  KVTRIE_CRASH_POINT("announce.after_lock");
  AnnounceResult result = look_for_same_key(segment, index, place, node, tokens);
  if (KVTRIE_MUTANT(announce_without_lookup) || KVTRIE_MUTANT(duplicate_supersedes)) {
    result.outcome = AnnounceOutcome::kAnnounced;
  }
  if (result.outcome == AnnounceOutcome::kAnnounced) {
    if (AtomicU64* slot = index.vacancy(me, place)) {
      make_pending(segment, me, page, *slot, place);
    } else {
      result.outcome = AnnounceOutcome::kNoRoom;
    }
  }
  index.unlock(place);
  KVTRIE_CRASH_POINT("announce.after_unlock");
  if (KVTRIE_MUTANT(index_before_pending) && result.outcome == AnnounceOutcome::kAnnounced) {
    AtomicU64& state = segment.descriptor(page).state;
    state.store(StateWord{state.load()}.with(PageState::kPending, me).raw);
  }
  if (result.outcome == AnnounceOutcome::kAnnounced && node.parent.is_page() &&
      !KVTRIE_MUTANT(no_announce_counter)) {
    segment.announce_counter(node.parent.page_index()).fetch_add(1, std::memory_order_seq_cst);
  }
  return result;
}

}  // namespace kvtrie
