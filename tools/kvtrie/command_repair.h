// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie verify --repair`: for a segment that kvtried refuses, or that was given up while no kvtried ran. Shows what
// could be kept and what would be thrown away (shm/repair_plan.h); with --yes a new segment with what is kept takes the
// old one's name. The pools stay as they are.
//
// Nothing is repaired in place. The new segment is made under the temporary name, whole, and must verify at rest;
// then one rename replaces the old one.
//
// Refused: while a coordinator runs (both of its locks are held meanwhile); with --yes also while a process lives
// that has a worker slot or has the segment or a pool mapped to write; of another boot or PID namespace; when the
// pools are not what the segment says, have ended with their coordinator (CUDA), or may be a successor's.
//
// Crash: died after / left behind / repaired by / test (RepairDeathTest)
//   before the rename, repair.before_publish / the old segment, a temporary object / the next repair, or the next
//       kvtried that makes or adopts this cache, throws it away
//   copies dropped from a copy queue, the same / the same: they were of processes that are dead, into pages that no
//       repair keeps
//   the rename, repair.after_publish / the new segment / nothing to repair
//
// Cost: about 1 s a million pages, and the segment's size once more in /dev/shm (the old one stands until the rename).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "shm/repair_plan.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct LivingProcess {
  std::uint32_t pid = 0;
  std::uint32_t slot = 0;  // 0: none, it has the memory mapped
  std::string name;
};

struct NamespaceLine {
  std::uint32_t id = 0;
  std::string label;
  NamespacePlan plan;
};

struct RepairReport {
  std::string cache;
  bool needed = false;
  bool done = false;
  std::uint64_t findings_total = 0;
  std::string first_finding;
  RepairPlan plan;  // empty when nothing is needed
  std::vector<NamespaceLine> namespaces;  // kept or lost
  std::uint64_t segment_bytes = 0;        // that the new segment takes while the old one is there
  std::vector<LivingProcess> living;
};

struct RepairRequest {
  std::string cache;
  std::string directory;
  bool apply = false;
  bool json = false;
};
Outcome run_repair(const Environment& environment, const RepairRequest& request);

std::string to_text(const RepairReport& report);
Json to_json(const RepairReport& report);

}  // namespace kvtrie::inspect
