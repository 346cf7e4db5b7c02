// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The parts of section `calls`.
#pragma once

#include "tools/bench/sections.h"

namespace kvtrie::bench {

// Allocate, publish and release of pages that are new; one more page behind a prompt.
// (fresh_pages.cc)
void report_fresh_pages(const Settings& settings, Report& report);

}  // namespace kvtrie::bench
