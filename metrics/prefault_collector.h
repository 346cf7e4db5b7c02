// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How far `kvtried --prefault` has come, as two gauges; both 0 without it.
#pragma once

#include <prometheus/collectable.h>

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace kvtrie {

class PrefaultCollector final : public prometheus::Collectable {
 public:
  struct Bytes {
    std::uint64_t done = 0;
    std::uint64_t total = 0;
  };
  // `read` is called by the metrics server's threads.
  explicit PrefaultCollector(std::function<Bytes()> read) : read_(std::move(read)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  std::function<Bytes()> read_;
};

}  // namespace kvtrie
