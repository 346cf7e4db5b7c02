// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Puts a run's rows into a page that people write (docs/performance.md). A region is what stands between two lines
//
//   <!-- kvtrie-bench NAME -->
//   <!-- end -->
//
// NAME is a section of the run, or `run` for the run itself. Regions of sections that were not run and all that stands
// outside of regions stay as they are. The page is replaced by a rename, so it is the old or the new one at any time.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "tools/bench/report.h"

namespace kvtrie::bench {

// What a reader must know of a run to compare it with another.
struct Run {
  std::string date;
  std::string command;
  std::vector<std::string> host;  // a line each
  double seconds = 0;
};

// Throws std::runtime_error when the page cannot take these sections: no regions, one without an end or twice, none of
// that name. To be called before a run of minutes.
void check_page(const std::filesystem::path& page, std::span<const std::string> sections);

// Draws the plots into a folder beside the page, named as the page without its ending, then replaces the page. Returns
// why plots were left out; empty: none were. Throws std::runtime_error, and then the page is as it was.
std::string write_page(const std::filesystem::path& page, const Report& report, const Run& run);

}  // namespace kvtrie::bench
