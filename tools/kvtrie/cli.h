// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie's command line, without the process around it: arguments in, texts and an exit code out.
#pragma once

#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

Outcome run_cli(int argc, const char* const* argv, const Environment& environment);

}  // namespace kvtrie::inspect
