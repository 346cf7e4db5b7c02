// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvtrie::inspect {
namespace {

void end_line(std::string& text) {
  while (!text.empty() && text.back() == ' ')
    text.pop_back();
  text += '\n';
}

}  // namespace

std::string grouped(std::uint64_t value) {
  std::string text = std::to_string(value);
  for (std::size_t at = text.size(); at > 3; at -= 3)
    text.insert(at - 3, 1, ',');
  return text;
}

std::string bytes_text(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value == std::floor(value) ? 0 : 1, kUnits[unit]);
}

std::string seconds_text(double seconds) {
  if (seconds < 0) return "-" + seconds_text(-seconds);
  if (seconds < 1) return fmt::format("{:.0f} ms", seconds * 1000);
  if (seconds < 60)
    return fmt::format("{:.{}f} s", seconds, seconds == std::floor(seconds) ? 0 : 1);
  const double minutes = std::floor(seconds / 60);
  if (minutes < 60)
    return fmt::format("{:.0f} min {:.0f} s", minutes, std::floor(seconds - minutes * 60));
  const double hours = std::floor(minutes / 60);
  if (hours < 48) return fmt::format("{:.0f} h {:.0f} min", hours, minutes - hours * 60);
  const double days = std::floor(hours / 24);
  return fmt::format("{:.0f} d {:.0f} h", days, hours - days * 24);
}

std::string percent_text(double part, double whole) {
  return whole > 0 ? fmt::format("{:.1f} %", 100 * part / whole) : "-";
}

std::string ago_text(std::optional<double> age_seconds) {
  if (!age_seconds) return "at an unknown time";
  if (*age_seconds < 0) return seconds_text(-*age_seconds) + " in the future";
  return seconds_text(*age_seconds) + " ago";
}

std::string counted(std::uint64_t count, const char* singular, const char* plural) {
  if (count == 1) return fmt::format("1 {}", singular);
  return plural != nullptr ? fmt::format("{} {}", grouped(count), plural)
                           : fmt::format("{} {}s", grouped(count), singular);
}

std::string hex_text(std::uint64_t value) { return fmt::format("{:#018x}", value); }

std::string printable(const char* text, std::size_t bytes) {
  std::string safe;
  for (std::size_t i = 0; i < bytes && text[i] != '\0'; ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x7F && c != '\\') {
      safe += static_cast<char>(c);
    } else {
      safe += fmt::format("\\x{:02x}", c);
    }
  }
  return safe;
}

std::string FieldLines::text() const {
  std::size_t width = 0;
  for (const Line& line : lines_)
    width = std::max(width, line.label.size());
  std::string text;
  for (const Line& line : lines_) {
    text += fmt::format("{:<{}}  {}", line.label, width, line.value);
    end_line(text);
  }
  return text;
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (const std::string& title : titles_)
    widths.push_back(title.size());
  for (const auto& row : rows_) {
    for (std::size_t i = 0; i < row.size() && i < widths.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string text;
  auto add = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size() && i < widths.size(); ++i) {
      const char* gap = i == 0 ? "" : "  ";
      text += aligns_[i] == Align::kRight ? fmt::format("{}{:>{}}", gap, cells[i], widths[i])
                                          : fmt::format("{}{:<{}}", gap, cells[i], widths[i]);
    }
    end_line(text);
  };
  add(titles_);
  for (const auto& row : rows_)
    add(row);
  return text;
}

}  // namespace kvtrie::inspect
