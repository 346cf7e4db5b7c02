// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The definition of kvtrie's command line: commands, options and their help. The program parses with it; the man page and
// the shell completions are made from it when kvtrie is built (tools/manual).
#pragma once

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "tools/kvtrie/command.h"

namespace kvtrie::inspect {

struct CommandLine {
  CommandLine();
  CommandLine(const CommandLine&) = delete;  // `app` points into it
  CommandLine& operator=(const CommandLine&) = delete;

  CLI::App app;
  std::string cache;
  std::string directory;
  bool json = false;
  std::vector<Command> commands;
};

}  // namespace kvtrie::inspect
