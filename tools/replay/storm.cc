// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/storm.h"

#include <fmt/format.h>

#include <algorithm>
#include <csignal>

namespace kvtrie::replay {
namespace {

using std::chrono::milliseconds;

// A worker that has done nothing for so long hangs, and so does whoever waits for the pages of the dead.
constexpr auto kHungAfter = std::chrono::seconds(20);
constexpr auto kOverdueAfter = std::chrono::milliseconds(1500);  // of serving
constexpr auto kStartLimit = std::chrono::seconds(20);

}  // namespace

Storm::Storm(const ReplayOptions& options, SharedPlan& plan, WorkerCrew& crew, OwnCache& cache,
             const Observer& observer, SmallShm* shm)
    : options_(options),
      plan_(plan),
      crew_(crew),
      cache_(cache),
      shm_(shm),
      chance_(mix64(options.seed)),
      deaths_(observer.segment(), options.realtime),
      progress_(plan.worker_count()) {
  const auto now = Clock::now();
  next_kill_ = after_ms(now, 20, 200);
  next_stop_ = after_ms(now, 200, 600);
  coordinator_next_ = after_ms(now, 1000, 2000);
  for (Progress& progress : progress_)
    progress.since = now;
}

Storm::Clock::time_point Storm::after_ms(Clock::time_point now, std::uint64_t first, std::uint64_t last) {
  return now + milliseconds(chance_.between(first, last));
}

std::string Storm::step() {
  const auto now = Clock::now();
  if (shm_ != nullptr) shm_->step();
  kill_and_stop_workers(now);
  if (std::string problem = step_coordinator(now); !problem.empty()) return problem;
  if (std::string problem = find_hung(now); !problem.empty()) return problem;
  return deaths_.overdue(kOverdueAfter);
}

StormResult Storm::result() const {
  StormResult result = result_;
  result.given_back = deaths_.result();
  result.rounds = plan_.rounds();
  if (shm_ != nullptr) result.times_full = shm_->times_full();
  return result;
}

void Storm::kill_and_stop_workers(Clock::time_point now) {
  while (!over() && now >= next_kill_) {
    // Evenly distributed around the rate, so that no rhythm of the workers is missed; what was late is made up for.
    next_kill_ += std::chrono::microseconds(chance_.between(0, static_cast<std::uint64_t>(2e6 / options_.kill_rate)));
    const auto victim = crew_.choose(chance_);
    if (!victim) break;
    deaths_.expect(crew_.pid_of(*victim));
    crew_.kill(*victim);
    ++result_.kills;
  }
  if (!over() && now >= next_stop_) {
    next_stop_ = after_ms(now, 500, 1500);
    if (const auto chosen = crew_.choose(chance_)) {
      ::kill(crew_.pid_of(*chosen), SIGSTOP);
      stopped_.push_back({*chosen, crew_.life_of(*chosen), after_ms(now, 1000, 3000)});
      ++result_.stops;
    }
  }
  std::erase_if(stopped_, [&](const Stopped& stopped) {
    if (crew_.life_of(stopped.worker) != stopped.life) return true;  // killed while it was stopped
    if (now < stopped.until && !over()) return false;
    if (const pid_t pid = crew_.pid_of(stopped.worker); pid > 0) ::kill(pid, SIGCONT);
    return true;
  });
}

std::string Storm::step_coordinator(Clock::time_point now) {
  const auto becomes = [&](Coordinator state, std::uint64_t first_ms, std::uint64_t last_ms) {
    coordinator_ = state;
    coordinator_since_ = now;
    coordinator_next_ = after_ms(now, first_ms, last_ms);
  };
  if (coordinator_ != Coordinator::kDead) {
    if (const std::string end = cache_.how_it_ended(); !end.empty()) {
      return fmt::format("kvtried {}\n{}", end, cache_.log());
    }
  }
  switch (coordinator_) {
    case Coordinator::kServes:
      if (now < coordinator_next_ || over()) break;
      deaths_.coordinator_serves(false);
      if (chance_.percent(70)) {
        cache_.kill();
        ++result_.coordinator_kills;
        becomes(Coordinator::kDead, 0, 300);
      } else {
        cache_.stop();
        ++result_.coordinator_stops;
        becomes(Coordinator::kStopped, 200, 1500);
      }
      break;
    case Coordinator::kDead:
      if (now < coordinator_next_) break;
      cache_.start_again();
      // Some are killed while they take over.
      becomes(Coordinator::kStarting, 1, 50);
      if (chance_.percent(80)) coordinator_next_ = now + kStartLimit;
      break;
    case Coordinator::kStarting:
      if (cache_.serves()) {
        result_.restarts.record(static_cast<std::uint64_t>(std::chrono::nanoseconds(now - coordinator_since_).count()));
        becomes(Coordinator::kServes, 1000, 4000);
        deaths_.coordinator_serves(true);
      } else if (now - coordinator_since_ > kStartLimit) {
        return fmt::format("kvtried hangs: started {} s ago, and it does not serve\n{}", kStartLimit.count(),
                           cache_.log());
      } else if (now >= coordinator_next_) {
        cache_.kill();
        ++result_.coordinator_kills;
        becomes(Coordinator::kDead, 0, 20);
      }
      break;
    case Coordinator::kStopped:
      if (now < coordinator_next_) break;
      cache_.go_on();
      becomes(Coordinator::kServes, 1000, 4000);
      deaths_.coordinator_serves(true);
      break;
  }
  return {};
}

std::string Storm::find_hung(Clock::time_point now) {
  for (std::uint32_t worker = 0; worker < plan_.worker_count(); ++worker) {
    std::uint64_t done = 0;
    for (std::size_t i = 0; i < kTallies; ++i)
      done += plan_.tally(worker).get(static_cast<Tally>(i));
    Progress& progress = progress_[worker];
    const bool stopped = std::ranges::any_of(stopped_, [&](const Stopped& one) { return one.worker == worker; });
    const bool ended = crew_.pid_of(worker) == 0;
    if (done != progress.done || crew_.life_of(worker) != progress.life || stopped || ended ||
        coordinator_ != Coordinator::kServes) {
      progress = {done, crew_.life_of(worker), now};
    } else if (now - progress.since > kHungAfter) {
      return fmt::format("worker {} (process {}) hangs: it has done nothing for {} s", worker, crew_.pid_of(worker),
                         kHungAfter.count());
    }
  }
  return {};
}

}  // namespace kvtrie::replay
