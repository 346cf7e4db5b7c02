// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a run of kvtrie-bench found: rows, printed as they come, and kept for JSON and for docs/performance.md.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/bench/spread.h"

namespace kvtrie::bench {

struct Target {
  enum class Is : std::uint8_t { kAtMost, kAtLeast };
  Is is;
  double bound;
  std::string unit{};  // then it is the value's; empty: the ratio's, if there is one
};
inline Target at_most(double bound, std::string unit = {}) { return {Target::Is::kAtMost, bound, std::move(unit)}; }
inline Target at_least(double bound, std::string unit = {}) { return {Target::Is::kAtLeast, bound, std::move(unit)}; }

struct Row {
  std::string what;     // measured: "begin, release"
  std::string setting;  // on what: "1 M pages, fresh, prompt of 2,048"
  Spread value;
  std::string unit;  // "ns/page"
  std::string to{};    // the row's ratio is to this; empty: it has none
  Spread ratio{};
  std::optional<Target> target{};  // of the ratio if there is one and the target has no unit, else of the value

  bool met() const;  // by the median; true without a target
};

// A plot of one section: series of points, each with its spread.
struct Plot {
  struct Point {
    double x;
    Spread y;
  };
  struct Series {
    std::string name;
    std::vector<Point> points;
  };
  std::string id;  // of the file: docs/performance/ID.svg
  std::string title;
  std::string x;
  std::string y;
  bool log_x = false;
  bool log_y = false;
  std::vector<Series> series;
};

class Report {
 public:
  struct Section {
    std::string name;
    std::string title;
    std::vector<Row> rows;
    std::vector<std::string> notes;
    std::vector<Plot> plots;
    double seconds = 0;
  };

  // What is added from here on belongs to it.
  void begin_section(std::string name, std::string title);
  void end_section(double seconds);
  void add(Row row);
  // A sentence beside the rows: what was void, skipped, or is to be known.
  void note(std::string text);
  void plot(Plot plot);

  const std::vector<Section>& sections() const { return sections_; }
  nlohmann::json json() const;
  std::uint32_t targets_missed() const;

 private:
  std::vector<Section> sections_;
};

// "1.43 (1.41 to 1.46)", three digits that say something.
std::string text_of(const Spread& spread);
std::string text_of(const Target& target);

}  // namespace kvtrie::bench
