// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/room_keeper.h"

#include <algorithm>
#include <cmath>

#include "shm/futex.h"
#include "shm/mutant.h"

namespace kvtrie {
namespace {

constexpr std::int64_t kRestFirstMs = 2;  // between looks for pages that could not be had
constexpr std::int64_t kRestLastMs = 1000;
constexpr auto kKeptFor = std::chrono::milliseconds(5);  // pages that a waiter was called for
constexpr auto kGrowsIn = std::chrono::seconds(2);  // else the reservation is lifted
constexpr auto kLiftedFor = std::chrono::milliseconds(100);  // two looks of a waiter
// Of a pass, for pages of flushed namespaces; then the others are looked after.
constexpr auto kFlushPart = std::chrono::milliseconds(50);
constexpr int kRoundsAPass = 4;  // then the loop looks at its sockets before it goes on

std::uint64_t share(std::uint64_t pages, double percent) {
  return static_cast<std::uint64_t>(std::ceil(static_cast<double>(pages) * percent / 100));
}

}  // namespace

RoomKeeper::RoomKeeper(const Segment& segment, Watermarks watermarks)
    : segment_(segment), free_pages_(segment), evictor_(segment),
      calls_(segment.slot_count()) {
  Superblock& block = segment_.superblock();
  set_watermarks(watermarks);
  // A coordinator that died may have left pages of a flushed namespace: one look tells.
  for (std::uint32_t id = 0; id < segment_.namespace_count(); ++id) {
    const NamespaceRecord& record = segment_.name_space({static_cast<std::uint16_t>(id)});
    if (record.root_generation.load(std::memory_order_relaxed) > 1 && !KVTRIE_MUTANT(keeper_forgets_flush)) flushed();
  }
  block.evictor_busy.store(0, std::memory_order_seq_cst);
  block.reserved_until.store(0, std::memory_order_relaxed);
}

void RoomKeeper::set_watermarks(Watermarks watermarks) {
  low_pages_ = share(segment_.page_count(), watermarks.low_percent);
  high_pages_ = share(segment_.page_count(), watermarks.high_percent);
  segment_.superblock().low_pages.store(low_pages_, std::memory_order_relaxed);
  segment_.superblock().high_pages.store(high_pages_, std::memory_order_relaxed);
}

// Oldest first; those who asked without waiting come last.
std::vector<RoomKeeper::Waiter> RoomKeeper::waiters() const {
  std::vector<Waiter> waiting;
  const Clock::time_point now = Clock::now();
  const std::uint64_t now_ns = monotonic_ns();
  for (std::uint16_t slot = 1; slot < segment_.slot_count(); ++slot) {
    const WorkerRecord& record = segment_.worker({slot});
    const std::uint32_t wanted = record.pages_wanted.load(std::memory_order_seq_cst);
    if (wanted != 0 && wanted <= segment_.page_count()) {
      const std::uint64_t ticket = record.wait_ticket.load(std::memory_order_relaxed);
      const std::uint64_t seen = record.wait_seen.load(std::memory_order_relaxed);
      const bool silent = !shows_life(record, now_ns);
      const bool late = calls_[slot].seen == seen && now - calls_[slot].at > kKeptFor;
      waiting.push_back({ticket, wanted, {slot}, seen, true, silent, silent || late});
    }
    const std::uint32_t asked = record.pages_asked.load(std::memory_order_seq_cst);
    if (asked != 0 && asked <= segment_.page_count()) {
      waiting.push_back({~std::uint64_t{0}, asked, {slot}, 0, false, false, false});
    }
  }
  std::ranges::sort(waiting, {}, [](const Waiter& w) { return std::pair(w.ticket, w.worker); });
  return waiting;
}

std::uint64_t RoomKeeper::target(std::uint64_t free, const std::vector<Waiter>& waiting) const {
  std::uint64_t wanted = 0;
  std::uint64_t least = 0;  // for one who is absent and still short of pages
  for (const Waiter& waiter : waiting) {
    if (waiter.absent) least = std::max<std::uint64_t>(least, waiter.wanted);
    else wanted = std::min<std::uint64_t>(wanted + waiter.wanted, segment_.page_count());
  }
  wanted = std::max(wanted, least);
  std::uint64_t goal = free < low_pages_ ? std::max(high_pages_, low_pages_) : 0;
  if (wanted > free) goal = std::max({goal, high_pages_, wanted});
  return goal;
}

// Renews the reservation while somebody lives and waits; lifts it for a while when it leads nowhere (W3).
void RoomKeeper::reserve(const std::vector<Waiter>& waiting, std::uint64_t free) {
  AtomicU64& until = segment_.superblock().reserved_until;
  const auto oldest = std::ranges::find_if(
      waiting, [](const Waiter& waiter) { return waiter.sleeps && !waiter.silent; });
  if (oldest == waiting.end()) {
    growth_ = {};
    until.store(0, std::memory_order_relaxed);
    return;
  }
  const Clock::time_point now = Clock::now();
  const Turn turn{oldest->ticket, oldest->worker.value};
  const bool lifted = now < growth_.lifted_until;
  if (turn != growth_.oldest || free > growth_.most_free || lifted) {
    growth_ = {turn, free, now, growth_.lifted_until};
  } else if (now - growth_.grew_at > kGrowsIn) {
    growth_.lifted_until = now + kLiftedFor;
  }
  until.store(now < growth_.lifted_until ? 0 : monotonic_ns() + kReservedForNs,
              std::memory_order_relaxed);
}

void RoomKeeper::call(const std::vector<Waiter>& waiting, std::uint64_t free) {
  std::uint32_t unserved = 0;
  bool in_line = false;  // somebody older waits for more than there is: nobody overtakes it, but one who is absent
  for (const Waiter& waiter : waiting) {
    WorkerRecord& record = segment_.worker(waiter.worker);
    if (!waiter.sleeps) {
      // Asked once, looked after once; if it asks again meanwhile for as many, they are there.
      std::uint32_t asked = waiter.wanted;
      record.pages_asked.compare_exchange_strong(asked, 0, std::memory_order_seq_cst);
      continue;
    }
    Call& call = calls_[waiter.worker.value];
    if (in_line || waiter.wanted > free) {
      in_line = in_line || !waiter.absent;
      ++unserved;
      continue;
    }
    if (!waiter.absent) free -= waiter.wanted;
    if (call.seen != waiter.seen) call = {waiter.seen, Clock::now()};
    record.wait_word.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(record.wait_word);
  }
  segment_.superblock().pages_waiters.store(unserved, std::memory_order_seq_cst);
}

// The time counts from the first batch on: so each call makes progress, however long its scan takes.
EvictReport RoomKeeper::evict(std::uint64_t wanted, const EvictChoice& choice,
                              std::chrono::milliseconds time_max,
                              const std::function<bool()>& interrupted,
                              std::optional<EvictLeft>& left) {
  Superblock& block = segment_.superblock();
  std::optional<Clock::time_point> end;
  block.evictor_busy.store(1, std::memory_order_seq_cst);
  const EvictReport report = evictor_.evict(
      wanted, [&] { return interrupted() || (end && Clock::now() >= *end); },
      [&](double seconds) {
        on_pause_(seconds);
        if (!end) end = Clock::now() + time_max;
      },
      choice);
  block.evictor_busy.store(0, std::memory_order_seq_cst);
  if (!report.interrupted || end) left = evictor_.left();
  return report;
}

void RoomKeeper::flushed() {
  next_flush_look_ = Clock::now();
  flush_rest_ = {};
}

void RoomKeeper::evict_flushed(const std::function<bool()>& interrupted) {
  constexpr auto kRestFirst = std::chrono::milliseconds(kRestFirstMs);
  constexpr auto kRestLast = std::chrono::milliseconds(kRestLastMs);
  constexpr int kRestPerScan = 9;  // so a tenth of one core at most
  const Clock::time_point start = Clock::now();
  std::optional<EvictLeft> left;
  const EvictReport report = evict(segment_.page_count(), {EvictChoice::Of::kFlushed}, kFlushPart,
                                   interrupted, left);
  const Clock::time_point now = Clock::now();
  if (report.interrupted) {
    next_flush_look_ = now;
  } else if (left->all() == 0) {
    next_flush_look_.reset();
  } else {
    flush_rest_ = std::clamp<std::chrono::nanoseconds>(2 * flush_rest_, kRestFirst, kRestLast);
    next_flush_look_ = now + std::max<std::chrono::nanoseconds>(flush_rest_, kRestPerScan * (now - start));
  }
}

PassReport RoomKeeper::pass(const std::function<bool()>& interrupted) {
  Superblock& block = segment_.superblock();
  PassReport report;
  std::vector<Waiter> waiting;
  bool settled = false;
  if (next_flush_look_ && Clock::now() >= *next_flush_look_) evict_flushed(interrupted);
  for (int round = 0; round < kRoundsAPass && !settled && !report.interrupted; ++round) {
    // That somebody waits is said before wishes are read and pages counted: who gives back looks for waiters last, so
    // it rings, or this pass sees its pages and that it does not wait any more.
    waiting = waiters();
    if (const auto sleeping = std::ranges::count_if(waiting, &Waiter::sleeps); sleeping != 0) {
      block.pages_waiters.store(static_cast<std::uint32_t>(sleeping), std::memory_order_seq_cst);
      waiting = waiters();
    }
    // The hint is set right only if nobody took or gave back meanwhile: a take that is overwritten would not ring.
    std::int64_t hinted = block.free_hint.load(std::memory_order_seq_cst);
    report.free = free_pages_.count();
    block.free_hint.compare_exchange_strong(hinted, static_cast<std::int64_t>(report.free),
                                            std::memory_order_seq_cst);
    reserve(waiting, report.free);
    const std::uint64_t goal = target(report.free, waiting);
    report.shortfall = goal > report.free ? goal - report.free : 0;
    const auto start = Clock::now();
    if (report.shortfall == 0 || start < not_before_) {
      settled = true;
      break;
    }

    const std::uint64_t reaps = block.reaps.load(std::memory_order_relaxed);
    block.evictor_busy.store(1, std::memory_order_seq_cst);
    const EvictReport evicted = evictor_.evict_on(report.shortfall, interrupted, on_pause_);
    report.evicted += evicted.evicted;
    report.interrupted = evicted.interrupted;
    block.eviction_passes.fetch_add(1, std::memory_order_relaxed);
    segment_.count(kCoordinatorSlot, Counter::kEvictionPasses);
    // After a reap within its scan it may have kept what only the dead held: the next round scans again.
    const bool fell_short = evicted.evicted < report.shortfall && !evicted.interrupted &&
                            block.reaps.load(std::memory_order_relaxed) == reaps;
    block.eviction_shortfall.store(fell_short ? report.shortfall - evicted.evicted : 0,
                                   std::memory_order_seq_cst);
    block.evictor_busy.store(0, std::memory_order_seq_cst);
    if (fell_short) {
      // Everything else is leased: rest three times as long as the fruitless scan took.
      const auto now = Clock::now();
      not_before_ = now + 3 * (now - start);
      settled = true;
      report.free = free_pages_.count();
      report.shortfall -= evicted.evicted;
    }
  }
  if (report.shortfall == 0) block.eviction_shortfall.store(0, std::memory_order_relaxed);
  call(waiting, report.free);
  const bool unserved = block.pages_waiters.load(std::memory_order_relaxed) != 0;
  plan_next_look(report.interrupted || !settled, unserved, report.shortfall > 0);
  return report;
}

void RoomKeeper::plan_next_look(bool again, bool unserved, bool short_of_pages) {
  if (again || unserved || short_of_pages) {
    rest_ms_ = again ? 0 : rest_ms_ == 0 ? kRestFirstMs : std::min(rest_ms_ * 2, kRestLastMs);
    if (unserved) rest_ms_ = std::min<std::int64_t>(rest_ms_, 64);
    next_look_ = Clock::now() + std::chrono::milliseconds(rest_ms_);
  } else {
    rest_ms_ = 0;
    next_look_.reset();
  }
}

std::int64_t RoomKeeper::poll_after_ms() const {
  std::int64_t poll = -1;
  for (const auto& look : {next_look_, next_flush_look_}) {
    if (!look) continue;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*look - Clock::now()).count();
    const std::int64_t wait = std::max<std::int64_t>(left, 0);
    poll = poll < 0 ? wait : std::min(poll, wait);
  }
  return poll;
}

}  // namespace kvtrie
