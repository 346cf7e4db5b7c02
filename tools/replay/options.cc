// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "tools/replay/mix_content.h"

namespace kvtrie::replay {
namespace {

constexpr std::uint32_t kStormMax = 10'000'000;
constexpr std::uint32_t kStormSlots = 64;

// "max" or a positive number; empty when it is neither.
std::optional<double> parse_speed(const std::string& text) {
  if (text == "max") return 0.0;
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stopped != end || !std::isfinite(value) || value <= 0) return {};
  return value;
}

void add_options(CLI::App& app, ReplayOptions& options, std::string& speed) {
  const CLI::Range percent(0.0, 100.0);
  // -1 would be read as the largest number.
  const CLI::Validator no_sign(
      [](std::string& text) { return text.starts_with('-') ? "must not be negative" : std::string{}; }, "");
  auto* trace = app.add_option("--trace", options.trace, "Request trace (JSON lines)");
  trace->type_name("FILE");
  app.add_option("--generate", options.generate, "Or a generated workload of N requests")
      ->type_name("N")
      ->check(CLI::PositiveNumber)
      ->excludes(trace);
  app.add_option("--limit", options.limit, "Only the first N requests")
      ->type_name("N")
      ->check(no_sign);
  app.add_option("--lap", options.lap, "The trace once more, of other prompts, after N laps (0)")
      ->type_name("N")
      ->check(CLI::Range(0U, kLapsMax))
      ->needs(trace);
  app.add_option("--seed", options.seed, "Of the generator and of what workers do by chance (1)")
      ->type_name("N")
      ->check(no_sign);

  app.add_option("--workers", options.workers, "Worker processes (4)")
      ->type_name("N")
      ->check(CLI::Range(1U, kWorkersMax));
  app.add_option("--in-flight", options.in_flight, "Open requests of a worker (4)")
      ->type_name("N")
      ->check(CLI::Range(1U, kInFlightMax));
  app.add_option("--namespaces", options.namespaces, "Requests are spread over N namespaces (1)")
      ->type_name("N")
      ->check(CLI::Range(1U, kNamespacesMax));
  app.add_option("--speed", speed,
                 "max: as fast as it goes, the trace's time drives the clock; or X times the "
                 "trace's speed (max)")
      ->type_name("max|X");
  app.add_option("--check-bytes", options.check_percent,
                 "Share of the pages that are compared (100)")
      ->type_name("PERCENT")
      ->check(percent);
  app.add_option("--kill-workers", options.kill_workers,
                 "Kill a worker N times, and start it again (0)")
      ->type_name("N")
      ->check(CLI::Range(0U, kWorkersMax));
  app.add_option("--storm", options.storm,
                 "Kill N workers at random moments, stop others for seconds, kill and stop kvtried; the workload is "
                 "repeated until then (0)")
      ->type_name("N")
      ->check(CLI::Range(0U, kStormMax));
  app.add_option("--kill-rate", options.kill_rate, "Workers that a storm kills in a second (40)")
      ->type_name("N")
      ->check(CLI::Range(0.1, 1000.0));
  app.add_flag("--fill-shm", options.fill_shm,
               "A storm in a mount namespace of its own, whose /dev/shm of 256 MiB it fills again and again");
  app.add_option("--realtime", options.realtime, "Of its own kvtried, and priority of what a storm measures with (0)")
      ->type_name("PRIORITY")
      ->check(CLI::Range(0, 99));
  app.add_flag("--mix", options.mix, "Use every call of the plugin, by weight, and check every answer and page");
  app.add_option("--mix-seed", options.mix_seed, "Of the operations that a mix draws (as --seed)")
      ->type_name("N")
      ->check(no_sign);

  app.add_option("--cache", options.cache, "An existing cache; without it a coordinator of its own")
      ->type_name("NAME");
  app.add_option("--dir", options.directory, "Directory of the existing cache's coordinator")
      ->type_name("DIR");
  app.add_option("--pages", options.geometry.pages, "Pages (16384)")->type_name("N");
  app.add_option("--tokens-per-page", options.geometry.tokens_per_page, "Tokens of a page (16)")
      ->type_name("N");
  app.add_option("--page-bytes", options.geometry.page_bytes, "Bytes of a page in a plane; 64KiB is understood (4096)")
      ->type_name("N")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--planes", options.geometry.planes, "Planes (1)")->type_name("N");
  app.add_flag("--page-checksums", options.page_checksums, "Of its own kvtried: compare the bytes of each hit");
  app.add_option("--policy", options.policy, "Eviction policy (lru)")->type_name("NAME");
  app.add_option("--low", options.low_percent, "Evict when fewer pages than this are free (1)")
      ->type_name("PERCENT")
      ->check(percent);
  app.add_option("--high", options.high_percent, "... until this many are (2)")
      ->type_name("PERCENT")
      ->check(percent);

  app.add_option("--plugin", options.plugin, "The plugin (../lib/libkvtrie_worker.so)")
      ->type_name("PATH");
  app.add_option("--json", options.json, "Write the results here")->type_name("FILE");
}

// What fits together only as a whole; empty when all is well.
std::string problem_of(const ReplayOptions& options) {
  if (options.trace.empty() && options.generate == 0) return "give --trace FILE or --generate N";
  for (const double percent : {options.check_percent, options.low_percent, options.high_percent}) {
    if (!std::isfinite(percent)) return "--check-bytes, --low, --high: numbers from 0 to 100";
  }
  if (options.limit == 0) return "--limit: at least 1";
  if (options.geometry.page_bytes % 8 != 0 || options.geometry.page_bytes == 0) {
    return "--page-bytes: must be a multiple of 8";
  }
  if (options.low_percent > options.high_percent) return "--low: must not be above --high";
  if (options.storm > 0) {
    if (options.speed != 0) return "--storm: goes as fast as it can, leave --speed out";
    if (options.mix || options.kill_workers > 0) return "--storm: not with --mix or --kill-workers";
    if (!options.cache.empty()) return "--storm: kills its kvtried, so it has one of its own: leave --cache out";
    if (options.workers < 2) return "--storm: at least 2 workers";
  } else if (options.fill_shm) {
    return "--fill-shm: only with --storm";
  }
  if (options.page_checksums && !options.cache.empty()) return "--page-checksums: only of a cache of its own, without --cache";
  if (options.realtime > 0 && !options.cache.empty()) return "--realtime: only of a kvtried of its own, without --cache";
  if (options.mix && options.speed != 0) return "--mix: goes as fast as it can, leave --speed out";
  if (options.mix && options.cache.empty()) {
    const Geometry& asked = options.geometry;
    const std::string problem = PageShape::problem(asked.page_bytes, std::max(asked.tokens_per_page, 1U));
    if (!problem.empty()) return problem;
  }
  return options.cache.empty() ? geometry_problem(options.geometry) : std::string{};
}

// A mix flushes: some namespaces, so that the others have hits meanwhile. Its forks and matches inside pages have leases
// of their own, and each worker attaches a second time now and then.
void settle_mix(ReplayOptions& options, bool namespaces_given, bool seed_given) {
  if (!namespaces_given) options.namespaces = 3;
  if (!seed_given) options.mix_seed = options.seed;
  options.geometry.workers = std::min(2 * options.workers + options.kill_workers + 1, kWorkersMax);
  options.geometry.leases_per_worker = std::max(4 * options.in_flight + 16, 64U);
}

}  // namespace

