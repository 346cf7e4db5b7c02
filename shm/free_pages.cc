// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/free_pages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <utility>
#include <vector>

#include "shm/crash_point.h"
#include "shm/mutant.h"
#include "shm/recovery.h"
#include "shm/stripe_index.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kRunWorthTaking = 8;  // shorter runs are left for small requests
constexpr std::uint32_t kLookMin = 512;       // chunks that a request for a run looks at, at least
constexpr std::uint32_t kLookPerPage = 4;

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

struct Run {
  std::uint32_t first;  // page
  std::uint32_t length;
};

// The longest of the runs that it is shown, longest first, and the shortest that is long enough.
class BestRuns {
 public:
  explicit BestRuns(std::uint32_t wanted) : wanted_(wanted) {}

  void add(Run run) {
    if (run.length < kRunWorthTaking) return;
    if (run.length >= wanted_ && (!fits_ || run.length < fits_->length)) fits_ = run;
    dropped_ = dropped_ || count_ == kKept;
    if (count_ == kKept && run.length <= runs_[kKept - 1].length) return;
    std::uint32_t place = count_ < kKept ? count_++ : kKept - 1;
    for (; place > 0 && runs_[place - 1].length < run.length; --place) runs_[place] = runs_[place - 1];
    runs_[place] = run;
  }

  bool dropped_some() const { return dropped_; }

  // The run to take next for so many pages: the shortest that is long enough, else the longest. Each is given once.
  std::optional<Run> next(std::uint32_t wanted) {
    if (fits_ && wanted == wanted_) return std::exchange(fits_, std::nullopt);
    if (given_ == count_) return std::nullopt;
    std::uint32_t chosen = given_;
    while (chosen + 1 < count_ && runs_[chosen + 1].length >= wanted) ++chosen;
    std::swap(runs_[given_], runs_[chosen]);
    return runs_[given_++];
  }

 private:
  static constexpr std::uint32_t kKept = 16;

  const std::uint32_t wanted_;
  std::optional<Run> fits_;
  std::array<Run, kKept> runs_{};
  std::uint32_t count_ = 0;
  std::uint32_t given_ = 0;
  bool dropped_ = false;
};

// Shows `best` the runs of free bits of `count` chunks from `first` on, which do not wrap.
void find_runs(const Segment& segment, std::uint32_t first, std::uint32_t count, BestRuns& best) {
  Run run{};
  const auto end_run = [&] {
    if (run.length != 0) best.add(run);
    run.length = 0;
  };
  const auto more = [&](std::uint32_t page, std::uint32_t pages) {
    if (run.length == 0) run.first = page;
    run.length += pages;
  };
  for (std::uint32_t chunk = first; chunk < first + count; ++chunk) {
    const std::uint64_t bits = segment.free_bits(chunk).load(std::memory_order_relaxed);
    if (bits == low_bits(kChunkPages)) {  // as most are while a cache fills
      more(chunk * kChunkPages, kChunkPages);
      continue;
    }
    for (std::uint32_t bit = 0; bit < kChunkPages;) {
      const std::uint64_t rest = bits >> bit;
      if (rest == 0) {
        end_run();
        break;
      }
      if (const auto taken = static_cast<std::uint32_t>(std::countr_zero(rest)); taken != 0) {
        end_run();
        bit += taken;
      }
      const auto length = static_cast<std::uint32_t>(std::countr_one(bits >> bit));
      more(chunk * kChunkPages + bit, length);
      bit += length;
    }
  }
  end_run();
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
  // All at once, since a compare-and-swap waits for its line, and the next one for it.
  for (std::uint64_t bits = ours; bits != 0; bits &= bits - 1) {
    const PageIndex page{chunk * kChunkPages + static_cast<std::uint32_t>(std::countr_zero(bits))};
    if (segment_.has(page)) __builtin_prefetch(&segment_.descriptor(page), 1);
  }
  const std::uint32_t tick = segment_.now_tick();
  std::uint16_t taken = 0;
  std::uint64_t taken_bits = 0;
  for (; ours != 0; ours &= ours - 1) {
    const PageIndex page{chunk * kChunkPages + static_cast<std::uint32_t>(std::countr_zero(ours))};
    if (!segment_.has(page)) continue;  // bits past the end are never set by us
    AtomicU64& state = segment_.descriptor(page).state;
    StateWord word{state.load(std::memory_order_acquire)};
    if (word.state() != PageState::kFree) continue;  // F3: somebody owns it and will set the bit again when it is free
    KVTRIE_CRASH_POINT("take.before_state");
    if (!state.compare_exchange_strong(word.raw, word.with(PageState::kWriting, me).raw,
                                       std::memory_order_acq_rel)) {
      continue;  // F3
    }
    KVTRIE_CRASH_POINT("take.after_state");
    // For people who ask who holds a page for how long: died before, it shows the age of the page's last life.
    segment_.descriptor(page).since_tick.store(tick, std::memory_order_relaxed);
    out.push_back(page);
    taken_bits |= ours & (~ours + 1);
    ++taken;
  }
  if (KVTRIE_MUTANT(held_count_after_take)) {
    held.fetch_add(taken, std::memory_order_seq_cst);
  } else if (taken != asked) {
    held.fetch_sub(static_cast<std::uint16_t>(asked - taken), std::memory_order_release);
  }
  segment_.owned_bits(chunk).fetch_or(taken_bits, std::memory_order_relaxed);
  return taken;
}

