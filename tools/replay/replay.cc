// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/replay.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "tools/replay/child_process.h"
#include "tools/replay/generator.h"
#include "tools/replay/mix_content.h"
#include "tools/replay/mix_report.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/progress_bar.h"
#include "tools/replay/report.h"
#include "tools/replay/small_shm.h"
#include "tools/replay/storm.h"
#include "tools/replay/worker_crew.h"

namespace kvtrie::replay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::milliseconds(100);
constexpr auto kLookToKill = std::chrono::milliseconds(1);
constexpr auto kRestLimit = std::chrono::seconds(5);
constexpr int kLapShift = 40;  // ids of a trace are smaller

struct UsageError {
  std::string text;
};

std::vector<Request> load_workload(const ReplayOptions& options) {
  if (options.trace.empty()) {
    std::vector<Request> requests = generate(options.generate, options.seed);
    if (requests.size() > options.limit) requests.resize(options.limit);
    return requests;
  }
  TraceResult trace = read_trace_file(options.trace, options.limit);
  if (!trace.ok()) throw UsageError{trace.error};
  if (trace.requests.empty()) throw UsageError{fmt::format("{}: holds no request", options.trace)};
  // Some traces count from 1970: what matters is the time since their first request.
  const std::uint64_t first = trace.requests.front().timestamp_ms;
  for (Request& request : trace.requests) {
    request.timestamp_ms -= first;
    for (std::uint64_t& id : request.hash_ids)
      id += options.lap << kLapShift;
  }
  return std::move(trace.requests);
}

// An existing cache has its own geometry; what was asked for must be that.
void adopt_geometry(const Geometry& there, ReplayOptions& options) {
  const auto agree = [](bool given, std::uint64_t asked, std::uint64_t has, const char* flag) {
    if (given && asked != has) {
      throw UsageError{fmt::format("{} {}: the cache has {}", flag, asked, has)};
    }
  };
  const Geometry& asked = options.geometry;
  agree(options.pages_given, asked.pages, there.pages, "--pages");
  agree(options.tokens_per_page_given, asked.tokens_per_page, there.tokens_per_page,
        "--tokens-per-page");
  agree(options.page_bytes_given, asked.page_bytes, there.page_bytes, "--page-bytes");
  agree(options.planes_given, asked.planes, there.planes, "--planes");
  if (options.namespaces > there.namespaces) {
    throw UsageError{fmt::format("--namespaces {}: the cache has places for {}", options.namespaces, there.namespaces)};
  }
  options.geometry = there;
  if (!options.mix) return;
  if (const std::string problem = PageShape::problem(there.page_bytes, there.tokens_per_page); !problem.empty()) {
    throw UsageError{problem};
  }
}

template <std::size_t N>
void put_text(char (&field)[N], const std::string& text, const char* what) {
  if (text.size() >= N) throw UsageError{fmt::format("{}: longer than {} bytes", what, N - 1)};
  std::memcpy(field, text.c_str(), text.size() + 1);
}

PlanSettings settings_of(const ReplayOptions& options, const std::string& cache,
                         const std::string& directory, const std::string& plugin) {
  PlanSettings settings{};
  put_text(settings.cache, cache, "--cache");
  put_text(settings.directory, directory, "--dir");
  put_text(settings.plugin, plugin, "--plugin");
  settings.in_flight = options.in_flight;
  settings.namespaces = options.namespaces;
  settings.sequential = options.sequential() ? 1 : 0;
  settings.seed = options.seed;
  settings.speed = options.speed;
  settings.check_percent = options.check_percent;
  settings.mix = options.mix ? 1 : 0;
  settings.mix_seed = options.mix_seed;
  return settings;
}

std::string note_of(const SharedPlan& plan) {
  std::uint64_t asked = 0;
  std::uint64_t hit = 0;
  std::uint64_t wrong = 0;
  for (std::uint32_t worker = 0; worker < plan.worker_count(); ++worker) {
    asked += plan.tally(worker).get(Tally::kBlocksAsked);
    hit += plan.tally(worker).get(Tally::kBlocksHit);
    wrong += plan.tally(worker).get(Tally::kWrongPages);
  }
  return fmt::format("hit ratio {:.3f}, wrong pages {}",
                     asked == 0 ? 0.0 : static_cast<double>(hit) / static_cast<double>(asked),
                     wrong);
}

void write_json(const std::string& path, const std::string& json) {
  std::ofstream file(path);
  file << json;
  file.close();
  if (!file) throw std::runtime_error(fmt::format("{}: cannot be written", path));
}

struct Cache {
  std::string name;
  std::string directory;
};

// A batch that waits matches several times before it answers, so its hits are more than were told.
void add_mix_result(const SharedPlan& plan, const Observer& observer, bool alone, ReplayResult& result) {
  MixTally sum{};
  add_mix(plan, sum);
  result.mix_text = mix_to_text(sum);
  result.mix_json = mix_to_json(sum);
  result.uncertain_hits = result.count(Counter::kPagesHit);
  if (result.failure.empty()) result.failure = mix_problem(sum);
  if (result.failure.empty()) result.failure = verify_problem(observer, alone);
}

// Workers killed one by one, spread evenly over the requests.
class SpreadKills {
 public:
  SpreadKills(const ReplayOptions& options, const SharedPlan& plan, WorkerCrew& crew)
      : kills_(options.kill_workers), plan_(plan), crew_(crew), chance_(options.seed) {}

  [[nodiscard]] std::chrono::milliseconds look() const { return kills_ > 0 ? kLookToKill : kLook; }
  void step() {
    if (killed_ == kills_) return;
    if (plan_.finished() < std::uint64_t{plan_.request_count()} * (killed_ + 1) / (kills_ + 1)) return;
    if (const auto victim = crew_.choose(chance_)) crew_.kill(*victim);
    ++killed_;
  }

