// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What came of a replay: the sums of all workers beside what the cache counted, the verdict, and
// the two forms that it is shown in. The keys of the JSON are only ever added to.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "tools/replay/observer.h"
#include "tools/replay/options.h"
#include "tools/replay/shared_plan.h"
#include "tools/replay/storm.h"

namespace kvtrie::replay {

struct ReplayResult {
  std::array<std::uint64_t, kTallies> sums{};
  std::array<Histogram, kTimings> timings{};
  Observer::Counters counted{};  // by the cache during the replay
  Census census;                 // at the end
  std::uint32_t requests = 0;    // in the workload
  std::uint32_t deaths = 0;
  std::uint64_t uncertain_hits = 0;  // that the dead may have been told and not added
  double seconds = 0;
  bool own_cache = true;
  std::string failure;  // why the replay ended early; empty: it did not
  StormResult storm;     // of a storm; else all zero
  std::string mix_text;  // of a mix: what it did; else empty
  std::string mix_json;

  [[nodiscard]] std::uint64_t sum(Tally tally) const {
    return sums[static_cast<std::size_t>(tally)];
  }
  [[nodiscard]] std::uint64_t count(Counter counter) const {
    return counted[static_cast<std::size_t>(counter)];
  }
  [[nodiscard]] const Histogram& timing(Timing which) const {
    return timings[static_cast<std::size_t>(which)];
  }
};

// Adds up what the workers left in the plan.
void add_tallies(const SharedPlan& plan, ReplayResult& result);

// The exit code, and in `why` what is wrong when it is not 0.
ExitCode judge(const ReplayResult& result, std::string& why);

std::string to_json(const ReplayResult& result, const ReplayOptions& options);
std::string to_text(const ReplayResult& result, const ReplayOptions& options);

}  // namespace kvtrie::replay
