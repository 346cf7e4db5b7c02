// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the loop (engine_loop.h) needs of an inference engine. One call: KV of these tokens of these sequences into
// these pages, and what may come next. The loop knows the cache and no model; an engine knows its model and no cache.
//
// Thread safety: one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtrie::engine {

// A next token and what it costs, less is better (as -log of its probability): costs of a text are added.
struct Candidate {
  std::uint32_t token = 0;
  std::uint32_t cost = 0;
};

// One sequence's part of a step.
struct Work {
  std::span<const std::uint32_t> tokens;  // all that the sequence has
  std::span<std::byte* const> pages;      // one a position, for all of tokens[0, end)
  std::uint64_t first = 0;                // KV of tokens[0, first) is in the pages, whoever wrote it
  std::uint64_t end = 0;                  // KV of tokens[first, end) is to be written; first < end
  std::uint32_t wanted = 0;               // candidates for the token at `end`; 0: none
  std::vector<Candidate> candidates;      // result, best first
  // The same in all steps of a sequence that runs, and never used again. For engines that keep KV of their own between
  // steps: of a sequence that they do not know they take it from the pages, as of one that was forked or resumed.
  // 0: none.
  std::uint64_t sequence = 0;
  // For what an engine says of it; the pages' numbers go with `pages`.
  std::uint32_t request = 0xFFFF'FFFF;
  std::span<const std::uint32_t> page_ids{};
};

class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  // A batch of sequences of any lengths, prefill and decode mixed. Reads the KV before `first` from the pages.
  virtual void step(std::span<Work> batch) = 0;
};

}  // namespace kvtrie::engine
