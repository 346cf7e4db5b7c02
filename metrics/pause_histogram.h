// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How long eviction kept pages condemned. Observed by the evictor's thread, read by the scraper's;
// no lock. A snapshot may be one observation behind in its sum; the count is that of its buckets.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvtrie {

class PauseHistogram {
 public:
  // Upper bounds in seconds; one more bucket for what is beyond.
  static constexpr std::array<double, 14> kBounds = {10e-6,  20e-6, 50e-6,  100e-6, 200e-6,
                                                     500e-6, 1e-3,  2e-3,   5e-3,   10e-3,
                                                     20e-3,  50e-3, 100e-3, 1.0};

  struct Snapshot {
    std::array<std::uint64_t, kBounds.size() + 1> buckets{};  // not cumulative
    double sum_seconds = 0;
  };

  void observe(double seconds) {
    const auto place = std::ranges::lower_bound(kBounds, seconds) - kBounds.begin();
    buckets_[static_cast<std::size_t>(place)].fetch_add(1, std::memory_order_relaxed);
    sum_seconds_.fetch_add(seconds, std::memory_order_relaxed);
  }

  Snapshot snapshot() const {
    Snapshot now;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      now.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
    }
    now.sum_seconds = sum_seconds_.load(std::memory_order_relaxed);
    return now;
  }

 private:
  std::array<std::atomic<std::uint64_t>, kBounds.size() + 1> buckets_{};
  std::atomic<double> sum_seconds_{0};
};

}  // namespace kvtrie
