// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/free_pages.h"

#include <algorithm>
#include <bit>

#include "shm/crash_point.h"
#include "shm/mutant.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kRunWorthTaking = 8;  // shorter runs are left for small requests

constexpr std::uint64_t low_bits(std::uint32_t count) {
  return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

// The lowest `count` set bits of `bits`.
std::uint64_t first_set(std::uint64_t bits, std::uint32_t count) {
  if (static_cast<std::uint32_t>(std::popcount(bits)) <= count) return bits;
  std::uint64_t chosen = 0;
  for (; count > 0; --count) {
    const std::uint64_t lowest = bits & (~bits + 1);
    chosen |= lowest;
    bits ^= lowest;
  }
  return chosen;
}

// Bits of `bits` that stand in runs of at least kRunWorthTaking.
std::uint64_t in_long_runs(std::uint64_t bits) {
  std::uint64_t starts = bits;  // bit i: a run of at least kRunWorthTaking begins at i
  starts &= starts >> 1;
  starts &= starts >> 2;
  starts &= starts >> 4;
  std::uint64_t spread = starts;
  spread |= spread << 1;
  spread |= spread << 2;
  spread |= spread << 4;
  return spread;
}

// Calls apply(chunk, mask, count) for each group of neighbouring entries of `pages` in one chunk.
template <typename Apply>
void by_chunk(std::span<const PageIndex> pages, Apply apply) {
  for (std::size_t i = 0; i < pages.size();) {
    const std::uint32_t chunk = pages[i].value / kChunkPages;
    const std::size_t first = i;
    std::uint64_t mask = 0;
    for (; i < pages.size() && pages[i].value / kChunkPages == chunk; ++i) {
      mask |= std::uint64_t{1} << (pages[i].value % kChunkPages);
    }
    apply(chunk, mask, pages.subspan(first, i - first));
  }
}

}  // namespace

std::uint32_t FreePages::claim(WorkerId me, std::uint32_t chunk, std::uint64_t mask,
                               std::vector<PageIndex>& out) const {
  AtomicU16& held = segment_.held_count(me, chunk);
  const auto asked = static_cast<std::uint16_t>(std::popcount(mask));
  if (!KVTRIE_MUTANT(held_count_after_take)) held.fetch_add(asked, std::memory_order_seq_cst);
  KVTRIE_CRASH_POINT("take.after_held");
  std::uint64_t ours =
      mask & segment_.free_bits(chunk).fetch_and(~mask, std::memory_order_seq_cst);
  KVTRIE_CRASH_POINT("take.after_bits");
  std::uint16_t taken = 0;
  for (; ours != 0; ours &= ours - 1) {
    const PageIndex page{chunk * kChunkPages + static_cast<std::uint32_t>(std::countr_zero(ours))};
    if (!segment_.has(page)) continue;  // bits past the end are never set by us
    AtomicU64& state = segment_.descriptor(page).state;
    StateWord word{state.load(std::memory_order_acquire)};
    if (word.state() != PageState::kFree ||
        !state.compare_exchange_strong(word.raw, word.with(PageState::kWriting, me).raw,
                                       std::memory_order_acq_rel)) {
      continue;  // F3: somebody owns it and will set the bit again when it is free
    }
    KVTRIE_CRASH_POINT("take.after_state");
    out.push_back(page);
    ++taken;
  }
  if (KVTRIE_MUTANT(held_count_after_take)) {
    held.fetch_add(taken, std::memory_order_seq_cst);
  } else if (taken != asked) {
    held.fetch_sub(static_cast<std::uint16_t>(asked - taken), std::memory_order_release);
  }
  return taken;
}

