// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A whole replay, as its parent process sees it: workload, cache, workers, verdict.
#pragma once

#include "tools/replay/options.h"

namespace kvtrie::replay {

// Prints the summary; writes the JSON where it was asked for. Throws std::exception for what cannot
// go on before there is a result.
ExitCode run_replay(const ReplayOptions& options);

}  // namespace kvtrie::replay
