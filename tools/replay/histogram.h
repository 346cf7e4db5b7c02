// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Latencies in nanoseconds, in a fixed number of log-linear buckets: 64 a power of two, so a
// bucket is at most 1/64 of its value wide and its middle at most 0.8 % away from what was
// recorded.
//
// Trivially copyable and without pointers: a worker process keeps one in memory shared with the
// process that started it, which merges them when the worker has ended. All bytes zero is an empty
// histogram. One writer at a time, no atomics: it is to be read when the writer is done.
//
// 18 KiB. Values from 2^40 ns (18 minutes) upwards share the last bucket; max() is exact.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvtrie::replay {

class Histogram {
 public:
  static constexpr unsigned kSubBits = 6;
  static constexpr std::uint64_t kSubBuckets = std::uint64_t{1} << kSubBits;
  static constexpr unsigned kValueBits = 40;
  static constexpr std::size_t kBuckets = (kValueBits - kSubBits + 1) * kSubBuckets;

  constexpr void record(std::uint64_t value_ns) {
    ++buckets_[bucket_of(value_ns)];
    ++count_;
    sum_ns_ += value_ns;
    max_ns_ = std::max(max_ns_, value_ns);
  }

  constexpr void merge(const Histogram& other) {
    for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
      buckets_[bucket] += other.buckets_[bucket];
    }
    count_ += other.count_;
    sum_ns_ += other.sum_ns_;
    max_ns_ = std::max(max_ns_, other.max_ns_);
  }

  [[nodiscard]] constexpr std::uint64_t count() const { return count_; }
  [[nodiscard]] constexpr std::uint64_t max() const { return max_ns_; }
  [[nodiscard]] constexpr double mean() const {
    return count_ == 0 ? 0.0 : static_cast<double>(sum_ns_) / static_cast<double>(count_);
  }

  // The smallest value such that `percent` (0..100) of all are not above it, by nearest rank, to
  // the middle of its bucket. 0 when nothing was recorded.
  [[nodiscard]] constexpr std::uint64_t percentile(double percent) const {
    if (count_ == 0) return 0;
    const double wanted = std::clamp(percent, 0.0, 100.0) / 100.0 * static_cast<double>(count_);
    std::uint64_t rank = static_cast<std::uint64_t>(wanted);
    if (static_cast<double>(rank) < wanted) ++rank;
    rank = std::clamp<std::uint64_t>(rank, 1, count_);
    if (rank == count_) return max_ns_;
    std::uint64_t below = 0;
    for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
      below += buckets_[bucket];
      if (below >= rank) return std::min(middle_of(bucket), max_ns_);
    }
    return max_ns_;
  }

 private:
  // Values below 64 have a bucket each. Above, the highest bit chooses a row of 64 buckets and the
  // six bits below it the bucket in the row.
  static constexpr std::size_t bucket_of(std::uint64_t value) {
    value = std::min(value, (std::uint64_t{1} << kValueBits) - 1);
    if (value < kSubBuckets) return static_cast<std::size_t>(value);
    const unsigned shift = static_cast<unsigned>(std::bit_width(value)) - 1 - kSubBits;
    return static_cast<std::size_t>((shift + 1) * kSubBuckets + (value >> shift) - kSubBuckets);
  }

  static constexpr std::uint64_t middle_of(std::size_t bucket) {
    if (bucket < kSubBuckets) return bucket;
    const unsigned shift = static_cast<unsigned>(bucket / kSubBuckets) - 1;
    const std::uint64_t first = (kSubBuckets + bucket % kSubBuckets) << shift;
    return first + ((std::uint64_t{1} << shift) - 1) / 2;
  }

  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
  std::uint64_t sum_ns_ = 0;
  std::uint64_t max_ns_ = 0;
};

static_assert(std::is_trivially_copyable_v<Histogram> && std::is_standard_layout_v<Histogram>,
              "it lies in memory that processes share");

}  // namespace kvtrie::replay
