// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-engine: example engines with continuous batching in several processes on one small pool; each answer is
// compared. It starts itself again as its workers: kvtrie-engine --worker-fd FD WORKER.

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

#include "tools/engine/options.h"
#include "tools/engine/run.h"
#include "tools/engine/worker_main.h"

namespace {

std::uint32_t number_of(std::string_view text) {
  std::uint32_t value = 0;
  (void)std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string_view(argv[1]) == "--worker-fd") {
    return kvtrie::engine::run_worker(static_cast<int>(number_of(argv[2])), number_of(argv[3]));
  }
  int exit_code = 0;
  const std::optional<kvtrie::engine::EngineOptions> options = kvtrie::engine::parse_options(argc, argv, exit_code);
  return options ? kvtrie::engine::run_engines(*options) : exit_code;
}
