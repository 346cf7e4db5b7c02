// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie workers`: who is attached, whether it lives, and what it holds.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"
#include "tools/kvtrie/snapshot.h"

namespace kvtrie::inspect {

struct WorkerRow {
  WorkerView worker;
  std::optional<double> attached_seconds;
  std::optional<double> oldest_lease_seconds;
  std::optional<double> waits_seconds;  // none: does not wait
  std::string note;                     // what is odd about it; empty when nothing is
};

struct WorkersReport {
  std::uint32_t slots = 0;  // that workers may have
  std::vector<WorkerRow>
      rows;  // slot 0 first, then attached slots and free ones that hold something
};

Command add_workers_command(CLI::App& app);

WorkersReport gather_workers(const Segment& segment);
std::string to_text(const WorkersReport& report);
Json to_json(const WorkersReport& report);

}  // namespace kvtrie::inspect