std::uint32_t FreePages::take_runs(WorkerId me, std::uint32_t wanted, std::uint32_t& cursor,
                                   std::vector<PageIndex>& out) const {
  const std::uint32_t chunks = segment_.chunk_count();
  std::uint32_t got = 0;
  for (std::uint32_t looked = 0; looked < chunks && wanted - got >= kRunWorthTaking;) {
    // A look at a chunk costs about a hundredth of what a page costs.
    const std::uint64_t worth_it = std::max<std::uint64_t>(kLookMin, std::uint64_t{wanted - got} * kLookPerPage);
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(worth_it, chunks - looked));
    const std::uint32_t behind = std::min(count, chunks - cursor);
    BestRuns best(wanted - got);
    find_runs(segment_, cursor, behind, best);
    find_runs(segment_, 0, count - behind, best);
    const std::uint32_t before = got;
    while (got < wanted) {
      const std::optional<Run> run = best.next(wanted - got);
      if (!run) break;
      std::uint32_t at = run->first;
      for (std::uint32_t left = std::min(run->length, wanted - got); left > 0;) {
        const std::uint32_t bit = at % kChunkPages;
        const std::uint32_t length = std::min(left, kChunkPages - bit);
        got += claim(me, at / kChunkPages, low_bits(length) << bit, out);
        at += length;
        left -= length;
      }
      if (got == wanted) {
        cursor = at / kChunkPages < chunks ? at / kChunkPages : 0;
        return got;
      }
    }
    if (best.dropped_some() && got > before) continue;  // the same chunks again
    looked += count;
    cursor = (cursor + count) % chunks;
  }
  return got;
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
  if (wanted - got >= kRunWorthTaking) got += take_runs(me, wanted - got, cursor, out);
  for (std::uint32_t step = 0; step < chunks && got < wanted; ++step) {
    // Again, since others who chose the same bits at the same time may leave others of the chunk.
    for (std::uint32_t tries = 0; tries < kChunkPages && got < wanted; ++tries) {
      const std::uint64_t all = segment_.free_bits(cursor).load(std::memory_order_relaxed);
      if (all == 0) break;
      got += claim(me, cursor, first_set(all, wanted - got), out);
      if (KVTRIE_MUTANT(take_tries_once)) break;
    }
    if (got < wanted && ++cursor == chunks) cursor = 0;
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
    segment_.owned_bits(chunk).fetch_and(~mask, std::memory_order_relaxed);
    segment_.free_bits(chunk).fetch_or(mask, std::memory_order_seq_cst);
    KVTRIE_CRASH_POINT("give_back.after_bits");
    segment_.held_count(me, chunk)
        .fetch_sub(static_cast<std::uint16_t>(group.size()), std::memory_order_release);
  });
}

