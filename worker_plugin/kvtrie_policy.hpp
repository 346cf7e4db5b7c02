/* SPDX-License-Identifier: Apache-2.0
 * Copyright The kvtrie authors
 *
 * Whether to wait for pages that another process computes: a helper on top of kvtrie.hpp, C++17, header only.
 *
 *   PrefillSpeed   tokens/s, measured by the caller as it computes
 *   WaitPolicy     what begin reported + that speed -> compute, wait so long, or ignore what is announced
 *   PendingWait    one sequence's wait from step to step, for engines that compute other requests meanwhile
 *   wait_while_it_pays        the same, blocking
 *   announced_by_another      after allocate: another process announced the same pages first, so look again
 *
 * The three answers. kCompute: nobody announced what comes next. kWait: the next pages are under way, and waiting is
 * likely to cost less than computing them, too. kIgnore: they are announced, but waiting does not pay; who computes
 * them all the same keeps a private copy (docs/plugin-sequences.md).
 *
 * The arithmetic. From begin or the last look: c cached tokens; p = pending_pages * tokens_per_page announced ones;
 * the age in ticks. Of this wait: w seconds waited, g tokens that came meanwhile. v = own speed; the owner runs the
 * same model on the same host, so v is taken for its speed too, up to a factor:
 *
 *   gain  = p / v                           what computing the announced part would take here
 *   age   = max(0, age_ticks - 1) * tick    it is at least that old: ticks are coarse
 *   limit = slowness * (g + p) / v + grace  how long an owner may be silent before we take over
 *
 *   ignore when (g + p) / v < worth
 *       a short part: sleep, wake-up and begin cost about as much
 *   ignore when age >= slowness * (c + p) / v + grace
 *       an old announcement: its owner should have finished, even if it had all that is cached to compute before. It
 *       is stopped, or has other work
 *   ignore when w >= limit
 *       it is silent, or slow
 *   ignore when g > 0 and (w - grace) * p / g > slowness * gain + grace
 *       at the speed at which pages came, the rest takes too long
 *   else wait, at most limit - w, and look again after gain / 8 (1 to 250 ms), or sooner: when the rule before this one
 *       would say no if nothing else came until then
 *
 * What a wrong guess costs: an owner that never comes costs one limit, slowness * gain + grace at most; one that is
 * slow but publishes is found out at its first pages, or grace later at most. Not before: until then it looks as one
 * does that is as fast as we and publishes all at its end (WaitPolicyTest.ASlowOwnerCostsWhatCannotBeKnown). An owner
 * that dies costs no time-out: the wait ends when the coordinator has taken its pages back, and KVTRIE_OK says that the
 * pages are this sequence's to allocate. Then, and after every allocate, several may announce at once: the first is the
 * next owner, and announced_by_another() tells the others, who release and begin again, to wait for that one. The same
 * look catches a begin that came while an owner was announcing page by page, and saw a short part of what was to come;
 * it has a millisecond to announce the rest.
 *
 * Defaults: slowness 2 (the owner computes a batch beside), grace 20 ms, worth 2 ms (a wake-up takes up to 0.1 ms on
 * an idle host, much more on a busy one), at most 30 s.
 *
 * Units: tokens, seconds (double) and where it says _ms milliseconds. Threads: PrefillSpeed and PendingWait belong to
 * one thread at a time; WaitPolicy is constant. Costs: arithmetic, no call but where it says so.
 */
#ifndef KVTRIE_POLICY_HPP
#define KVTRIE_POLICY_HPP

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "kvtrie.hpp"

