// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Whether the coordinator's loop gets on. It sleeps for as long as nobody needs it, so what tells is how long it has
// been at work without coming round, and not how long ago it last did. Written by the loop, read by any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace kvtrie {

class LoopHealth {
 public:
  // Longer than any of its parts takes: 8,192 pages of a scan, a batch, a start's adoption of 16 M pages.
  static constexpr std::chrono::seconds kStuckAfter{10};

  void sleeps() { since_.store(0, std::memory_order_relaxed); }
  // It begins a piece of work, or ended one of many.
  void works() { since_.store(now(), std::memory_order_relaxed); }
  // Empty: it lives. Else what is wrong, in words.
  std::string problem() const { return problem_at(now()); }
  std::string problem_at(std::int64_t now_ns) const {
    const std::int64_t since = since_.load(std::memory_order_relaxed);
    const std::chrono::nanoseconds busy(now_ns - since);
    if (since == 0 || busy < kStuckAfter) return {};
    return "the loop has been at one piece of work for " +
           std::to_string(std::chrono::duration_cast<std::chrono::seconds>(busy).count()) +
           " s: the process is starved of CPU, or stuck; look at it with gdb or perf, then restart it "
           "(the cache stays)";
  }
  static std::int64_t now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

 private:
  std::atomic<std::int64_t> since_{0};  // CLOCK_MONOTONIC ns; 0: it sleeps
};

}  // namespace kvtrie
