// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-bench: what cache operations cost, as ratios to floors and peers measured in the same run.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <exception>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "tools/bench/docs_writer.h"
#include "tools/bench/host_facts.h"
#include "tools/bench/reap.h"
#include "tools/bench/report.h"
#include "tools/bench/sections.h"
#include "tools/bench/spread.h"
#include "tools/replay/own_cache.h"

namespace {

using kvtrie::bench::Report;
using kvtrie::bench::Settings;

struct Section {
  const char* name;
  const char* title;
  void (*run)(const Settings&, Report&);
};

constexpr std::array kSections{
    Section{"floors", "what no lookup can do without", kvtrie::bench::run_floors},
    Section{"hit", "full hits", kvtrie::bench::run_hit},
    Section{"calls", "single calls", kvtrie::bench::run_calls},
    Section{"peers", "other ways to look up the same prompts", kvtrie::bench::run_peers},
    Section{"locks", "price of synchronization", kvtrie::bench::run_locks},
    Section{"bulk", "bytes of pages between the pool and an engine's memory", kvtrie::bench::run_bulk},
    Section{"first_touch", "memory that nobody has used yet, and huge pages", kvtrie::bench::run_first_touch},
    Section{"eviction", "what it costs to keep pages free", kvtrie::bench::run_eviction},
    Section{"checksums", "hits whose bytes are compared with their checksum", kvtrie::bench::run_checksums},
    Section{"reap", "how long the pages of a killed worker are gone", kvtrie::bench::run_reap},
};

void run(const std::vector<std::string>& names, const Settings& settings, Report& report) {
  for (const Section& section : kSections) {
    if (std::ranges::find(names, section.name) == names.end()) continue;
    report.begin_section(section.name, section.title);
    report.end_section(kvtrie::bench::time_ns([&] { section.run(settings, report); }) / 1e9);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == kvtrie::bench::kHoldFlag) {
    return kvtrie::bench::hold_pages(argc, argv);
  }
  std::vector<std::string> known;
  for (const Section& section : kSections) known.emplace_back(section.name);
  std::vector<std::string> names;
  Settings settings;
  std::string json_file;
  std::string page;
  CLI::App app{"What cache operations cost, as ratios to floors and peers measured in the same run.\n"
               "Starts coordinators of its own and removes them again."};
  app.set_version_flag("--version", KVTRIE_VERSION);
  app.footer("exit codes: 0 measured (targets met or not), 2 usage, 4 anything else");
  app.add_option("SECTION", names, "what to measure; without any, everything")->check(CLI::IsMember(known));
  app.add_flag("--quick", settings.quick, "small sizes: shows that it works, the figures say nothing");
  app.add_option("--rounds", settings.rounds, "rounds of each measurement, after one that warms up")
      ->capture_default_str()
      ->check(CLI::Range(1U, 1000U));
  const CLI::Option* pages =
      app.add_option("--pages", settings.pages, "pages of the caches [1 M; hit: 16 k, 1 M and 8 M]")
      ->check(CLI::Range(std::uint64_t{1} << 12, std::uint64_t{1} << 24));
  app.add_option("--age", settings.age, "hit: only caches that are fresh, aged or shuffled")
      ->check(CLI::IsMember({"fresh", "aged", "shuffled"}));
  app.add_option("--turnovers", settings.turnovers, "hit: how often an aged cache was turned over")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 1000.0));
  app.add_option("--busy", settings.busy, "reap: so many other workers look up, allocate and publish meanwhile")
      ->capture_default_str()
      ->check(CLI::Range(0U, 32U));
  app.add_option("--realtime", settings.realtime, "reap: priority of kvtried, and of what measures it (0: ordinary)")
      ->capture_default_str()
      ->check(CLI::Range(0, 99));
  app.add_option("--trace", settings.trace, "requests (JSON lines) that age a cache [generated ones]")
      ->check(CLI::ExistingFile);
  app.add_option("--plugin", settings.plugin, "libkvtrie_worker.so [../lib beside this program]");
  app.add_option("--json", json_file, "write the figures to this file");
  app.add_option("--write-docs", page, "put the rows into their regions of this page, docs/performance.md")
      ->check(CLI::ExistingFile);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kvtrie::replay::kExitOk : kvtrie::replay::kExitUsage;
  }
  if (names.empty()) names = known;
  settings.pages_given = pages->count() != 0;
  if (settings.quick) settings.pages = std::min<std::uint64_t>(settings.pages, 1U << 16);

  const std::filesystem::path here = std::filesystem::path(kvtrie::replay::own_path()).parent_path();
  settings.kvtried = (here / "kvtried").string();
  settings.replay = (here / "kvtrie-replay").string();
  if (settings.plugin.empty()) settings.plugin = (here.parent_path() / "lib/libkvtrie_worker.so").string();
  try {
    if (!page.empty()) page = std::filesystem::absolute(page).string();
    if (!page.empty()) kvtrie::bench::check_page(page, names);
    Report report;
    const double ns = kvtrie::bench::time_ns([&] { run(names, settings, report); });
    if (!json_file.empty() && !(std::ofstream(json_file) << report.json().dump(2) << '\n' << std::flush)) {
      throw std::runtime_error(fmt::format("{}: cannot be written", json_file));
    }
    if (!page.empty()) {
      const std::filesystem::path tree = std::filesystem::absolute(page).parent_path();
      const kvtrie::bench::Run facts{kvtrie::bench::date_now(), kvtrie::bench::command_of(argc, argv),
                                     kvtrie::bench::host_facts(tree), ns / 1e9};
      const std::string no_plots = kvtrie::bench::write_page(page, report, facts);
      if (!no_plots.empty()) fmt::print(stderr, "kvtrie-bench: {}: plots are left out: {}\n", page, no_plots);
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