std::optional<ReplayOptions> parse_options(int argc, const char* const* argv,
                                           const std::string& default_directory, int& exit_code) {
  CLI::App app{"Replays a request trace through worker processes and compares every reused byte.",
               "kvtrie-replay"};
  app.footer(
      "exit codes: 0 no page was wrong, 1 wrong pages, 2 usage,\n"
      "            3 the coordinator counted other hits than the workers, 4 anything else");
  app.set_version_flag("--version", KVTRIE_VERSION);
  ReplayOptions options;
  options.directory = default_directory;
  std::string speed = "max";
  add_options(app, options, speed);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error) == 0 ? kExitOk : kExitUsage;
    return {};
  }
  exit_code = kExitUsage;
  const std::optional<double> factor = parse_speed(speed);
  if (!factor) {
    fmt::print(stderr, "kvtrie-replay: --speed: 'max' or a positive number\n");
    return {};
  }
  options.speed = *factor;
  options.pages_given = app.count("--pages") > 0;
  options.tokens_per_page_given = app.count("--tokens-per-page") > 0;
  options.page_bytes_given = app.count("--page-bytes") > 0;
  options.planes_given = app.count("--planes") > 0;
  // A killed worker's slot is given back a little after the next one asks for its own.
  options.geometry.workers = std::min(options.workers + options.kill_workers + 1, kWorkersMax);
  if (options.storm > 0) options.geometry.workers = std::max(kStormSlots, 2 * options.workers);
  options.geometry.leases_per_worker = std::max(2 * options.in_flight + 8, 64U);
  if (options.mix) settle_mix(options, app.count("--namespaces") > 0, app.count("--mix-seed") > 0);
  options.geometry.namespaces = std::min(options.namespaces + (options.mix ? 2 : 1), kNamespacesMax);
  if (const std::string problem = problem_of(options); !problem.empty()) {
    fmt::print(stderr, "kvtrie-replay: {}\n", problem);
    return {};
  }
  if (!options.cache.empty()) {
    for (const char* flag : {"--low", "--high", "--policy"}) {
      if (app.count(flag) == 0) continue;
      fmt::print(stderr, "kvtrie-replay: {} has no effect with --cache: its kvtried has its own\n", flag);
    }
  }
  exit_code = kExitOk;
  return options;
}

}  // namespace kvtrie::replay
