// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <utility>

#include "shm/crash_point.h"
#include "shm/lease.h"
#include "shm/mutant.h"
#include "shm/pending_wait.h"
#include "shm/waiting.h"
#include "worker_plugin/worker.h"

namespace kvtrie {

Status Worker::wait_for_pending(Sequence& sequence, std::int64_t wait_ns, BeginReport& report) {
  if (!sequence.own.empty()) {
    return {Code::kInvalid, "the sequence has pages of its own: wait before it allocates"};
  }
  const std::uint64_t start = monotonic_ns();
  for (bool first = true;; first = false) {
    if (Status status = health(); !status) return status;
    if (const Status status = match_on(sequence, report); !status) return status;
    if (report.pending.none()) return {};
    const std::int64_t left = wait_ns - static_cast<std::int64_t>(monotonic_ns() - start);
    if (left <= 0) return {Code::kTimeout, "the pages that another worker computes did not come in the time given"};
    const StateWord word = pages_.state(report.pending.page_index());
    if (word.state() != PageState::kPending || !report.pending.same_life(word)) continue;
    if (word.owner().value >= segment_.slot_count()) {
      return {Code::kCorrupt, "a page of a worker that cannot be: detach"};
    }
    if (first) count(Counter::kPendingWaits);
    sleep_while_pending(segment_, report.pending, word.owner(), left);
  }
}

// Matches from the deepest page on. The lease moves by rule 7, so what was matched stays protected throughout.
Status Worker::match_on(Sequence& sequence, BeginReport& report) {
  const auto had = static_cast<std::uint32_t>(sequence.shared.size());
  report = {};
  report.cached_pages = had;
  if (!sequence.options.read) return {};
  if (Status status = walk_on(sequence, sequence.tokens.view(), report); !status) return status;
  std::optional<std::uint32_t> second;
  std::uint32_t depth = had;
  if (sequence.shared.size() > had) {
    second = take_slot(sequence.options.request_tag, segment_.now_tick(), true);
    if (second) depth = lease_deepest(*second, sequence.shared, had);
    KVTRIE_CRASH_POINT("match_on.after_second_lease");
  }
  const bool current = root_is_current(sequence) || KVTRIE_MUTANT(wait_keeps_old_root);
  if (!current) depth = had;
  if (depth != sequence.shared.size()) report.pending = {};
  const bool no_slot = sequence.shared.size() > had && !second;
  sequence.shared.resize(depth);
  if (depth > had) {
    give_slot_back(std::exchange(sequence.lease_slot, *second));
    take_matched(sequence, depth - had);
  } else if (second) {
    give_slot_back(*second);
  }
  report.cached_pages = depth;
  if (!current) return flushed();
  if (no_slot) {
    return {Code::kFull, "no free lease slot to match on: release sequences, or start kvtried with more --leases"};
  }
  if (depth > had) drop_source(sequence);  // of another position
  if (sequence.source.any()) {
    report.partial_tokens = sequence.source.tokens;
  } else {
    find_partial(sequence, sequence.tokens.view(), segment_.now_tick(), report);
  }
  return {};
}

// Notes that the last `pages` of sequence.shared were matched, under the lease now.
void Worker::take_matched(Sequence& sequence, std::uint32_t pages) {
  const std::size_t found = std::size_t{pages} * segment_.tokens_per_page();
  sequence.tokens.drop_first(found);
  sequence.published = sequence.linked = static_cast<std::uint32_t>(sequence.shared.size());
  touch_page(sequence.shared.back().page_index(), segment_.now_tick(), sequence.options.hint);
  count(Counter::kTokensFound, found);
  count(Counter::kPagesHit, pages);
}

}  // namespace kvtrie
