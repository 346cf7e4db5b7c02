// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-replay: sends a request trace through worker processes and compares every reused byte.
// It starts itself again as its workers: kvtrie-replay --worker-fd FD WORKER INCARNATION.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "shm/runtime_directory.h"
#include "tools/replay/child_process.h"
#include "tools/replay/options.h"
#include "tools/replay/replay.h"
#include "tools/replay/worker_loop.h"

int main(int argc, char** argv) {
  if (argc == 5 && std::string_view(argv[1]) == "--worker-fd") {
    using kvtrie::replay::number_of;
    return kvtrie::replay::run_worker(static_cast<int>(number_of(argv[2])), number_of(argv[3]), number_of(argv[4]));
  }
  const std::string directory =
      kvtrie::default_runtime_directory(::geteuid(), std::getenv("XDG_RUNTIME_DIR"));
  int exit_code = 0;
  const std::optional<kvtrie::replay::ReplayOptions> options =
      kvtrie::replay::parse_options(argc, argv, directory, exit_code);
  return options ? kvtrie::replay::run_replay(*options) : exit_code;
}
