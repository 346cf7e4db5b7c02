// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/cli.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <new>
#include <sstream>
#include <string_view>
#include <vector>

#include "shm/runtime_directory.h"
#include "tools/kvtrie/caches.h"
#include "tools/kvtrie/command_admin.h"
#include "tools/kvtrie/command_destroy.h"
#include "tools/kvtrie/command_page.h"
#include "tools/kvtrie/command_pins.h"
#include "tools/kvtrie/command_save.h"
#include "tools/kvtrie/command_status.h"
#include "tools/kvtrie/command_tree.h"
#include "tools/kvtrie/command_verify.h"
#include "tools/kvtrie/command_workers.h"

namespace kvtrie::inspect {
namespace {

struct Arguments {
  std::string cache;
  std::string directory;
  bool json = false;
  TreeOptions tree;
  std::uint64_t page = 0;
  VerifyOptions verify;
  std::string save_file;
};

struct Commands {
  CLI::App* status;
  CLI::App* workers;
  CLI::App* tree;
  CLI::App* page;
  CLI::App* verify;
  CLI::App* save;
  CLI::App* destroy;
  std::vector<Command> others;  // that run themselves
};

Commands set_up(CLI::App& app, Arguments& arguments) {
  app.set_version_flag("--version", "kvtrie " KVTRIE_VERSION);
  app.add_option("--cache", arguments.cache,
                 "Cache to look at; may be left out when the host has one");
  app.add_option("--dir", arguments.directory,
                 "Directory of the caches' sockets and locks, as given to kvtried");
  app.add_flag("--json", arguments.json, "Answer in JSON (docs/kvtrie-json.md)");
  app.fallthrough();  // so the options above may stand behind a command too
  app.require_subcommand(1);
  app.footer(exit_table_text() +
             "Commands that only look map the segment read-only; they need no coordinator, and dead "
             "segments may be looked at too.");

  Commands commands{};
  commands.status = app.add_subcommand("status", "Is the cache well? One screen, and what to do");
  commands.workers = app.add_subcommand("workers", "Who is attached, alive, and holds what");
  commands.tree =
      app.add_subcommand("tree", "What is cached, as a tree a namespace; largest parts first");
  commands.tree->add_option("--depth", arguments.tree.depth, "Levels of branches below a root")
      ->capture_default_str();
  commands.tree->add_option("--limit", arguments.tree.limit, "Lines (chains of pages) at most")
      ->check(CLI::Range(1U, 1'000'000U))
      ->capture_default_str();
  commands.tree->add_option("--namespace", arguments.tree.name_space,
                            "Only this one: its id or label");
  commands.page = app.add_subcommand("page", "Everything about one page");
  commands.page->add_option("page", arguments.page, "Page number")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{kPagesMax} - 1))
      ->required();
  commands.verify =
      app.add_subcommand("verify", "Check the whole segment; exit code 1 if something is found");
  commands.verify->add_flag("--at-rest", arguments.verify.at_rest,
                            "No process runs and the dead were reaped: leftovers are findings too");
  commands.verify
      ->add_option("--findings", arguments.verify.findings_max, "Findings to show at most")
      ->check(CLI::Range(1U, 1'000'000U))
      ->capture_default_str();
  commands.save = app.add_subcommand(
      "save", "Save what is cached to a file, for kvtried --load; the cache may be in use");
  commands.save->add_option("file", arguments.save_file, "File to write; replaced when all is written")
      ->type_name("FILE")
      ->required();
  commands.destroy = app.add_subcommand(
      "destroy", "Remove a cache that no coordinator serves: memory and directory");
  commands.others = {add_pins_command(app),  add_pin_command(app),   add_unpin_command(app), add_evict_command(app),
                     add_flush_command(app), add_drain_command(app), add_stop_command(app)};
  return commands;
}

