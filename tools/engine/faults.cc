// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/faults.h"

#include <unistd.h>

#include <csignal>

#include "tools/replay/random.h"

namespace kvtrie::engine {
namespace {

[[noreturn]] void die() {
  for (;;)
    ::kill(::getpid(), SIGKILL);
}

}  // namespace

void Faults::plan(Request& request) const {
  if (board_.record(request.index).attempts.load() != 1) return;
  const RunSettings& settings = board_.settings();
  replay::Random chance(replay::mix64(settings.seed) + request.index);
  const auto stage = static_cast<Stage>(chance.below(kStages));
  // Kills are spread evenly over the requests.
  const std::uint64_t nth = std::uint64_t{request.index} * settings.kills / board_.requests();
  const std::uint64_t next = (std::uint64_t{request.index} + 1) * settings.kills / board_.requests();
  request.kills = nth != next;
  if (request.kills || chance.percent(settings.fail_percent)) request.fault = stage;
}

bool Faults::strike(Stage stage, Request& request) const {
  if (request.fault != stage) return false;
  WorkerTally& tally = board_.tally(worker_);
  const auto at = static_cast<std::size_t>(stage);
  WorkerTally::raise(request.kills ? tally.kills[at] : tally.failures[at], 1);
  if (request.kills) die();
  request.fault = Stage::kNone;
  return true;
}

void Faults::strike_owner(const Request& request) const {
  if (board_.settings().kill_owner == 0 || request.prefilled < request.spec.prompt.size() / 2) return;
  RequestRecord& group = board_.record(request.index / board_.workers() * board_.workers());
  std::uint64_t nobody = 0;
  if (!group.death_ns.compare_exchange_strong(nobody, now_ns())) return;
  WorkerTally::raise(board_.tally(worker_).kills[static_cast<std::size_t>(Stage::kCompute)], 1);
  die();
}

}  // namespace kvtrie::engine
