// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie workers`: who is attached, whether it lives, and what it holds: leases with age and request tag, pages being
// written.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"
#include "tools/kvtrie/snapshot.h"

namespace kvtrie::inspect {

struct WorkersOptions {
  std::optional<std::uint32_t> slot;  // only this one
  std::optional<std::uint32_t> pid;   // only the slots of this process
  bool leases = false;                // list them
  std::uint32_t limit = 50;           // leases listed for each worker
  bool filtered() const { return slot.has_value() || pid.has_value(); }
};

struct HeldLease {
  LeaseView lease;
  std::optional<double> held_seconds;
  std::string page_state;  // of the page that it names
  std::uint32_t depth = 0;
  std::string name_space;  // id and label of the page's
};

struct WorkerRow {
  WorkerView worker;
  std::optional<double> attached_seconds;
  std::optional<double> oldest_lease_seconds;
  std::optional<double> oldest_writing_seconds;
  std::optional<double> oldest_pending_seconds;
  std::optional<double> waits_seconds;  // none: does not wait
  std::string note;                     // what is odd about it; empty when nothing is
  std::vector<HeldLease> leases;        // when asked for: oldest first
  std::uint64_t leases_left_out = 0;
};

struct WorkersReport {
  WorkersOptions options;
  std::uint32_t slots = 0;      // that workers may have
  std::uint64_t attached = 0;   // all of them, also those that a filter leaves out
  std::vector<WorkerRow> rows;  // slot 0 first, then attached slots and free ones that hold something
};

Command add_workers_command(CLI::App& app);

WorkersReport gather_workers(const Segment& segment, const WorkersOptions& options);
std::string to_text(const WorkersReport& report);
Json to_json(const WorkersReport& report);

}  // namespace kvtrie::inspect