void FreePages::drop_held(WorkerId me, std::span<const PageIndex> pages) const {
  by_chunk(pages, [&](std::uint32_t chunk, std::uint64_t mask, std::span<const PageIndex> group) {
    segment_.owned_bits(chunk).fetch_and(~mask, std::memory_order_relaxed);
    segment_.held_count(me, chunk)
        .fetch_sub(static_cast<std::uint16_t>(group.size()), std::memory_order_release);
  });
}

void FreePages::free_retired(PageIndex page) const {
  AtomicU64& state = segment_.descriptor(page).state;
  const StateWord word{state.load(std::memory_order_relaxed)};
  const std::uint64_t bit = std::uint64_t{1} << (page.value % kChunkPages);
  // Of a dead worker, before anybody else can take it and say so.
  if (word.owned()) segment_.owned_bits(page.value / kChunkPages).fetch_and(~bit, std::memory_order_relaxed);
  state.store(KVTRIE_MUTANT(free_keeps_generation) ? word.with(PageState::kFree).raw
                                                   : word.recycled().raw,
              std::memory_order_release);
  KVTRIE_CRASH_POINT("evict.after_free");
  segment_.free_bits(page.value / kChunkPages).fetch_or(bit, std::memory_order_seq_cst);
}

std::uint32_t FreePages::pages_of_chunk(std::uint32_t chunk) const {
  return std::min(kChunkPages, segment_.page_count() - chunk * kChunkPages);
}

void FreePages::init() const {
  for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
    segment_.free_bits(chunk).store(low_bits(pages_of_chunk(chunk)), std::memory_order_relaxed);
  }
  segment_.superblock().free_hint.store(segment_.page_count(), std::memory_order_relaxed);
}

std::string FreePages::validate(std::uint32_t chunk) const {
  const std::uint32_t count = pages_of_chunk(chunk);
  const std::uint64_t bits = segment_.free_bits(chunk).load(std::memory_order_acquire);
  if ((bits & ~low_bits(count)) == 0) return {};
  return fmt::format("free bits {:#018x}, it has {} pages", bits, count);
}

std::string FreePages::validate() const {
  const std::uint32_t last = segment_.chunk_count() - 1;  // all others have as many pages as bits
  if (const std::string problem = validate(last); !problem.empty()) {
    return fmt::format("chunk {}: {}", last, problem);
  }
  const WorkerTable workers(segment_);
  for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const SlotWord word = workers.word(slot);
    if (word.state() != SlotState::kFree) continue;
    for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
      const unsigned held = segment_.held_count(slot, chunk).load(std::memory_order_acquire);
      if (held == 0 || workers.word(slot) != word) continue;  // not any more: it was given meanwhile
      return fmt::format("worker slot {}: free, but held count of chunk {} is {}", i, chunk, held);
    }
  }
  return {};
}

void FreePages::repair_chunk(std::uint32_t chunk) const {
  const std::uint32_t first = chunk * kChunkPages;
  std::uint64_t mask = 0;
  for (std::uint32_t i = 0; i < pages_of_chunk(chunk); ++i) {
    const StateWord word{segment_.descriptor({first + i}).state.load(std::memory_order_acquire)};
    if (word.state() == PageState::kFree) mask |= std::uint64_t{1} << i;
  }
  segment_.free_bits(chunk).fetch_or(mask, std::memory_order_seq_cst);
}

void FreePages::recover() const {
  for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
    if (!KVTRIE_MUTANT(adopt_keeps_bitmap)) repair_chunk(chunk);
    KVTRIE_CRASH_POINT("adopt.after_chunk");
  }
  segment_.superblock().free_hint.store(static_cast<std::int64_t>(count()),
                                        std::memory_order_relaxed);
}

