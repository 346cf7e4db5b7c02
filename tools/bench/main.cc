// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-bench: what cache operations cost, as ratios to floors measured in the same run.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "tools/bench/full_hit.h"
#include "tools/bench/reap.h"
#include "tools/replay/own_cache.h"

namespace {

using kvtrie::bench::FullHitOptions;
using kvtrie::bench::FullHitResult;
using kvtrie::bench::ReapOptions;
using kvtrie::bench::ReapResult;
using kvtrie::bench::Spread;
using kvtrie::replay::Histogram;

nlohmann::json json_of(const Spread& spread) {
  return {{"min", spread.minimum}, {"median", spread.median}, {"max", spread.maximum}};
}

double ms_of(std::uint64_t ns) { return static_cast<double>(ns) / 1e6; }

nlohmann::json json_of(const Histogram& took) {
  return {{"p50", ms_of(took.percentile(50))}, {"p99", ms_of(took.percentile(99))}, {"max", ms_of(took.max())}};
}

void print(const FullHitOptions& options, const FullHitResult& result) {
  fmt::print("full hit: {} prompts of {} pages, {} pages cached of {}, {} rounds (median, min to max)\n",
             result.prompts, options.prompt_pages, result.pages_hit, options.pages, options.rounds);
  const double pages = options.prompt_pages;
  auto row = [&](const char* what, const Spread& us) {
    fmt::print("  {:<28}{:8.1f} us ({:.1f} to {:.1f}){:8.2f} ns a page\n", what, us.median,
               us.minimum, us.maximum, us.median * 1000 / pages);
  };
  fmt::print("  {:<28}{:8.2f} ns a page, bytes not written\n", "fresh: allocate, publish", result.fill_ns);
  row("begin and release", result.begin_us);
  row("floor: stream of same bytes", result.floor_us);
  fmt::print("  {:<28}{:8.2f}    ({:.2f} to {:.2f})\n", "ratio, round by round", result.ratio.median,
             result.ratio.minimum, result.ratio.maximum);
}

void print(const ReapOptions& options, const ReapResult& result) {
  fmt::print("reap: {} pages of a killed worker in a cache of {}, {} busy workers, {}, {} rounds each\n",
             result.pages_held, options.pages, options.busy,
             options.realtime > 0 ? fmt::format("--realtime {}", options.realtime) : "no real-time priority",
             options.rounds);
  auto row = [&](const char* what, const Histogram& took) {
    fmt::print("  {:<44}p50 {:.2f} ms, p99 {:.2f} ms, max {:.2f} ms\n", what, ms_of(took.percentile(50)),
               ms_of(took.percentile(99)), ms_of(took.max()));
  };
  row("report of the death to all free, announced", result.announced);
  row("report of the death to all free, private", result.private_);
}

nlohmann::json run_full_hit(const FullHitOptions& options) {
  const FullHitResult result = kvtrie::bench::measure_full_hit(options);
  print(options, result);
  return {{"pages", options.pages},
          {"prompt_pages", options.prompt_pages},
          {"rounds", options.rounds},
          {"page_bytes", options.page_bytes},
          {"page_checksums", options.page_checksums},
          {"fill_ns", result.fill_ns},
          {"begin_us", json_of(result.begin_us)},
          {"floor_us", json_of(result.floor_us)},
          {"ratio", json_of(result.ratio)}};
}

nlohmann::json run_reap(const ReapOptions& options) {
  const ReapResult result = kvtrie::bench::measure_reap(options);
  print(options, result);
  return {{"pages", options.pages},
          {"rounds", options.rounds},
          {"pages_held", result.pages_held},
          {"busy", options.busy},
          {"realtime", options.realtime},
          {"announced_ms", json_of(result.announced)},
          {"private_ms", json_of(result.private_)}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == kvtrie::bench::kHoldFlag) {
    return kvtrie::bench::hold_pages(argc, argv);
  }
  FullHitOptions options;
  bool reap = false;
  std::uint32_t busy = 0;
  int realtime = 0;
  std::string json_file;
  CLI::App app{"What cache operations cost, as ratios to floors measured in the same run.\n"
               "Starts a coordinator of its own and removes it again."};
  app.set_version_flag("--version", KVTRIE_VERSION);
  app.footer("exit codes: 0 measured, 2 usage, 4 anything else");
  app.add_flag("--reap", reap, "instead of full hits: how long the pages of a killed worker are gone");
  app.add_option("--busy", busy, "with --reap: so many other workers look up, allocate and publish meanwhile")
      ->capture_default_str()
      ->check(CLI::Range(0U, 32U));
  app.add_option("--realtime", realtime, "with --reap: priority of kvtried, and of what measures it (0: ordinary)")
      ->capture_default_str()
      ->check(CLI::Range(0, 99));
  app.add_option("--pages", options.pages, "pages of the cache")
      ->capture_default_str()
      ->check(CLI::Range(std::uint64_t{64}, std::uint64_t{1} << 24));
  app.add_option("--prompt-pages", options.prompt_pages, "pages of a prompt, 16 tokens each")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1U << 24));
  app.add_option("--page-bytes", options.page_bytes, "bytes of a page; 64KiB is understood")
      ->capture_default_str()
      ->transform(CLI::AsSizeValue(false));
  app.add_flag("--page-checksums", options.page_checksums, "of a cache with checksums: what they cost");
  app.add_option("--rounds", options.rounds, "rounds over all prompts, after one that warms up")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1000U));
  app.add_option("--plugin", options.plugin, "libkvtrie_worker.so [../lib beside this program]");
  app.add_option("--json", json_file, "write the figures to this file");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kvtrie::replay::kExitOk : kvtrie::replay::kExitUsage;
  }

  const std::filesystem::path here = std::filesystem::path(kvtrie::replay::own_path()).parent_path();
  options.kvtried = (here / "kvtried").string();
  if (options.plugin.empty()) options.plugin = (here.parent_path() / "lib/libkvtrie_worker.so").string();
  try {
    const nlohmann::json figures =
        reap ? run_reap({options.pages, options.rounds, busy, realtime, options.plugin, options.kvtried,
                         (here / "kvtrie-replay").string()})
             : run_full_hit(options);
    if (!json_file.empty() && !(std::ofstream(json_file) << figures.dump(2) << '\n' << std::flush)) {
      throw std::runtime_error(fmt::format("{}: cannot be written", json_file));
    }
  } catch (const kvtrie::replay::CacheStartError& error) {
    fmt::print(stderr, "kvtrie-bench: {}\n", error.text);
    return kvtrie::replay::kExitFailure;
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvtrie-bench: {}\n", error.what());
    return kvtrie::replay::kExitFailure;
  }
  return 0;
}
