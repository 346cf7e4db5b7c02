// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Caches that were used for long: requests served under eviction until all pages were taken many times, and how the
// pages lie then.
#pragma once

#include <cstdint>
#include <string>

#include "shm/segment.h"
#include "tools/bench/sections.h"
#include "tools/replay/own_cache.h"

namespace kvtrie::bench {

// Over all Live pages: how many on average stand one behind the other, each the child of the page before it. 0 when
// there are none. Each page is looked at once, so beside others that write it is about right.
double mean_run_length(const Segment& segment);

struct Ageing {
  std::uint32_t workers = 1;
  std::uint64_t requests = 0;  // of the trace (all, if it has fewer), or generated
  std::uint64_t seed = 1;
  std::uint64_t lap = 0;  // of the trace: other prompts in each
};

struct Aged {
  double hit_ratio = 0;   // of the trace's blocks
  double run_length = 0;  // mean_run_length
  double turnovers = 0;   // pages evicted, by the pages of the cache
};

// Has kvtrie-replay serve the requests on the cache (its worker slots and clock are its own). Throws
// std::runtime_error when that fails.
Aged age(const Settings& settings, const Ageing& ageing, const replay::OwnCache& cache);

}  // namespace kvtrie::bench
