// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/report.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

namespace kvtrie::bench {
namespace {

std::string number(double value) {
  const double size = std::abs(value);
  if (size == 0) return "0";
  if (size >= 100) return fmt::format("{:.0f}", value);
  if (size >= 10) return fmt::format("{:.1f}", value);
  return size >= 1 ? fmt::format("{:.2f}", value) : fmt::format("{:.3g}", value);
}

nlohmann::json json_of(const Spread& spread) {
  return {{"min", spread.minimum}, {"median", spread.median}, {"max", spread.maximum}};
}

nlohmann::json json_of(const Row& row) {
  nlohmann::json json{{"what", row.what}, {"setting", row.setting}, {"value", json_of(row.value)}, {"unit", row.unit}};
  if (!row.to.empty()) {
    json["to"] = row.to;
    json["ratio"] = json_of(row.ratio);
  }
  if (row.target) {
    json["target"] = text_of(*row.target);
    json["met"] = row.met();
  }
  return json;
}

}  // namespace

std::string text_of(const Spread& spread) {
  if (spread.minimum == spread.maximum) return number(spread.median);
  return fmt::format("{} ({} to {})", number(spread.median), number(spread.minimum), number(spread.maximum));
}

std::string text_of(const Target& target) {
  return fmt::format("{} {}{}{}", target.is == Target::Is::kAtMost ? "at most" : "at least", number(target.bound),
                     target.unit.empty() ? "" : " ", target.unit);
}

bool Row::met() const {
  if (!target) return true;
  const double reached = to.empty() || !target->unit.empty() ? value.median : ratio.median;
  return target->is == Target::Is::kAtMost ? reached <= target->bound : reached >= target->bound;
}

void Report::begin_section(std::string name, std::string title) {
  fmt::print("{}: {}\n", name, title);
  sections_.push_back({std::move(name), std::move(title), {}, {}, {}, 0});
}

void Report::end_section(double seconds) {
  sections_.back().seconds = seconds;
  fmt::print("  ({:.1f} s)\n\n", seconds);
}

void Report::add(Row row) {
  fmt::print("  {:<34} {:<52} {:>26} {}", row.what, row.setting, text_of(row.value), row.unit);
  if (!row.to.empty()) fmt::print(", {} times {}", text_of(row.ratio), row.to);
  if (row.target) fmt::print(" [{}: {}]", text_of(*row.target), row.met() ? "met" : "MISSED");
  fmt::print("\n");
  std::fflush(stdout);
  sections_.back().rows.push_back(std::move(row));
}

void Report::note(std::string text) {
  fmt::print("  {}\n", text);
  sections_.back().notes.push_back(std::move(text));
}

void Report::plot(Plot plot) { sections_.back().plots.push_back(std::move(plot)); }

nlohmann::json Report::json() const {
  nlohmann::json all = nlohmann::json::array();
  for (const Section& section : sections_) {
    nlohmann::json rows = nlohmann::json::array();
    for (const Row& row : section.rows) rows.push_back(json_of(row));
    all.push_back({{"section", section.name},
                   {"title", section.title},
                   {"rows", std::move(rows)},
                   {"notes", section.notes},
                   {"seconds", section.seconds}});
  }
  return {{"sections", std::move(all)}, {"targets_missed", targets_missed()}};
}

std::uint32_t Report::targets_missed() const {
  std::uint32_t missed = 0;
  for (const Section& section : sections_) {
    for (const Row& row : section.rows) missed += row.met() ? 0 : 1;
  }
  return missed;
}

}  // namespace kvtrie::bench
