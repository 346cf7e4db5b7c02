// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/step_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace kvtrie::test {
namespace {

enum Column : std::size_t { kInstructions, kStates, kKills, kImages, kViolations, kOffRoute };

struct Line {
  StepPart part;
  std::string operation;
  StepNumbers numbers{};
};

// Whole lines; the last one of a run that was killed may not be.
std::vector<Line> lines_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<Line> lines;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    Line line;
    words >> line.part.plan >> line.part.shard >> line.part.shards >> line.operation;
    for (std::uint64_t& number : line.numbers) words >> number;
    std::string end;
    if (words >> end && end == "end") lines.push_back(std::move(line));
  }
  return lines;
}

using Row = std::pair<std::string, StepNumbers>;

bool print_rows(const std::vector<Row>& rows) {
  fmt::print("| operation | instructions | states | kills | images judged | violations |\n|---|---|---|---|---|---|\n");
  Row all{"all", {}};
  const auto print = [](const Row& row) {
    const StepNumbers& n = row.second;
    fmt::print("| {} | {} | {} | {} | {} | {} |\n", row.first, n[kInstructions], n[kStates], n[kKills], n[kImages],
               n[kViolations]);
  };
  for (const Row& row : rows) {
    print(row);
    for (std::size_t i = 0; i < row.second.size(); ++i) all.second[i] += row.second[i];
  }
  print(all);
  fmt::print(stderr, "{} kills off the recorded route\n", all.second[kOffRoute]);
  return all.second[kViolations] == 0 && all.second[kKills] != 0;
}

}  // namespace

StepTable::StepTable(StepPart part, const std::string& file) : part_(std::move(part)) {
  if (file.empty()) return;
  for (Line& line : lines_of(file)) {
    if (line.part == part_ && !has(line.operation)) rows_.emplace_back(std::move(line.operation), line.numbers);
  }
  file_.open(file, std::ios::app);
  file_ << '\n';  // behind a line that was not finished
  if (!file_) throw std::runtime_error("cannot write " + file);
}

bool StepTable::has(std::string_view operation) const {
  return std::ranges::any_of(rows_, [&](const Row& row) { return row.first == operation; });
}

void StepTable::add(std::string_view operation, const StepOutcome& outcome) {
  const StepNumbers numbers{outcome.instructions, outcome.states,            outcome.kills,
                            outcome.images,       outcome.violations.size(), outcome.off_route};
  rows_.emplace_back(operation, numbers);
  if (!file_.is_open()) return;
  file_ << part_.plan << ' ' << part_.shard << ' ' << part_.shards << ' ' << operation;
  for (const std::uint64_t number : numbers) file_ << ' ' << number;
  file_ << " end" << std::endl;
}

bool StepTable::print() const { return print_rows(rows_); }

bool print_merged(const std::vector<std::string>& files, const std::vector<std::string>& names) {
  std::vector<Line> lines;
  for (const std::string& file : files) std::ranges::move(lines_of(file), std::back_inserter(lines));
  if (lines.empty()) throw std::runtime_error("the files have no rows");
  const StepPart first = lines.front().part;
  std::map<std::string, std::map<std::size_t, StepNumbers>> by_shard;
  for (const Line& line : lines) {
    if (line.part.plan != first.plan || line.part.shards != first.shards) {
      throw std::runtime_error("the files are of two plans");
    }
    by_shard[line.operation][line.part.shard] = line.numbers;
  }
  std::vector<Row> rows;
  bool whole = true;
  for (const std::string& name : names) {
    const auto& parts = by_shard[name];
    if (parts.size() != first.shards) {
      fmt::print(stderr, "step_kill: {}: {} of {} shards\n", name, parts.size(), first.shards);
      whole = false;
    }
    if (parts.empty()) continue;
    StepNumbers sum{};
    for (const auto& [shard, numbers] : parts) {
      for (const std::size_t each : {kInstructions, kStates}) sum[each] = std::max(sum[each], numbers[each]);
      for (const std::size_t each : {kKills, kImages, kViolations, kOffRoute}) sum[each] += numbers[each];
    }
    rows.emplace_back(name, sum);
  }
  return print_rows(rows) && whole;
}

}  // namespace kvtrie::test
