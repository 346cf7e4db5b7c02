// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A request in the loop: its texts (beams), each with the sequence that holds its pages.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "tools/engine/board.h"
#include "tools/engine/engine.h"
#include "tools/engine/workload.h"
#include "worker_plugin/kvtrie_policy.hpp"

namespace kvtrie::engine {

namespace kv = ::kvtrie::client;

struct Beam {
  std::vector<std::uint32_t> tokens;  // prompt and what was generated
  std::uint64_t cost = 0;

  // Of a running request. The sequence knows all tokens.
  kv::Sequence sequence;
  std::vector<std::uint32_t> page_ids;  // by position
  std::vector<std::byte*> pages;        // where they are
  std::uint64_t computed = 0;           // KV of tokens[0, computed) is in the pages
  std::uint32_t borrowed_end = 0;  // positions before that, and not computed: another sequence of the batch may do it
  std::uint64_t step_end = 0;      // what this step computes ends there; 0: it takes no part
  std::vector<Candidate> candidates;  // of this step
};

struct Request {
  std::uint32_t index = 0;
  RequestSpec spec;
  std::vector<Beam> beams;
  std::optional<kv::PendingWait> wait;  // for pages of another process; beams[0] is matched then

  bool preempted = false;   // once at least: from then on it takes pages for all of its text at once
  bool ignores = false;     // what others announce
  std::uint32_t looks = 0;  // begun again, since another process had announced the same pages
  Stage fault = Stage::kNone;
  bool kills = false;  // the fault is its worker's death
  std::uint64_t prefilled = 0;
  std::uint64_t taken_ns = 0;

  [[nodiscard]] std::uint64_t tokens_at_end() const { return spec.prompt.size() + spec.output; }
  [[nodiscard]] bool finished() const { return beams[0].tokens.size() == tokens_at_end(); }
};

using RequestPtr = std::unique_ptr<Request>;

// The page table of the sequence, anew.
void load_pages(const kv::Worker& worker, Beam& beam);
// Releases all sequences: what was published stays cached, the rest is free. The texts stay.
void let_go(Request& request);

// The answer, best beam first.
void record_answer(const Request& request, RequestRecord& record);
// kill_owner: when this wait has ended, if the owner died during it.
void note_wake(const Request& request, Board& board);

}  // namespace kvtrie::engine