 private:
  const std::uint32_t kills_;
  const SharedPlan& plan_;
  WorkerCrew& crew_;
  Random chance_;
  std::uint32_t killed_ = 0;
};

// The workload again and again until the storm is over; after each round nothing must be lost.
StormResult weather_storm(const ReplayOptions& options, SharedPlan& plan, WorkerCrew& crew, OwnCache& own,
                          const Observer& observer, Signals& signals, SmallShm* shm, const std::function<void()>& draw,
                          std::string& failure) {
  Storm storm(options, plan, crew, own, observer, shm);
  for (;;) {
    failure = crew.run(signals, kLookToKill, [&] {
      draw();
      return storm.step();
    });
    // What it has begun, it ends: a kvtried that is dead is started.
    while (failure.empty() && !storm.settled()) {
      signals.wait(kLookToKill);
      failure = signals.asked_to_end() ? "stopped by a signal" : storm.step();
    }
    if (failure.empty()) failure = verify_problem(observer, true);
    if (!failure.empty() || storm.over()) return storm.result();
    plan.open_all();
  }
}

ReplayResult replay_workload(const ReplayOptions& options, const std::vector<Request>& requests,
                             const Cache& cache, const Observer& observer, Signals& signals,
                             OwnCache* own, SmallShm* shm, const std::string& program, const std::string& plugin) {
  PlanSettings settings = settings_of(options, cache.name, cache.directory, plugin);
  settings.start_ns = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
          .count());
  SharedPlan plan(requests, settings, options.workers,
                  observer.clock_is_driven() ? observer.driven_tick() : 0,
                  options.mix ? MixBoard::bytes(options.namespaces, options.workers) : 0);
  ReplayResult result;
  result.requests = plan.request_count();
  result.own_cache = own != nullptr;
  const Observer::Counters before = observer.counters();
  const auto start = Clock::now();
  {
    ProgressBar bar(plan.request_count());
    WorkerCrew crew(plan, program);
    const auto draw = [&] {
      if (bar.shown()) bar.draw(plan.finished(), note_of(plan));
    };
    if (options.storm > 0) {
      result.storm = weather_storm(options, plan, crew, *own, observer, signals, shm, draw, result.failure);
      result.requests *= plan.rounds();
    } else {
      SpreadKills kills(options, plan, crew);
      result.failure = crew.run(signals, kills.look(), [&]() -> std::string {
        draw();
        kills.step();
        const std::string end = own == nullptr ? "" : own->how_it_ended();
        return end.empty() ? "" : fmt::format("kvtried {}\n{}", end, own->log());
      });
    }
    result.deaths = crew.deaths();
    result.uncertain_hits = crew.uncertain_hits();
  }
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  result.census = result.failure.empty() ? observer.census_at_rest(kRestLimit) : observer.census();
  const Observer::Counters after = observer.counters();
  for (std::size_t i = 0; i < kCounters; ++i)
    result.counted[i] = after[i] - before[i];
  add_tallies(plan, result);
  if (options.mix) add_mix_result(plan, observer, own != nullptr, result);
  return result;
}

ExitCode replay_on_cache(ReplayOptions options) {
  Signals signals;
  const std::string program = own_path();
  const std::filesystem::path folder = std::filesystem::path(program).parent_path();
  const std::string plugin = options.plugin.empty()
                                 ? (folder.parent_path() / "lib" / "libkvtrie_worker.so").string()
                                 : options.plugin;
  if (::access(plugin.c_str(), R_OK) != 0) {
    throw UsageError{
        fmt::format("plugin {}: {}; give --plugin PATH", plugin, std::strerror(errno))};
  }
  const std::vector<Request> requests = load_workload(options);

  std::optional<SmallShm> shm;
  if (options.fill_shm) shm.emplace();
  std::optional<OwnCache> own;
  Cache cache{options.cache, options.directory};
  if (options.cache.empty()) {
    own.emplace(options, (folder / "kvtried").string(), signals);
    cache = {own->name(), own->directory()};
  }
  const Observer observer(cache.name);
  adopt_geometry(observer.segment().geometry(), options);
  // Not found out after an hour.
  if (!options.json.empty() && !std::ofstream(options.json, std::ios::app)) {
    throw UsageError{fmt::format("--json {}: {}", options.json, std::strerror(errno))};
  }
  const ReplayResult result = replay_workload(options, requests, cache, observer, signals,
                                              own ? &*own : nullptr, shm ? &*shm : nullptr, program, plugin);

  fmt::print("{}{}", to_text(result, options), result.mix_text);
  if (!options.json.empty()) write_json(options.json, to_json(result, options));
  std::string why;
  const ExitCode code = judge(result, why);
  if (code != kExitOk) fmt::print(stderr, "kvtrie-replay: {}\n", why);
  if (code == kExitOk && result.sum(Tally::kServed) == 0) {
    fmt::print(stderr, "kvtrie-replay: warning: no request was served, so nothing was compared: is the pool large enough?\n");
  }
  return code;
}

}  // namespace

ExitCode run_replay(const ReplayOptions& options) {
  try {
    return replay_on_cache(options);
  } catch (const UsageError& error) {
    fmt::print(stderr, "kvtrie-replay: {}\n", error.text);
    return kExitUsage;
  } catch (const CacheStartError& error) {
    fmt::print(stderr, "kvtrie-replay: {}\n", error.text);
    return error.code;
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvtrie-replay: {}\n", error.what());
    return kExitFailure;
  }
}

}  // namespace kvtrie::replay
