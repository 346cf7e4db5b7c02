// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Plots as SVG files, drawn by gnuplot.
#pragma once

#include <filesystem>
#include <string>

#include "tools/bench/report.h"

namespace kvtrie::bench {

// Replaces the file. Empty, or why it could not: there is no gnuplot, or what gnuplot said.
std::string draw(const Plot& plot, const std::filesystem::path& svg);

// What gnuplot is told, but for where to.
std::string script_of(const Plot& plot);

}  // namespace kvtrie::bench
