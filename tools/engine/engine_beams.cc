// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The loop's part about texts: the next tokens, and beams that fork and are dropped.

#include <utility>

#include "tools/engine/beam_search.h"
#include "tools/engine/engine_loop.h"

namespace kvtrie::engine {

// The next tokens of all beams. False: there is no room for them to go on.
bool EngineLoop::advance(Request& request) {
  RequestRecord& record = board_.record(request.index);
  if (record.first_token_ns == 0) record.first_token_ns = now_ns() - request.taken_ns;
  std::vector<std::uint64_t> costs;
  std::vector<std::vector<Candidate>> candidates;
  for (Beam& beam : request.beams) {
    costs.push_back(beam.cost);
    candidates.push_back(std::exchange(beam.candidates, {}));
  }
  return continue_beams(request, choose_beams(costs, candidates, request.spec.beams));
}

// Beams that nothing continues are dropped, first of all, since a fork may need their pages. What continues twice is
// forked, before its parent goes on. The texts are there whether or not there is room: a preempted request goes on
// from them.
bool EngineLoop::continue_beams(Request& request, std::span<const NextBeam> chosen) {
  std::vector<Beam>& old = request.beams;
  std::vector<std::uint32_t> uses(old.size());
  for (const NextBeam& next : chosen)
    ++uses[next.parent];
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (uses[i] > 0) continue;
    old[i].sequence = {};
    tally_.add(Count::kBeamsDropped);
  }
  const bool last = old[0].tokens.size() + 1 == request.tokens_at_end();
  bool room = true;
  std::vector<Beam> beams(chosen.size());
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    Beam& parent = old[chosen[i].parent];
    if (--uses[chosen[i].parent] == 0) {
      beams[i] = std::move(parent);  // the last use: no copy
    } else {
      beams[i].tokens = parent.tokens;
      if (!last && room) room = fork(parent, beams[i]);
    }
    beams[i].tokens.push_back(chosen[i].token);
    beams[i].cost = chosen[i].cost;
  }
  for (Beam& beam : beams) {
    if (!last && room) beam.sequence.append(kv::Tokens(&beam.tokens.back(), 1));
  }
  old = std::move(beams);
  return room;
}

bool EngineLoop::fork(Beam& parent, Beam& child) {
  kv::ForkOptions options;
  options.flags = KVTRIE_NO_WAIT;
  kv::Forked forked = parent.sequence.fork(&options);
  if (!forked.outcome) return false;
  child.sequence = std::move(forked.child);
  child.computed = parent.computed;
  load_pages(worker_, child);
  tally_.add(Count::kForks);
  return true;
}

}  // namespace kvtrie::engine