std::uint32_t FreePages::take(WorkerId me, std::uint32_t wanted, PageIndex near,
                              std::uint32_t& cursor, std::vector<PageIndex>& out) const {
  const std::uint32_t chunks = segment_.chunk_count();
  std::uint32_t got = 0;
  // Go on where the sequence ends, so that its pages stay neighbours.
  while (got < wanted && segment_.has(near)) {
    const std::uint32_t chunk = near.value / kChunkPages;
    const std::uint32_t bit = near.value % kChunkPages;
    const std::uint64_t bits = segment_.free_bits(chunk).load(std::memory_order_relaxed) >> bit;
    const auto run = std::min(static_cast<std::uint32_t>(std::countr_one(bits)), wanted - got);
    if (run == 0) break;
    const std::uint32_t taken = claim(me, chunk, low_bits(run) << bit, out);
    got += taken;
    near = PageIndex{near.value + run};
    if (taken != run || near.value % kChunkPages != 0) break;
  }
  if (cursor >= chunks) cursor = 0;
  for (const bool long_runs_only : {true, false}) {
    if (long_runs_only && wanted - got < kRunWorthTaking) continue;
    for (std::uint32_t step = 0; step < chunks && got < wanted; ++step) {
      const std::uint64_t all = segment_.free_bits(cursor).load(std::memory_order_relaxed);
      const std::uint64_t bits = first_set(long_runs_only ? in_long_runs(all) : all, wanted - got);
      if (bits != 0) got += claim(me, cursor, bits, out);
      if (got < wanted && ++cursor == chunks) cursor = 0;
    }
  }
  if (got > 0) {
    segment_.superblock().free_hint.fetch_sub(got, std::memory_order_relaxed);
  }
  return got;
}

void FreePages::give_back(WorkerId me, std::span<const PageIndex> pages) const {
  // Before the bits: whoever sets the hint by counting them between the two makes it too low, never too high.
  if (!pages.empty()) {
    segment_.superblock().free_hint.fetch_add(static_cast<std::int64_t>(pages.size()),
                                              std::memory_order_relaxed);
  }
  by_chunk(pages, [&](std::uint32_t chunk, std::uint64_t mask, std::span<const PageIndex> group) {
    for (const PageIndex page : group) {
      AtomicU64& state = segment_.descriptor(page).state;
      const StateWord word{state.load(std::memory_order_relaxed)};
      state.store(KVTRIE_MUTANT(free_keeps_generation) ? word.with(PageState::kFree).raw
                                                       : word.recycled().raw,
                  std::memory_order_release);
      KVTRIE_CRASH_POINT("give_back.after_free");
    }
    segment_.free_bits(chunk).fetch_or(mask, std::memory_order_seq_cst);
    KVTRIE_CRASH_POINT("give_back.after_bits");
    segment_.held_count(me, chunk)
        .fetch_sub(static_cast<std::uint16_t>(group.size()), std::memory_order_release);
  });
}

void FreePages::drop_held(WorkerId me, std::span<const PageIndex> pages) const {
  by_chunk(pages, [&](std::uint32_t chunk, std::uint64_t, std::span<const PageIndex> group) {
    segment_.held_count(me, chunk)
        .fetch_sub(static_cast<std::uint16_t>(group.size()), std::memory_order_release);
  });
}

void FreePages::free_retired(PageIndex page) const {
  AtomicU64& state = segment_.descriptor(page).state;
  const StateWord word{state.load(std::memory_order_relaxed)};
  state.store(KVTRIE_MUTANT(free_keeps_generation) ? word.with(PageState::kFree).raw
                                                   : word.recycled().raw,
              std::memory_order_release);
  KVTRIE_CRASH_POINT("evict.after_free");
  segment_.free_bits(page.value / kChunkPages)
      .fetch_or(std::uint64_t{1} << (page.value % kChunkPages), std::memory_order_seq_cst);
}

void FreePages::repair_chunk(std::uint32_t chunk) const {
  const std::uint32_t first = chunk * kChunkPages;
  const std::uint32_t end = std::min(first + kChunkPages, segment_.page_count());
  std::uint64_t mask = 0;
  for (std::uint32_t i = first; i < end; ++i) {
    const StateWord word{segment_.descriptor({i}).state.load(std::memory_order_acquire)};
    if (word.state() == PageState::kFree) mask |= std::uint64_t{1} << (i - first);
  }
  segment_.free_bits(chunk).fetch_or(mask, std::memory_order_seq_cst);
}

std::uint64_t FreePages::count() const {
  std::uint64_t free = 0;
  for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
    free += static_cast<std::uint64_t>(
        std::popcount(segment_.free_bits(chunk).load(std::memory_order_seq_cst)));
  }
  return free;
}

}  // namespace kvtrie
