// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/docs_writer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "tools/bench/plots.h"

namespace kvtrie::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOpens = "<!-- kvtrie-bench ";
constexpr std::string_view kCloses = " -->";
constexpr std::string_view kEnd = "<!-- end -->";
constexpr const char* kRun = "run";

[[noreturn]] void refuse(const fs::path& page, const std::string& why) {
  throw std::runtime_error(fmt::format("{}: {}", page.string(), why));
}

std::string read(const fs::path& page) {
  std::ifstream file(page, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) refuse(page, "cannot be read");
  return text;
}

// Where the contents of a region stand.
struct Region {
  std::size_t begin;
  std::size_t end;
};
using Regions = std::map<std::string, Region>;

Regions regions_of(const fs::path& page, const std::string& text) {
  Regions regions;
  std::string open;  // name
  std::size_t begin = 0;
  int number = 1;
  for (std::size_t at = 0; at < text.size(); ++number) {
    const std::size_t feed = std::min(text.find('\n', at), text.size());
    const std::string_view line = std::string_view(text).substr(at, feed - at);
    const std::size_t next = std::min(feed + 1, text.size());
    if (line.starts_with(kOpens) && line.ends_with(kCloses)) {
      if (!open.empty())
        refuse(page, fmt::format("line {}: region {} has no `{}` before the next one", number, open, kEnd));
      open = line.substr(kOpens.size(), line.size() - kOpens.size() - kCloses.size());
      begin = next;
      if (regions.contains(open)) refuse(page, fmt::format("line {}: region {} is there twice", number, open));
    } else if (line == kEnd) {
      if (open.empty()) refuse(page, fmt::format("line {}: `{}` without a region", number, kEnd));
      regions[open] = {begin, at};
      open.clear();
    }
    at = next;
  }
  if (!open.empty()) refuse(page, fmt::format("region {} has no `{}`", open, kEnd));
  return regions;
}

void expect_region(const fs::path& page, const Regions& regions, const std::string& name) {
  if (regions.contains(name)) return;
  refuse(page, fmt::format("there is no region for `{0}`: it needs the lines `{1}{0}{2}` and `{3}`", name, kOpens,
                           kCloses, kEnd));
}

// Text that stands in a cell of a table or in one line.
std::string line_of(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|' || c == '<') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

std::string table_of(const std::vector<Row>& rows) {
  if (rows.empty()) return {};
  std::string table = "| what | setting | value | ratio | target | |\n|---|---|---|---|---|---|\n";
  for (const Row& row : rows) {
    table += fmt::format("| {} | {} | {} {} | {} | {} | {} |\n", line_of(row.what), line_of(row.setting),
                         text_of(row.value), line_of(row.unit),
                         row.to.empty() ? "" : fmt::format("{} times {}", text_of(row.ratio), line_of(row.to)),
                         row.target ? text_of(*row.target) : "",
                         !row.target ? ""
                         : row.met() ? "met"
                                     : "**missed**");
  }
  return table;
}

std::string text_of(const Report::Section& section, const Run& run, const std::string& folder, bool plots) {
  std::string text = fmt::format("\n{} ({}, {:.0f} s)\n\n", line_of(section.title), run.date, section.seconds);
  text += table_of(section.rows);
  if (!section.notes.empty() && !section.rows.empty()) text += '\n';
  for (const std::string& note : section.notes)
    text += fmt::format("* {}\n", line_of(note));
  for (const Plot& plot : section.plots) {
    if (plots) text += fmt::format("\n![{}]({}/{}.svg)\n", line_of(plot.title), folder, plot.id);
  }
  return text + '\n';
}

std::string text_of(const Report& report, const Run& run) {
  std::uint32_t targets = 0;
  std::string names;
  for (const Report::Section& section : report.sections()) {
    names += (names.empty() ? "" : ", ") + section.name;
    targets += static_cast<std::uint32_t>(
        std::ranges::count_if(section.rows, [](const Row& row) { return row.target.has_value(); }));
  }
  std::string text = fmt::format("\n* {}: `{}`, {:.0f} s\n", run.date, run.command, run.seconds);
  for (const std::string& line : run.host)
    text += fmt::format("* {}\n", line_of(line));
  text += fmt::format("* sections of this run: {}\n* targets met: {} of {}\n\n", names,
                      targets - report.targets_missed(), targets);
  return text;
}

// The plots of all sections; empty, or why there are none.
std::string draw_plots(const fs::path& folder, const Report& report) {
  for (const Report::Section& section : report.sections()) {
    for (const Plot& plot : section.plots) {
      fs::create_directories(folder);
      if (std::string why = draw(plot, folder / (plot.id + ".svg")); !why.empty()) return why;
    }
  }
  return {};
}

void replace(const fs::path& page, const std::string& text) {
  const fs::path next = page.string() + fmt::format(".{}.new", ::getpid());
  std::error_code ignored;
  if (!(std::ofstream(next, std::ios::binary) << text << std::flush)) {
    fs::remove(next, ignored);
    refuse(page, "a new version cannot be written beside it");
  }
  fs::permissions(next, fs::status(page).permissions(), ignored);
  std::error_code error;
  fs::rename(next, page, error);
  if (!error) return;
  fs::remove(next, ignored);
  refuse(page, error.message());
}

}  // namespace

void check_page(const fs::path& page, std::span<const std::string> sections) {
  const Regions regions = regions_of(page, read(page));
  expect_region(page, regions, kRun);
  for (const std::string& section : sections)
    expect_region(page, regions, section);
}

std::string write_page(const fs::path& given, const Report& report, const Run& run) {
  std::error_code error;
  const fs::path page = fs::canonical(given, error);  // of a link: what it leads to is replaced, not the link
  if (error) refuse(given, error.message());
  std::string text = read(page);  // anew: people may have written meanwhile
  const Regions regions = regions_of(page, text);
  expect_region(page, regions, kRun);
  for (const Report::Section& section : report.sections())
    expect_region(page, regions, section.name);

  const std::string folder = page.stem().string();
  std::string no_plots = draw_plots(page.parent_path() / folder, report);
  std::vector<std::pair<Region, std::string>> contents{{regions.at(kRun), text_of(report, run)}};
  for (const Report::Section& section : report.sections()) {
    contents.emplace_back(regions.at(section.name), text_of(section, run, folder, no_plots.empty()));
  }
  // From the end, so that the places before stay what they are.
  std::ranges::sort(contents, std::ranges::greater{}, [](const auto& entry) { return entry.first.begin; });
  for (const auto& [region, content] : contents)
    text.replace(region.begin, region.end - region.begin, content);
  replace(page, text);
  return no_plots;
}

}  // namespace kvtrie::bench
