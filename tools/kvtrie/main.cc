// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie: the inspection tool. Everything but the process is in cli.cc.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "tools/kvtrie/cli.h"

namespace {

// Memory that somebody cut off an object after it was mapped.
extern "C" void segment_is_gone(int) {
  constexpr char kText[] =
      "kvtrie: the segment was truncated while it was read: the cache is gone; kvtrie destroy "
      "removes the rest\n";
  const ssize_t ignored = ::write(STDERR_FILENO, kText, sizeof kText - 1);
  (void)ignored;
  ::_exit(static_cast<int>(kvtrie::inspect::Exit::kCorrupt));
}

bool put(std::FILE* file, const std::string& text) {
  return std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  using kvtrie::inspect::Environment;
  using kvtrie::inspect::Exit;
  using kvtrie::inspect::Outcome;
  struct sigaction action {};
  action.sa_handler = segment_is_gone;
  ::sigaction(SIGBUS, &action, nullptr);

  Environment environment;
  environment.euid = ::geteuid();
  if (const char* directory = std::getenv("XDG_RUNTIME_DIR"))
    environment.xdg_runtime_dir = directory;
  const Outcome outcome = kvtrie::inspect::run_cli(argc, argv, environment);
  const bool written = put(stdout, outcome.out);
  put(stderr, outcome.err);
  return static_cast<int>(written ? outcome.code : Exit::kSystem);
}
