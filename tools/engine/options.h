// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What kvtrie-engine is told.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tools/engine/board.h"

namespace kvtrie::engine {

enum ExitCode : int {
  kExitOk = 0,
  kExitWrong = 1,  // a wrong answer, a lost page, a worker that failed, no progress
  kExitUsage = 2,
};

struct EngineOptions {
  std::uint32_t requests = 2000;
  std::uint32_t workers = 4;
  std::uint64_t pages = 256;
  std::uint32_t tokens_per_page = 16;
  std::uint64_t page_bytes = 512;
  std::uint32_t stall_s = 30;  // without progress for so long, the run has failed
  RunSettings run{};           // but for cache, directory and start
  std::string json;
  std::string dump;       // options of debug dumps; empty: none
  std::string artifacts;  // folder for what a wrong run leaves behind; empty: that of temporary files
  // Of llama.cpp
  std::string model;
  std::string back_end;
  double logit_bound = 0.01;
  double page_bound = 0.05;
  std::uint32_t alone = 20;  // answers compared with those of the request alone
};

// Empty, with what main() is to return, when there is nothing to do: --help, or a mistake that has
// been printed.
std::optional<EngineOptions> parse_options(int argc, const char* const* argv, int& exit_code);

}  // namespace kvtrie::engine