namespace kvtrie {
namespace client {

/* A running estimate, the mean of the speeds reported: each weighs with its tokens (by duration, one step that the
 * host held up would outweigh many), and a tenth less with each later one. An engine that warms up reports that, so
 * that its first decision is not made on a guess. */
class PrefillSpeed {
 public:
  /* `assumed` until something was measured. Too low a guess waits longer than it should, once. */
  explicit PrefillSpeed(double assumed_tokens_per_s = 2000) noexcept : assumed_(assumed_tokens_per_s) {}
  /* After a step that was mostly prefill. Reports without tokens or time are ignored. */
  void computed(std::uint64_t tokens, double seconds) noexcept {
    if (tokens == 0 || !(seconds > 0)) return;
    const auto weight = static_cast<double>(tokens);
    weights_ = kKept * weights_ + weight;
    speeds_ = kKept * speeds_ + weight * (weight / seconds);
  }
  double tokens_per_s() const noexcept { return weights_ > 0 ? speeds_ / weights_ : assumed_; }

 private:
  static constexpr double kKept = 0.9;
  double assumed_;
  double weights_ = 0;
  double speeds_ = 0; /* weighted */
};

struct WaitOptions {
  double slowness = 2;     /* the owner may be so many times slower than we */
  double grace_ms = 20;    /* and so much late */
  double worth_ms = 2;     /* announced parts that take less are computed */
  double limit_ms = 30000; /* no wait is longer */
};

enum class Choice { kCompute, kWait, kIgnore };

struct Advice {
  Choice choice = Choice::kCompute;
  std::uint32_t wait_ms = 0; /* kWait: at most so long in all, from now */
  std::uint32_t look_ms = 0; /* kWait: look and ask again after that: time_ms of wait_pending; 1 or more */
};

/* What a wait has brought so far. */
struct WaitedSoFar {
  std::uint64_t tokens = 0; /* cached now and not before */
  double seconds = 0;
};

class WaitPolicy {
 public:
  explicit WaitPolicy(const kvtrie_geometry& geometry, const WaitOptions& options = {}) noexcept
      : page_tokens_(geometry.tokens_per_page),
        tick_s_(static_cast<double>(geometry.tick_ns) * 1e-9),
        options_(options) {}

  Advice advise(const kvtrie_begin_result& now, double tokens_per_s, const WaitedSoFar& so_far = {}) const noexcept {
    if (now.pending_pages == 0) return {};
    const Advice ignore{Choice::kIgnore, 0, 0};
    if (!(tokens_per_s > 0)) return ignore;
    const double announced = static_cast<double>(now.pending_pages) * page_tokens_;
    const double came = static_cast<double>(so_far.tokens);
    const double gain = announced / tokens_per_s;
    const double grace = options_.grace_ms * 1e-3;
    if (!is_worth_waiting_for(came + announced, tokens_per_s)) return ignore;
    const double age = now.pending_age_ticks > 1 ? (now.pending_age_ticks - 1) * tick_s_ : 0;
    const double whole = (static_cast<double>(now.cached_tokens) + announced) / tokens_per_s;
    if (age >= options_.slowness * whole + grace) return ignore;
    const double limit =
        std::min(options_.slowness * (came + announced) / tokens_per_s + grace, options_.limit_ms * 1e-3);
    if (so_far.seconds >= limit) return ignore;
    const double too_slow = grace + (options_.slowness * gain + grace) * came / announced;
    if (came > 0 && so_far.seconds > too_slow) return ignore;
    const std::uint32_t wait_ms = whole_ms(limit - so_far.seconds);
    std::uint32_t look_ms = std::min({whole_ms(gain / 8), wait_ms, kLookMs});
    if (came > 0) look_ms = std::min(look_ms, whole_ms(too_slow - so_far.seconds));
    return {Choice::kWait, wait_ms, look_ms};
  }
  /* Long enough to look whether somebody else computes it. */
  bool is_worth_waiting_for(double tokens, double tokens_per_s) const noexcept {
    return tokens / tokens_per_s >= options_.worth_ms * 1e-3;
  }

 private:
  static constexpr std::uint32_t kLookMs = 250;
  /* Rounded up: 0 would only look. */
  static std::uint32_t whole_ms(double seconds) noexcept {
    const double ms = seconds * 1e3;
    return ms >= 4e9 ? 4000000000u : static_cast<std::uint32_t>(ms) + 1;
  }