// Some chunks at a time, so that the index lines of all their pages are on their way before the first is needed: pages
// that lie scattered would wait for memory otherwise, 0.3 us each.
class FreePages::PagesOfTheDead {
 public:
  PagesOfTheDead(const FreePages& free_pages, WorkerId dead)
      : free_pages_(free_pages), segment_(free_pages.segment_), index_(segment_), dead_(dead) {}

  std::uint32_t give_back() {
    for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
      const std::uint32_t held = segment_.held_count(dead_, chunk).load(std::memory_order_acquire);
      if (held == 0) continue;
      find(chunk, held);
      if (chunks_.size() == kChunksAtOnce) finish();
    }
    finish();
    return freed_;
  }

 private:
  static constexpr std::size_t kChunksAtOnce = 32;

  struct Chunk {
    std::uint32_t number;
    bool exact;  // as many pages were found as are held (F4)
  };

  void find(std::uint32_t chunk, std::uint32_t held) {
    const std::uint64_t all = low_bits(free_pages_.pages_of_chunk(chunk));
    const std::uint64_t owned = segment_.owned_bits(chunk).load(std::memory_order_relaxed);
    std::uint32_t found = 0;
    for (std::uint64_t bits : {all & owned, all & ~owned}) {
      for (; bits != 0 && found < held; bits &= bits - 1) {
        const auto bit = static_cast<std::uint32_t>(std::countr_zero(bits));
        if (take_note({chunk * kChunkPages + bit})) ++found;
      }
    }
    chunks_.push_back({chunk, found == held});
  }

  // Whether the page is the dead worker's.
  bool take_note(PageIndex page) {
    const Descriptor& descriptor = segment_.descriptor(page);
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    if (!word.owned() || word.owner() != dead_ || KVTRIE_MUTANT(reap_keeps_pages)) return false;
    pages_.push_back(page);
    if (word.state() == PageState::kPending) {
      index_.prefetch(index_.place_of(descriptor.prefix_hash.load(std::memory_order_relaxed)));
    }
    return true;
  }

  void finish() {
    for (const PageIndex page : pages_) finish_page(segment_, page);
    freed_ += static_cast<std::uint32_t>(pages_.size());
    pages_.clear();
    for (const Chunk& chunk : chunks_) {
      if (!chunk.exact && !KVTRIE_MUTANT(reap_keeps_bitmap)) free_pages_.repair_chunk(chunk.number);
      KVTRIE_CRASH_POINT("reap.before_held");
      segment_.held_count(dead_, chunk.number).store(0, std::memory_order_release);
      KVTRIE_CRASH_POINT("reap.after_chunk");
    }
    chunks_.clear();
  }

  const FreePages& free_pages_;
  const Segment& segment_;
  const StripeIndex index_;
  const WorkerId dead_;
  std::vector<Chunk> chunks_;
  std::vector<PageIndex> pages_;
  std::uint32_t freed_ = 0;
};

std::uint32_t FreePages::recover(WorkerId dead) const {
  const std::uint32_t freed = PagesOfTheDead(*this, dead).give_back();
  segment_.superblock().free_hint.fetch_add(freed, std::memory_order_relaxed);
  return freed;
}

FreeStats FreePages::stats() const {
  FreeStats stats;
  stats.free_bits = count();
  stats.held_of.assign(segment_.slot_count(), 0);
  for (std::uint32_t i = 0; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
      stats.held_of[i] += segment_.held_count(slot, chunk).load(std::memory_order_relaxed);
    }
  }
  return stats;
}

std::uint64_t FreePages::count() const {
  std::uint64_t free = 0;
  for (std::uint32_t chunk = 0; chunk < segment_.chunk_count(); ++chunk) {
    const std::uint64_t bits = segment_.free_bits(chunk).load(std::memory_order_seq_cst);
    if (bits == 0) continue;  // mostly; and popcount is a call in a portable build
    free += static_cast<std::uint64_t>(std::popcount(bits));
  }
  return free;
}

}  // namespace kvtrie
