// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A whole run in its parent process: a kvtried of its own, the workers, the comparison, the verdict.
#pragma once

#include "tools/engine/options.h"

namespace kvtrie::engine {

ExitCode run_engines(const EngineOptions& options);

}  // namespace kvtrie::engine