  std::uint32_t page_tokens_;
  double tick_s_;
  WaitOptions options_;
};

/* The wait of one sequence that begin() has matched. Ask advise(); while it says kWait, look() at most so often. */
class PendingWait {
 public:
  explicit PendingWait(const BeginResult& begun) noexcept : now_(begun), cached_first_(begun.cached_tokens) {}

  const BeginResult& result() const noexcept { return now_; }
  double seconds() const noexcept { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  Advice advise(const WaitPolicy& policy, double tokens_per_s) const noexcept {
    return policy.advise(now_, tokens_per_s, {now_.cached_tokens - cached_first_, seconds()});
  }
  /* Sequence::wait_pending, whose result is remembered; time_ms 0 does not sleep. KVTRIE_E_TIMEOUT is the usual
   * answer. KVTRIE_E_FULL, KVTRIE_E_FLUSHED: the wait is over, and advise() would not know. */
  Outcome look(Sequence& sequence, std::uint32_t time_ms) {
    const Waited waited = sequence.wait_pending(time_ms);
    if (waited.outcome || waited.outcome == KVTRIE_E_TIMEOUT) now_ = waited.result;
    return waited.outcome;
  }

 private:
  using Clock = std::chrono::steady_clock;
  BeginResult now_;
  std::uint64_t cached_first_;
  Clock::time_point start_ = Clock::now();
};

struct WaitedWhile {
  Choice last = Choice::kCompute; /* kIgnore: it stopped to pay; allocate and compute */
  Outcome outcome = KVTRIE_OK;    /* KVTRIE_E_FULL, KVTRIE_E_FLUSHED: of wait_pending */
  BeginResult result;             /* what is matched now */
};

/* Between begin and allocate: sleeps as long as it is likely to pay. Also of the result of a begin with nothing
 * pending, which it returns at once. `was_second`: announced_by_another() said so, and this is the look after that:
 * the first one may still be announcing, so what is short now gets a millisecond to grow. */
inline WaitedWhile wait_while_it_pays(Sequence& sequence, const BeginResult& begun, const WaitPolicy& policy,
                                      double tokens_per_s, bool was_second = false) {
  PendingWait wait(begun);
  for (;; was_second = false) {
    if (was_second && wait.advise(policy, tokens_per_s).choice == Choice::kIgnore) {
      if (const Outcome outcome = wait.look(sequence, 1); !outcome && outcome != KVTRIE_E_TIMEOUT) {
        return {Choice::kIgnore, outcome, wait.result()};
      }
    }
    const Advice advice = wait.advise(policy, tokens_per_s);
    if (advice.choice != Choice::kWait) return {advice.choice, KVTRIE_OK, wait.result()};
    const Outcome outcome = wait.look(sequence, advice.look_ms);
    if (!outcome && outcome != KVTRIE_E_TIMEOUT) return {Choice::kIgnore, outcome, wait.result()};
  }
}

/* After allocate or prepare, of a sequence that knows `known_tokens`: its next page is full, and yet private: in all
 * likelihood another process announced (or published) the same page between begin and allocate. Release the sequence,
 * or give its pages back, and match again: then begin reports what is under way. Once or twice, since a page is
 * private also when a lock was busy. Not for sequences with KVTRIE_NO_PUBLISH. One call of the plugin. */
inline bool announced_by_another(const Sequence& sequence, std::uint64_t known_tokens,
                                 std::uint32_t tokens_per_page) {
  kvtrie_own_page first{};
  if (sequence.own_pages(Span<kvtrie_own_page>(&first, 1)) == 0) return false;
  return first.state == KVTRIE_PAGE_PRIVATE && (std::uint64_t{first.position} + 1) * tokens_per_page <= known_tokens;
}

}  // namespace client
}  // namespace kvtrie

#endif
