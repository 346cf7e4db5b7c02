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

  // Until all have ended. Kills one `kills` times on the way. `watch` is called several times a
  // second; a text from it ends the replay. Returns why the replay failed, or nothing.
  std::string run(Signals& signals, std::uint32_t kills, std::uint64_t seed,
                  const std::function<std::string()>& watch);

  [[nodiscard]] std::uint32_t deaths() const { return deaths_; }
  [[nodiscard]] std::uint64_t uncertain_hits() const { return uncertain_hits_; }

 private:
  struct Member {
    pid_t pid = 0;  // 0: has ended
    std::uint32_t incarnation = 0;
    bool killed = false;  // by us
  };

  void start(std::uint32_t worker);
  void collect_ended();
  void judge_end(std::uint32_t worker, int wait_status);
  void kill_one();
  void end_all();
  [[nodiscard]] bool anybody_runs() const;

  SharedPlan& plan_;
  const std::string program_;
  std::vector<Member> members_;
  Random chance_{0};
  std::uint32_t deaths_ = 0;
  std::uint64_t uncertain_hits_ = 0;
  std::string failure_;
};

}  // namespace kvtrie::replay
