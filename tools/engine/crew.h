// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The worker processes of a run, as their parent sees them: started, replaced when they were killed as planned, and
// ended when something goes wrong.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tools/engine/board.h"
#include "tools/replay/child_process.h"

namespace kvtrie::engine {

class Crew {
 public:
  // `program` is kvtrie-engine itself.
  Crew(Board& board, std::string program) : board_(board), program_(std::move(program)), members_(board.workers()) {}
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() { end_all(); }

  // Starts all and returns when all have ended: why the run failed, or nothing. `watch` is asked again and again.
  std::string run(replay::Signals& signals, std::chrono::seconds stall, const std::function<std::string()>& watch);

 private:
  struct Member {
    pid_t pid = 0;  // 0: has ended
    std::uint64_t deaths = 0;
  };

  void start(std::uint32_t worker);
  std::string collect_ended();
  std::string judge_end(std::uint32_t worker, int wait_status);
  void end_all();
  [[nodiscard]] bool anybody_runs() const;
  [[nodiscard]] std::uint64_t progress() const;

  Board& board_;
  const std::string program_;
  std::vector<Member> members_;
};

}  // namespace kvtrie::engine
