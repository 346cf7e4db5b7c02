// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie diff-dumps A B`: where two debug dumps first differ. It looks at no cache.
#pragma once

#include <string>

#include "dump/dump_diff.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct DumpDiffReport {
  std::string a;
  std::string b;
  dump::DumpDiff diff;
};

Command add_diff_dumps_command(CLI::App& app);

std::string to_text(const DumpDiffReport& report);
Json to_json(const DumpDiffReport& report);

}  // namespace kvtrie::inspect
