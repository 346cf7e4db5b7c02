// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The segment as Prometheus metrics. Reads shared memory only, so it takes nothing from the
// coordinator's loop and may be run by any thread. All names begin with kvtrie_, counters end in
// _total, units are base units.
#pragma once

#include <prometheus/collectable.h>

#include <string>
#include <vector>

#include "metrics/page_census.h"
#include "metrics/pause_histogram.h"
#include "shm/segment.h"

namespace kvtrie {

class SegmentCollector final : public prometheus::Collectable {
 public:
  // All outlive the collector.
  SegmentCollector(const Segment& segment, const PauseHistogram& pauses, std::string version)
      : segment_(segment), pauses_(pauses), version_(std::move(version)), census_(segment) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const Segment& segment_;
  const PauseHistogram& pauses_;
  std::string version_;
  mutable CensusCache census_;
};

}  // namespace kvtrie
