// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker process of a run: attaches, opens the namespace, and runs the loop.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tools/engine/llama_part.h"

namespace kvtrie::engine {

// The run's engine, for one request at a time.
[[nodiscard]] AloneInNamespace make_alone_engine(const RunSettings& settings, const PageShape& shape,
                                                 double page_bound);

// main() of a worker. `board_fd` was inherited. Returns the exit code; why it failed is in its tally.
int run_worker(int board_fd, std::uint32_t worker);

}  // namespace kvtrie::engine
