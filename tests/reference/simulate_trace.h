// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the cache does with a trace when one worker serves one request after the other: begin,
// allocate pages for prompt and answer, publish the prompt's pages, let the evictor finish,
// release. The same rules as SequentialCache, written a second time for speed (10 M pages in
// seconds); the tests of this folder compare the two.
//
// Pages are told apart by parent and a 64-bit hash of their tokens. A request whose allocation
// fails publishes nothing and is released; its hit counts.
#pragma once

#include <cstdint>
#include <span>

#include "tools/replay/trace.h"

namespace kvtrie::reference {

struct SimulationOptions {
  std::uint32_t pages = 0;
  std::uint32_t tokens_per_page = 16;
  std::uint32_t low_percent = 1;
  std::uint32_t high_percent = 2;
  std::uint32_t namespaces = 1;  // see replay::namespace_of_request
  // On: a page stamped in this millisecond is not stamped by another begin in it.
  bool touch_once_a_tick = false;
};

struct SimulationResult {
  std::uint64_t pages_hit = 0;
  std::uint64_t pages_total = 0;  // full pages of all prompts
  std::uint64_t blocks_hit = 0;   // blocks all of whose pages were hit
  std::uint64_t blocks_total = 0;
  std::uint64_t evictions = 0;
  std::uint64_t failed_allocations = 0;
  std::uint64_t pages_allocated = 0;

  [[nodiscard]] double hit_ratio_blocks() const {
    return blocks_total == 0 ? 0.0
                             : static_cast<double>(blocks_hit) / static_cast<double>(blocks_total);
  }
  friend bool operator==(const SimulationResult&, const SimulationResult&) = default;
};

[[nodiscard]] SimulationResult simulate_trace(std::span<const replay::Request> requests,
                                              const SimulationOptions& options);

}  // namespace kvtrie::reference
