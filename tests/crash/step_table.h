// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What step_kill counted, operation by operation, as the Markdown table of docs/crash-model.md; and in a file, so that
// a long run can be interrupted and done in shards. A file has lines of words: plan, shard, shards, operation, numbers.
#pragma once

#include <array>
#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tests/crash/step_run.h"

namespace kvtrie::test {

// instructions, states, kills, images, violations, off_route
using StepNumbers = std::array<std::uint64_t, 6>;

struct StepPart {
  std::string plan;  // "all" or the stride
  std::size_t shard = 0;
  std::size_t shards = 1;
  auto operator<=>(const StepPart&) const = default;
};

class StepTable {
 public:
  // `file` may be empty. Rows of this part that it has are taken over; each that is added is in it at once.
  StepTable(StepPart part, const std::string& file);
  bool has(std::string_view operation) const;
  void add(std::string_view operation, const StepOutcome& outcome);
  // False: there are violations, or nothing was done.
  bool print() const;

 private:
  StepPart part_;
  std::vector<std::pair<std::string, StepNumbers>> rows_;
  std::ofstream file_;
};

// All shards of one plan, operations in the order of `names`. False: violations, or a part is missing, which is said.
// Images that two shards judged count twice.
bool print_merged(const std::vector<std::string>& files, const std::vector<std::string>& names);

}  // namespace kvtrie::test
