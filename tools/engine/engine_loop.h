// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// An engine's scheduling loop with continuous batching on a shared prefix cache: what to do with the plugin's calls,
// and with their answers. On kvtrie.hpp and kvtrie_policy.hpp alone.
//
//   queue_ --admit--> running_ --step--> finished
//     |  \               |
//     |   waiting_       +-- preempt: its pages are needed by an older request; back to the queue's front
//     |   (pages that another process computes)
//     +-- begin, prepare_batch
//
// Rules that keep several such loops on one small pool from deadlock and from wrong text
//   1 Who waits for pages holds none: prepare_batch gives everything back while it waits, and it waits only when
//     nothing is running and nothing waits for other processes. With something running, pages come from its end.
//   2 A running request that needs one more page never waits: the youngest running request is preempted, itself if
//     it is that. A preempted request takes the pages of its whole text at once, so it need not grow again.
//   3 A request that waits for another process's pages holds what is matched, for a bounded time, and takes no page.
//   4 Pages are published behind the step that wrote them, never before.
//   5 The last known token is never matched: somebody has to compute it, or there is no next token.
//   6 Pages that another sequence of the batch computes are read when that one has computed them.
//
// Thread safety: one thread.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "tools/engine/board.h"
#include "tools/engine/engine.h"
#include "tools/engine/faults.h"
#include "tools/engine/request.h"

namespace kvtrie::engine {

struct NextBeam;

class EngineLoop {
 public:
  // `number`: of this worker; `measured`: at warm-up. All else must outlive it. Calls throw kv::Error for what an
  // engine cannot expect.
  EngineLoop(const kv::Worker& worker, kvtrie_namespace name_space, Engine& engine, Board& board,
             std::uint32_t number, const kv::PrefillSpeed& measured);

  // Until all requests of the board are finished, by whomever, or it is asked to stop.
  void run();

 private:
  // One beam in a step.
  struct Part {
    Request* request;
    Beam* beam;
  };

  void take_requests();

  // From the queue to running_.
  void admit();
  bool wait_pays(RequestPtr& request);
  kv::Outcome prepare(std::span<RequestPtr> group, bool may_wait);
  void start(Beam& beam, kv::Sequence sequence, std::uint64_t cached, std::uint64_t shared);
  void run_or_look_again(RequestPtr request);
  void look_at_waiting(bool may_sleep);
  void end_wait(RequestPtr request);

  // One step of the engine.
  void step();
  void make_room();
  bool grow(Request& request, Beam& beam);
  void skip_what_others_computed(Beam& beam);
  bool is_computed_by_another(const Beam& beam, std::uint32_t position) const;
  void plan(std::vector<Part>& parts, std::vector<Work>& works);
  std::uint64_t plan_beam(Request& request, Beam& beam, std::uint64_t end, std::vector<Part>& parts,
                          std::vector<Work>& works);
  void compute(std::span<const Part> parts, std::span<Work> works);
  void publish();
  bool advance(Request& request);
  bool continue_beams(Request& request, std::span<const NextBeam> chosen);
  bool fork(Beam& parent, Beam& child);

  // Back to the queue, or away.
  void preempt(RequestPtr request);
  void abort(RequestPtr request);
  void finish(RequestPtr request);
  void remove_failed(Stage stage);

  [[nodiscard]] std::uint64_t tokens_wanted(const Request& request, const Beam& beam) const;
  [[nodiscard]] bool sabotages(Sabotage kind, const Request& request) const;

  const kv::Worker& worker_;
  const kvtrie_namespace name_space_;
  Engine& engine_;
  Board& board_;
  const RunSettings& settings_;
  const std::uint32_t number_;
  const kv::Geometry geometry_;
  const std::uint32_t page_tokens_;
  const kv::WaitPolicy policy_;
  const Faults faults_;
  WorkerTally& tally_;
  kv::PrefillSpeed speed_;

  std::uint32_t steps_until_admit_ = 0;
  std::deque<RequestPtr> queue_;
  std::vector<RequestPtr> waiting_;
  std::vector<RequestPtr> running_;  // oldest first
};

}  // namespace kvtrie::engine
