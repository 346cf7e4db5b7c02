// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The worker processes of a replay, as their parent sees them: started, watched, killed and started
// again where that was asked for, and ended when something goes wrong.
//
// Hits of a begin whose worker was killed before it could add them are counted by the cache alone:
// uncertain_hits() is the most that these can be.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tools/replay/child_process.h"
#include "tools/replay/random.h"
#include "tools/replay/shared_plan.h"

namespace kvtrie::replay {

class WorkerCrew {
 public:
  // `program` is kvtrie-replay itself.
  WorkerCrew(SharedPlan& plan, std::string program);
  WorkerCrew(const WorkerCrew&) = delete;
  WorkerCrew& operator=(const WorkerCrew&) = delete;
  ~WorkerCrew();  // ends those that still run

  // Starts all and returns when all have ended: why the replay failed, or nothing. Those that were killed by kill() are
  // started again at once. `watch` is called after each look at them, that is after `look` at the latest; a text from
  // it ends the replay. May be called again.
  std::string run(Signals& signals, std::chrono::milliseconds look, const std::function<std::string()>& watch);

  // One that runs and is not being killed.
  std::optional<std::uint32_t> choose(Random& chance) const;
  [[nodiscard]] pid_t pid_of(std::uint32_t worker) const { return members_[worker].pid; }
  // How often it was started: another number is another process.
  [[nodiscard]] std::uint32_t life_of(std::uint32_t worker) const { return members_[worker].lives; }
  void kill(std::uint32_t worker);

  [[nodiscard]] std::uint32_t deaths() const { return deaths_; }
  [[nodiscard]] std::uint64_t uncertain_hits() const { return uncertain_hits_; }

 private:
  struct Member {
    pid_t pid = 0;  // 0: has ended
    std::uint32_t lives = 0;
    bool killed = false;  // by us
  };

  void start(std::uint32_t worker);
  void collect_ended();
  void judge_end(std::uint32_t worker, int wait_status);
  void end_all();
  [[nodiscard]] bool anybody_runs() const;

  SharedPlan& plan_;
  const std::string program_;
  std::vector<Member> members_;
  std::uint32_t deaths_ = 0;
  std::uint64_t uncertain_hits_ = 0;
  std::string failure_;
};

}  // namespace kvtrie::replay
