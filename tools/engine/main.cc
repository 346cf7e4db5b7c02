// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-engine: example engines with continuous batching in several processes on one small pool;
// each answer is compared. It starts itself again as its workers: kvtrie-engine --worker-fd FD
// WORKER.

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "tools/engine/llama_part.h"
#include "tools/engine/options.h"
#include "tools/engine/run.h"
#include "tools/engine/worker_main.h"
#include "tools/replay/child_process.h"

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--worker-fd") {
    return kvtrie::engine::run_worker(static_cast<int>(kvtrie::replay::number_of(argv[2])), kvtrie::replay::number_of(argv[3]));
  }
  int exit_code = 0;
  const std::optional<kvtrie::engine::EngineOptions> options = kvtrie::engine::parse_options(argc, argv, exit_code);
  if (!options) return exit_code;
  // The program that belongs to a llama.cpp goes on with the same words.
  if (options->run.engine == kvtrie::engine::EngineKind::kLlama && !kvtrie::engine::has_llama()) {
    const std::string other = kvtrie::replay::own_path() + "-llama";
    ::execv(other.c_str(), argv);
    fmt::print(stderr, "kvtrie-engine: {}: {}: is built where tools/install-llama put a llama.cpp\n", other,
               std::strerror(errno));
    return kvtrie::engine::kExitUsage;
  }
  return kvtrie::engine::run_engines(*options);
}
