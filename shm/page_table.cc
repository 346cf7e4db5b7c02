// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/page_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/recovery.h"
#include "shm/worker_table.h"

namespace kvtrie {

std::string PageTable::validate() const {
  for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
    const StateWord word{segment_.descriptor({i}).state.load(std::memory_order_relaxed)};
    if (!word.well_formed() || word.owner().value >= segment_.slot_count()) {
      return fmt::format("page {}: impossible state word {:#x}", i, word.raw);
    }
  }
  return {};
}

PageRecovery PageTable::recover() const {
  PageRecovery report;
  const WorkerTable workers(segment_);
  for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
    const PageIndex page{i};
    const StateWord word = state(page);
    const Handle handle = Handle::page(page, word);
    if (word.state() == PageState::kCondemned && !KVTRIE_MUTANT(adopt_keeps_condemned)) {
      if (move(handle, PageState::kCondemned, PageState::kLive)) ++report.condemned;
    } else if (word.state() == PageState::kRetiring) {
      if (KVTRIE_MUTANT(adopt_revives_retiring)) {
        move(handle, PageState::kRetiring, PageState::kLive);
      } else {
        finish_page(segment_, page);
      }
      ++report.retiring;
    } else if (word.owned() && (word.owner().value >= segment_.slot_count() ||
                                workers.word(word.owner()).state() == SlotState::kFree)) {
      finish_page(segment_, page);
      ++report.orphans;
    }
    KVTRIE_CRASH_POINT("adopt.after_page");
  }
  return report;
}

PageStats PageTable::stats() const {
  PageStats stats;
  stats.writing_of.assign(segment_.slot_count(), 0);
  stats.pending_of.assign(segment_.slot_count(), 0);
  stats.pages_of_scope.assign(segment_.namespace_count(), 0);
  for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
    const Descriptor& descriptor = segment_.descriptor({i});
    const StateWord word{descriptor.state.load(std::memory_order_relaxed)};
    if (!word.well_formed()) {
      ++stats.impossible;
      continue;
    }
    ++stats.by_state[static_cast<std::size_t>(word.state())];
    if (word.owned()) {
      if (word.owner().value >= segment_.slot_count()) {
        ++stats.owner_unknown;
      } else {
        auto& counts = word.state() == PageState::kWriting ? stats.writing_of : stats.pending_of;
        ++counts[word.owner().value];
      }
    }
    if (!word.canonical()) continue;
    const NamespaceId scope = namespace_in(descriptor.scope.load(std::memory_order_relaxed));
    if (scope.value < stats.pages_of_scope.size()) {
      ++stats.pages_of_scope[scope.value];
    } else {
      ++stats.scope_unknown;
    }
    if (word.readable()) {
      stats.readable_tokens +=
          std::min<std::uint32_t>(descriptor.token_count.load(std::memory_order_relaxed),
                                  segment_.tokens_per_page());
    }
  }
  return stats;
}

void PageTable::write_node(PageIndex page, const PageNode& node,
                           std::span<const std::uint32_t> tokens) const {
  Descriptor& d = segment_.descriptor(page);
  constexpr auto kRelaxed = std::memory_order_relaxed;
  d.prefix_hash.store(node.prefix_hash, kRelaxed);
  d.touch.store(node.touch.raw, kRelaxed);
  d.scope.store(scope_of(node.name_space, node.root_generation), kRelaxed);
  d.depth_class.store((node.depth & 0xFFFFFF) | std::uint32_t{node.priority & 0xFU} << 24, kRelaxed);
  d.since_tick.store(node.tick, kRelaxed);
  d.retain_until.store(node.retain_until, kRelaxed);
  d.child_hint.store(0, kRelaxed);
  d.publisher.store(node.publisher.value, kRelaxed);
  d.checksum.store(0, kRelaxed);
  // Release: a reader that sees one of these also sees that the page was taken, so its second look at
  // the state word (lease.h) cannot read the old life.
  d.token_count.store(static_cast<std::uint16_t>(tokens.size()), std::memory_order_release);
  AtomicU64* words = segment_.token_words(page);
  if (tokens.size() == kUsualTokens) {
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kUsualTokens; i += 2) words[i / 2].store(token_word(&tokens[i]), std::memory_order_release);
  } else {
    std::size_t i = 0;
    for (; i + 1 < tokens.size(); i += 2) words[i / 2].store(token_word(&tokens[i]), std::memory_order_release);
    if (i < tokens.size()) words[i / 2].store(tokens[i], std::memory_order_release);
  }
  d.parent.store(node.parent.raw, std::memory_order_release);
}

}  // namespace kvtrie
