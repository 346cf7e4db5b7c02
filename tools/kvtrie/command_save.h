// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie save FILE`: the Live pages of a cache, live or dead, into a file that `kvtried --load`
// starts with. Reads only: the objects of the cache are opened read-only, no coordinator is asked,
// no lease is taken (save/save_cache.h).
#pragma once

#include <string>

#include "save/save_cache.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct SaveOutput {
  std::string cache;
  std::string file;
  SaveReport report;
  double seconds = 0;
};

std::string to_text(const SaveOutput& output);
Json to_json(const SaveOutput& output);

Command add_save_command(CLI::App& app);

}  // namespace kvtrie::inspect
