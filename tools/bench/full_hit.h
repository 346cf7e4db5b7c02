// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a full hit costs: begin and release of a cached prompt through the plugin, against the floor, a stream over the
// bytes that the begin must compare (descriptor headers and tokens, in the same segment). The two alternate, prompt by
// prompt in one order, so that noise of the machine meets both.
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/prompts.h"

namespace kvtrie::bench {

struct FullHitOptions {
  std::uint64_t pages = 1U << 20;
  std::uint32_t prompt_pages = 2048;
  std::uint32_t rounds = 9;
  std::uint64_t page_bytes = 8;
  bool page_checksums = false;
  std::string plugin;   // path of libkvtrie_worker.so
  std::string kvtried;  // path of the coordinator's program
};

struct FullHitResult {
  std::uint32_t prompts = 0;
  std::uint64_t pages_hit = 0;   // of one round; equal to prompts x prompt_pages, or the run is void
  double fill_ns = 0;            // begin, allocate, publish and release of a fresh prompt, a page; once
  Spread begin_us;               // begin and release of one prompt, one figure a round
  Spread floor_us;
  Spread ratio;                  // round by round
};

// Throws std::runtime_error with what went wrong.
FullHitResult measure_full_hit(const FullHitOptions& options);

}  // namespace kvtrie::bench