Outcome run_verify(const Environment& environment, const std::string& cache,
                   const Arguments& arguments) {
  const Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  if (segment) {
    const VerifyOutput output = gather_verify(*segment, cache, arguments.verify);
    return render(output, arguments.json, output.report.clean() ? Exit::kOk : Exit::kFindings);
  }
  const Status status = segment.error();
  if (exit_of(status) != Exit::kCorrupt) {
    return failure(exit_of(status), open_problem(environment, cache, status), arguments.json);
  }
  Outcome outcome = render(verify_of_unreadable(cache, status), arguments.json, Exit::kCorrupt);
  outcome.err = "kvtrie: " + open_problem(environment, cache, status) + "\n";
  return outcome;
}

Outcome run_on_segment(const Commands& commands, const Environment& environment,
                       const std::string& cache, const Arguments& arguments) {
  const OpenedCache opened = open_cache(environment, cache, arguments.json);
  if (!opened.segment) return opened.failure;
  const Segment& segment = *opened.segment;
  if (*commands.status) {
    return render(gather_status(segment, cache, environment.shm_directory), arguments.json);
  }
  if (*commands.workers) return render(gather_workers(segment), arguments.json);
  if (*commands.save) return run_save(segment, cache, arguments.save_file, arguments.json);
  if (*commands.tree) {
    const std::optional<TreeReport> report = gather_tree(segment, arguments.tree);
    if (report) return render(*report, arguments.json);
    return failure(
        Exit::kNotFound,
        fmt::format("cache '{}' has no open namespace '{}'; `kvtrie tree --depth 0` lists them",
                    cache, arguments.tree.name_space),
        arguments.json);
  }
  if (arguments.page >= segment.page_count()) {
    return failure(Exit::kNotFound,
                   fmt::format("cache '{}' has no page {}: its pages are 0 to {}", cache,
                               arguments.page, segment.page_count() - 1),
                   arguments.json);
  }
  return render(gather_page(segment, {static_cast<std::uint32_t>(arguments.page)}), arguments.json);
}

Outcome dispatch(const Commands& commands, const Environment& environment,
                 const Arguments& arguments) {
  if (*commands.destroy && arguments.cache.empty()) {
    return failure(Exit::kUsage, "destroy removes a cache for good: name it with --cache",
                   arguments.json);
  }
  for (const Command& command : commands.others) {
    if (*command.app) return command.run({environment, arguments.cache, arguments.directory, arguments.json});
  }
  const CacheChoice choice = choose_cache(environment, arguments.cache, arguments.json);
  if (choice.cache.empty()) return choice.failure;
  if (*commands.destroy) {
    const std::string directory =
        arguments.directory.empty()
            ? default_runtime_directory(environment.euid, environment.xdg_runtime_dir.c_str())
            : arguments.directory;
    return run_destroy(environment, choice.cache, directory, arguments.json);
  }
  if (*commands.verify) return run_verify(environment, choice.cache, arguments);
  return run_on_segment(commands, environment, choice.cache, arguments);
}

}  // namespace

Outcome run_cli(int argc, const char* const* argv, const Environment& environment) {
  CLI::App app("kvtrie: looks into the prefix cache that inference processes of this host share");
  Arguments arguments;
  const Commands commands = set_up(app, arguments);
  try {
    app.parse(argc, argv);
    return dispatch(commands, environment, arguments);
  } catch (const CLI::ParseError& problem) {
    // Not arguments.json: it may stand behind what could not be read.
    const bool json = std::any_of(argv, argv + argc, [](std::string_view word) { return word == "--json"; });
    if (json && problem.get_exit_code() != 0) return failure(Exit::kUsage, problem.what(), true);
    std::ostringstream out;
    std::ostringstream err;
    const int code = app.exit(problem, out, err);
    return {code == 0 ? Exit::kOk : Exit::kUsage, out.str(), err.str()};
  } catch (const std::bad_alloc&) {
    return failure(Exit::kSystem, "not enough memory to look at this segment", arguments.json);
  }
}

}  // namespace kvtrie::inspect
