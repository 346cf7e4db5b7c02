// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What figures are made of: several measurements of one thing, and candidates measured in turn, so that noise of the
// machine meets all of them.
#pragma once

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

#include "tools/warm/warm_memory.h"

namespace kvtrie::bench {

struct Spread {
  double minimum = 0;
  double median = 0;
  double maximum = 0;
};

inline Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::ranges::sort(values);
  return {values.front(), values[values.size() / 2], values.back()};
}

inline double now_ns() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of the calling thread's time on a processor: what others take of it does not count.
inline double thread_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

template <typename Work>
double time_ns(Work&& work, double (*now)() = now_ns) {
  const double start = now();
  work();
  return now() - start;
}

// Of one call: the median over batches of calls, so that the few which the machine holds up do not decide (warm.h).
template <typename Call>
double call_ns(std::size_t calls, std::size_t batch, Call&& call, double (*now)() = now_ns) {
  std::vector<double> batches;
  for (std::size_t i = 0; i < calls;) {
    const std::size_t first = i;
    const double ns = time_ns(
        [&] {
          for (; i < std::min(calls, first + batch); ++i) call(i);
        },
        now);
    batches.push_back(ns / static_cast<double>(i - first));
  }
  return spread_of(std::move(batches)).median;
}

// By candidate, by round: what each returned. The first round warms up and is left out.
using Rounds = std::vector<std::vector<double>>;

// Calls the candidates in turn, one after the other, `rounds` times and once before, each with its memory warm.
inline Rounds alternate(std::uint32_t rounds, const std::vector<std::function<double()>>& candidates) {
  Rounds results(candidates.size());
  for (std::uint32_t round = 0; round <= rounds; ++round) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      warm_memory();
      const double result = candidates[i]();
      if (round > 0) results[i].push_back(result);
    }
  }
  return results;
}

// Round by round.
inline Spread ratio_of(const std::vector<double>& values, const std::vector<double>& to) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(values.size(), to.size()); ++i) ratios.push_back(values[i] / to[i]);
  return spread_of(std::move(ratios));
}

}  // namespace kvtrie::bench
