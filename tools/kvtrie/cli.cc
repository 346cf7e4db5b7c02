// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <new>
#include <sstream>
#include <string_view>

#include "tools/kvtrie/command_line.h"

namespace kvtrie::inspect {
namespace {

Outcome usage_problem(const CommandLine& line, const CLI::ParseError& problem, bool json) {
  if (json && problem.get_exit_code() != 0) return failure(Exit::kUsage, problem.what(), true);
  std::ostringstream out;
  std::ostringstream err;
  const int code = line.app.exit(problem, out, err);
  return {code == 0 ? Exit::kOk : Exit::kUsage, out.str(), err.str()};
}

}  // namespace

Outcome run_cli(int argc, const char* const* argv, const Environment& environment) {
  CommandLine line;
  // Not line.json: it may stand behind what could not be read.
  const bool json = std::any_of(argv, argv + argc, [](std::string_view word) { return word == "--json"; });
  try {
    line.app.parse(argc, argv);
    const auto command = std::ranges::find_if(line.commands, [](const Command& c) { return c.app->parsed(); });
    return command->run({environment, line.cache, line.directory, line.json});
  } catch (const CLI::ParseError& problem) {
    return usage_problem(line, problem, json);
  } catch (const std::bad_alloc&) {
    return failure(Exit::kSystem, "not enough memory to look at this segment", json);
  }
}

}  // namespace kvtrie::inspect
