// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A storm over a replay: workers are killed at random moments (each is replaced at once), others are stopped for
// seconds, kvtried is killed and started again or stopped and let go on, /dev/shm is filled up. The replay itself compares
// every byte meanwhile. What a storm adds: from each death to all given back (DeathWatch), from a start of kvtried to its
// serving, and whether anybody hangs.
//
// One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/replay/death_watch.h"
#include "tools/replay/histogram.h"
#include "tools/replay/observer.h"
#include "tools/replay/options.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/random.h"
#include "tools/replay/shared_plan.h"
#include "tools/replay/small_shm.h"
#include "tools/replay/worker_crew.h"

namespace kvtrie::replay {

struct StormResult {
  std::uint32_t kills = 0;
  std::uint32_t stops = 0;              // of workers
  std::uint32_t coordinator_kills = 0;
  std::uint32_t coordinator_stops = 0;
  std::uint32_t times_full = 0;         // /dev/shm was full
  DeathWatch::Result given_back;        // from the report of a death
  Histogram restarts;                   // of kvtried, from its start to its serving
  std::uint32_t rounds = 1;             // of the workload
};

class Storm {
 public:
  // `shm` may be null. All must outlive it.
  Storm(const ReplayOptions& options, SharedPlan& plan, WorkerCrew& crew, OwnCache& cache, const Observer& observer,
        SmallShm* shm);

  // Does what is due; to be called about every millisecond. What has gone wrong, or nothing.
  std::string step();
  // kvtried serves, and what the dead held is given back.
  [[nodiscard]] bool settled() const { return coordinator_ == Coordinator::kServes && deaths_.pending() == 0; }
  // All kills are done.
  [[nodiscard]] bool over() const { return result_.kills >= options_.storm; }
  [[nodiscard]] StormResult result() const;

 private:
  using Clock = std::chrono::steady_clock;

  // What a worker did by its tally, and since when it has not done more.
  struct Progress {
    std::uint64_t done = 0;
    std::uint32_t life = 0;
    Clock::time_point since;
  };
  struct Stopped {
    std::uint32_t worker;
    std::uint32_t life;
    Clock::time_point until;
  };
  enum class Coordinator : std::uint8_t { kServes, kDead, kStarting, kStopped };

  void kill_and_stop_workers(Clock::time_point now);
  std::string step_coordinator(Clock::time_point now);
  std::string find_hung(Clock::time_point now);
  Clock::time_point after_ms(Clock::time_point now, std::uint64_t first, std::uint64_t last);

  const ReplayOptions& options_;
  SharedPlan& plan_;
  WorkerCrew& crew_;
  OwnCache& cache_;
  SmallShm* const shm_;
  Random chance_;
  DeathWatch deaths_;
  StormResult result_;
  Clock::time_point next_kill_;
  Clock::time_point next_stop_;
  std::vector<Stopped> stopped_;
  std::vector<Progress> progress_;
  Coordinator coordinator_ = Coordinator::kServes;
  Clock::time_point coordinator_next_;  // when its state is to change
  Clock::time_point coordinator_since_;
};

}  // namespace kvtrie::replay
