// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Keeps pages free: watermarks, and the workers that wait for pages.
//
// One pass counts the free pages and evicts down to a target when one is due:
//   fewer than low_pages free      -> until high_pages are free
//   workers want more than is free -> until max(high_pages, what they want together) are free
// and calls waiters, oldest first, as far as the free pages go. While somebody waits it renews the reservation, so that
// requests that did not wait leave the free pages to those who do (states, orders, invariants: shm/waiting.h).
//
// Nobody is waited for (C5, W3):
//   called, and did not come in 5 ms       its pages go to the next waiter; it is called again when it comes
//   did not come round for 200 ms          the same, and its wish binds nobody
//   the oldest for 2 s, and no more pages  the reservation is lifted for 100 ms: whoever finds enough takes them.
//   came free than before                  Requests hold leases while they wait, so two may wait for each other
//
// evictor_busy is 1 while it evicts. A worker that takes pages meanwhile does not ring: the count is made once more
// after the word is 0 again (both sides seq_cst), so a take is seen by one of the two.
//
// Pages of a flushed namespace go as the leases on them fall (rule 18): while some are left, they are looked for again
// and again, the sooner the cheaper a scan is (a tenth of one core at most). What a worker announces in a flushed
// namespace after that goes first when room is made.
//
// Crash: a waiter's wait word and wish stay; the next coordinator's first pass serves them. evictor_busy stays 1 and
// reserved_until what it is, which ends by itself: the next coordinator clears both.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "coordinator/evictor.h"
#include "shm/free_pages.h"
#include "shm/segment.h"
#include "shm/waiting.h"

namespace kvtrie {

struct Watermarks {
  double low_percent = 1;
  double high_percent = 2;
};

struct PassReport {
  std::uint64_t evicted = 0;
  std::uint64_t free = 0;
  std::uint64_t shortfall = 0;  // pages below the target that could not be had
  bool interrupted = false;
};

class RoomKeeper {
 public:
  RoomKeeper(const Segment& segment, Watermarks watermarks);

  PassReport pass(const std::function<bool()>& interrupted);
  // Evicts up to `wanted` pages of the choice now, whatever the watermarks say; a pass is to follow. After the first
  // batch it ends within `time_max`. `left` is what of the choice stayed; not set when a scan was interrupted.
  EvictReport evict(std::uint64_t wanted, const EvictChoice& choice, std::chrono::milliseconds time_max,
                    const std::function<bool()>& interrupted, std::optional<EvictLeft>& left);
  // A namespace was flushed: the next passes take its pages.
  void flushed();
  void set_watermarks(Watermarks watermarks);
  // How long from now the loop may sleep when nobody rings; -1: for ever. Short while somebody waits for pages that could
  // not be had, or pages of a flushed namespace are left (a lease dropped later frees them), doubling up to a second.
  std::int64_t poll_after_ms() const;
  void on_pause(std::function<void(double)> observer) { on_pause_ = std::move(observer); }

 private:
  using Clock = std::chrono::steady_clock;

  struct Waiter {
    std::uint64_t ticket;
    std::uint32_t wanted;
    WorkerId worker;
    std::uint64_t seen;  // when it last came round
    bool sleeps;         // false: asked without waiting
    bool silent;         // has not come round for long
    bool absent;         // silent, or was called and has not come
  };
  // When a slot's waiter was called; if it came round since: not yet.
  struct Call {
    std::uint64_t seen = 0;
    Clock::time_point at;
  };
  // How the oldest waiter's room grows.
  struct Growth {
    Turn oldest;
    std::uint64_t most_free = 0;
    Clock::time_point grew_at;
    Clock::time_point lifted_until;
  };

  std::vector<Waiter> waiters() const;
  std::uint64_t target(std::uint64_t free, const std::vector<Waiter>& waiting) const;
  void reserve(const std::vector<Waiter>& waiting, std::uint64_t free);
  void call(const std::vector<Waiter>& waiting, std::uint64_t free);
  void evict_flushed(const std::function<bool()>& interrupted);
  void plan_next_look(bool again, bool unserved, bool short_of_pages);

  const Segment& segment_;
  FreePages free_pages_;
  Evictor evictor_;
  std::uint64_t low_pages_ = 0;
  std::uint64_t high_pages_ = 0;
  std::optional<Clock::time_point> next_look_;  // none: when somebody rings
  std::int64_t rest_ms_ = 0;
  std::vector<Call> calls_;  // by slot
  Growth growth_;
  std::optional<Clock::time_point> next_flush_look_;  // none: no page of a flushed namespace is left
  std::chrono::nanoseconds flush_rest_{};
  Clock::time_point not_before_{};  // after a fruitless scan, the next one waits a while
  std::function<void(double)> on_pause_ = [](double) {};
};

}  // namespace kvtrie
