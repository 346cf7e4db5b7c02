// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/prefault_collector.h"

#include <prometheus/metric_family.h>

namespace kvtrie {
namespace {

prometheus::MetricFamily gauge(const char* name, const char* help, std::uint64_t value) {
  prometheus::ClientMetric metric;
  metric.gauge.value = static_cast<double>(value);
  return {name, help, prometheus::MetricType::Gauge, {std::move(metric)}};
}

}  // namespace

std::vector<prometheus::MetricFamily> PrefaultCollector::Collect() const {
  const Bytes bytes = read_();
  return {gauge("kvtrie_prefaulted_bytes",
                "Memory of segment and pools made ready in the background.", bytes.done),
          gauge("kvtrie_prefault_goal_bytes", "Memory that --prefault makes ready; 0 without it.",
                bytes.total)};
}

}  // namespace kvtrie
