// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Numbers with units, aligned lines, and text out of a segment that may hold anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvtrie::inspect {

std::string grouped(std::uint64_t value);             // 1,234,567
std::string bytes_text(std::uint64_t bytes);          // 153.2 MiB
std::string seconds_text(double seconds);             // 350 ms, 12 s, 3 min 2 s, 2 h 5 min, 3 d 4 h
std::string percent_text(double part, double whole);  // 12.3 %; "-" of nothing
std::string ago_text(std::optional<double> age_seconds);  // "12 s ago"; unknown, or in the future
std::string counted(std::uint64_t count, const char* singular, const char* plural = nullptr);
std::string hex_text(std::uint64_t value);  // 0x00000000000000ff

// Up to the first NUL, never beyond `bytes`; what a terminal would obey or cannot show as \xNN.
std::string printable(const char* text, std::size_t bytes);

// "label  value" lines with the values in one column.
class FieldLines {
 public:
  void add(std::string label, std::string value) {
    lines_.push_back({std::move(label), std::move(value)});
  }
  std::string text() const;

 private:
  struct Line {
    std::string label;  // empty: belongs to the line above
    std::string value;
  };
  std::vector<Line> lines_;
};

// A table with a header; numbers to the right, words to the left.
class Table {
 public:
  enum class Align : std::uint8_t { kLeft, kRight };
  void column(std::string title, Align align) {
    titles_.push_back(std::move(title));
    aligns_.push_back(align);
  }
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string text() const;

 private:
  std::vector<std::string> titles_;
  std::vector<Align> aligns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace kvtrie::inspect
