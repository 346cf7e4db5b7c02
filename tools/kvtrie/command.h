// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a command is to the command line: its part of the definition from which --help, the man page and the shell
// completions are made, and what it does. Each command_*.h has one `add_..._command`; command_line.cc lists them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "shm/segment.h"
#include "tools/kvtrie/outcome.h"

namespace CLI {
class App;
}

namespace kvtrie::inspect {

// The host, and the options that all commands share.
struct Context {
  const Environment& environment;
  std::string cache;      // --cache; empty: the only one of the host
  std::string directory;  // --dir; empty: the usual one
  bool json = false;      // --json
};

struct Command {
  CLI::App* app;  // its options and its help; owned by the command line
  std::function<Outcome(const Context&)> run;
};

// Of --dir, or where kvtried puts sockets and locks when it is not told.
std::string directory_of(const Context& context);

// "cache 'x' has no page 99: its pages are 0 to 63".
std::string no_such_page(const Segment& segment, const std::string& cache, std::uint64_t page);

// Runs `look` on the segment that the context names, mapped read-only, or says why it cannot.
Outcome on_segment(const Context& context,
                   const std::function<Outcome(const Segment& segment, const std::string& cache)>& look);

}  // namespace kvtrie::inspect
