// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a TreeReport looks, as text and as JSON (docs/kvtrie-json.md).

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/command_tree.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr std::size_t kRunsShown = 3;
constexpr std::size_t kLeasesShown = 4;
constexpr std::uint32_t kIndentMax = 40;  // levels; deeper ones say their level instead

std::string runs_text(const ChainLine& line) {
  std::string text = line.pages == 1 ? "page " : "pages ";
  for (std::size_t i = 0; i < std::min(kRunsShown, line.runs.size()); ++i) {
    const auto [first, last] = line.runs[i];
    if (i > 0) text += ",";
    text += first == last ? std::to_string(first) : fmt::format("{}..{}", first, last);
  }
  if (line.runs.size() > kRunsShown) {
    text += fmt::format(" and {}", counted(line.runs.size() - kRunsShown, "more run"));
  }
  return text;
}

std::string state_text(const ChainLine& line) {
  const bool mixed = (line.live != 0) + (line.pending != 0) + (line.condemned != 0) > 1;
  std::string text;
  auto add = [&](std::uint64_t count, const char* name) {
    if (count == 0) return;
    if (!text.empty()) text += ", ";
    text += mixed ? fmt::format("{} {}", grouped(count), name) : name;
  };
  add(line.live, "live");
  add(line.condemned, "condemned");
  add(line.pending, "pending");
  for (std::size_t i = 0; i < line.owners.size(); ++i) {
    text += fmt::format("{}slot {}", i == 0 ? " by " : ", ", line.owners[i]);
  }
  return text;
}

std::string leases_text(const ChainLine& line) {
  if (line.leases.empty()) return {};
  const std::uint32_t last = line.runs.back().second;
  std::string text = ", leased by";
  for (std::size_t i = 0; i < std::min(kLeasesShown, line.leases.size()); ++i) {
    const ChainLease& lease = line.leases[i];
    text += fmt::format("{} slot {}", i == 0 ? "" : ",", lease.slot);
    if (lease.page != last) text += fmt::format(" at {}", lease.page);
  }
  if (line.leases.size() > kLeasesShown) {
    text += fmt::format(" and {} more", grouped(line.leases.size() - kLeasesShown));
  }
  return text;
}

std::string left_out_text(std::uint64_t branches, std::uint64_t pages) {
  return fmt::format("{} ({}) left out", counted(branches, "branch", "branches"),
                     counted(pages, "page"));
}

std::string line_text(const ChainLine& line) {
  std::string text(std::size_t{2} * std::min(line.level, kIndentMax), ' ');
  if (line.level > kIndentMax) text += fmt::format("[level {}] ", line.level);
  const std::string matching =
      line.matching == line.pages ? "" : fmt::format(", {} matching", grouped(line.matching));
  text += fmt::format("{} ({}, {}{}) {}, touched {}{}", runs_text(line), counted(line.pages, "page"),
                      counted(line.tokens, "token"), matching, state_text(line),
                      ago_text(line.touched_seconds), leases_text(line));
  if (line.branches != 0)
    text += fmt::format("; {} below", counted(line.branches, "branch", "branches"));
  if (line.branches_left_out != 0) {
    text += ", " + left_out_text(line.branches_left_out, line.pages_left_out);
  }
  return text + "\n";
}

std::string header_text(const NamespaceTree& tree) {
  std::string text = fmt::format("namespace {}", tree.name_space.id.value);
  if (!tree.name_space.label.empty()) text += fmt::format(" \"{}\"", tree.name_space.label);
  text += fmt::format(", root generation {}{}: {}, {} below the root", tree.root_generation,
                      tree.current ? "" : " (flushed or closed: no longer matched)",
                      counted(tree.pages, "page"), counted(tree.branches, "branch", "branches"));
  if (tree.branches_left_out != 0) {
    text += ", " + left_out_text(tree.branches_left_out, tree.pages_left_out);
  }
  text += "\n";
  if (tree.current && !tree.name_space.fields.empty())
    text += "  { " + tree.name_space.fields + " }\n";
  return text;
}

std::string filter_text(const TreeReport& report) {
  std::string text;
  if (report.prefix) {
    text += fmt::format("prefix of {}: {} of them cached\n", counted(report.prefix->tokens_given, "token"),
                        grouped(report.prefix->tokens_cached));
  }
  if (report.filtered) {
    text += report.matching_pages == 0
                ? std::string("no page matches\n")
                : fmt::format("{}; counts are of these and of the way to them\n",
                              counted(report.matching_pages, "page matches", "pages match"));
  }
  return text;
}

std::string private_text(const TreeReport& report) {
  std::string text;
  for (std::size_t i = 0; i < report.private_pages.size(); ++i) {
    const auto [slot, pages] = report.private_pages[i];
    text += fmt::format("{}{} written by slot {}", i == 0 ? "" : ", ", grouped(pages), slot);
  }
  if (report.retiring != 0) {
    text += fmt::format("{}{} being evicted", text.empty() ? "" : ", ", grouped(report.retiring));
  }
  return text.empty() ? text : "pages outside the trie: " + text + "\n";
}

const char* words_of(Detached kind) {
  switch (kind) {
    case Detached::kNoParent:
      return "have no parent";
    case Detached::kParentOutOfRange:
      return "have a parent that this segment does not have";
    case Detached::kParentOtherLife:
      return "have a parent that was recycled";
    case Detached::kParentNotInTrie:
      return "have a parent that is free, being written or retiring";
    case Detached::kBelowDetached:
      return "hang below those";
    case Detached::kInCycle:
      return "are in or below a cycle of parents";
  }
  return "";
}

}  // namespace

std::string to_text(const TreeReport& report) {
  std::string text = filter_text(report);
  for (const NamespaceTree& tree : report.namespaces) {
    text += header_text(tree);
    for (const ChainLine& line : tree.lines)
      text += line_text(line);
  }
  if (report.namespaces.empty() && !report.filtered) text += "no namespace is open and no page is cached\n";
  if (report.namespaces_left_out != 0) {
    text += fmt::format("{} ({}) left out\n", counted(report.namespaces_left_out, "more namespace"),
                        counted(report.namespaces_left_out_pages, "page"));
  }
  if (report.pages_left_out != 0) {
    text += fmt::format("{} left out in all; --depth, --limit and --namespace show more\n",
                        counted(report.pages_left_out, "page"));
  }
  text += private_text(report);
  for (const DetachedPages& detached : report.detached) {
    text += fmt::format("! {} {} (such as {}): changed while being read, or see kvtrie verify\n",
                        counted(detached.pages, "page"), words_of(detached.kind),
                        fmt::join(detached.examples, ", "));
  }
  return text;
}

Json to_json(const TreeReport& report) {
  Json json;
  json["filtered"] = report.filtered;
  json["matching_pages"] = report.matching_pages;
  json["prefix"] = nullptr;
  if (report.prefix) {
    json["prefix"] = {{"tokens_given", report.prefix->tokens_given}, {"tokens_cached", report.prefix->tokens_cached}};
  }
  Json& namespaces = json["namespaces"] = Json::array();
  for (const NamespaceTree& tree : report.namespaces) {
    Json entry;
    entry["id"] = tree.name_space.id.value;
    entry["label"] = tree.name_space.label;
    entry["fields"] = tree.name_space.fields;
    entry["root_generation"] = tree.root_generation;
    entry["current"] = tree.current;
    entry["pages"] = tree.pages;
    entry["branches"] = tree.branches;
    entry["branches_left_out"] = tree.branches_left_out;
    entry["pages_left_out"] = tree.pages_left_out;
    Json& lines = entry["chains"] = Json::array();
    for (const ChainLine& line : tree.lines) {
      Json chain;
      chain["level"] = line.level;
      chain["above"] = line.above < 0 ? Json(nullptr) : Json(line.above);
      Json& runs = chain["runs"] = Json::array();
      for (const auto& [first, last] : line.runs)
        runs.push_back({first, last});
      chain["pages"] = line.pages;
      chain["tokens"] = line.tokens;
      chain["matching"] = line.matching;
      chain["live"] = line.live;
      chain["pending"] = line.pending;
      chain["condemned"] = line.condemned;
      chain["pending_of_slots"] = line.owners;
      chain["touched_seconds"] = line.touched_seconds ? Json(*line.touched_seconds) : Json(nullptr);
      Json& leases = chain["leases"] = Json::array();
      for (const ChainLease& lease : line.leases) {
        leases.push_back({{"slot", lease.slot}, {"page", lease.page}});
      }
      chain["subtree_pages"] = line.subtree_pages;
      chain["branches"] = line.branches;
      chain["branches_left_out"] = line.branches_left_out;
      chain["pages_left_out"] = line.pages_left_out;
      lines.push_back(std::move(chain));
    }
    namespaces.push_back(std::move(entry));
  }
  json["namespaces_left_out"] = report.namespaces_left_out;
  json["namespaces_left_out_pages"] = report.namespaces_left_out_pages;
  json["pages_left_out"] = report.pages_left_out;
  Json& private_pages = json["private"] = Json::array();
  for (const auto& [slot, pages] : report.private_pages) {
    private_pages.push_back({{"slot", slot}, {"pages", pages}});
  }
  json["retiring"] = report.retiring;
  json["changed_while_read"] = report.changed_while_read;
  Json& detached = json["detached"] = Json::array();
  for (const DetachedPages& pages : report.detached) {
    detached.push_back(
        {{"kind", name_of(pages.kind)}, {"pages", pages.pages}, {"examples", pages.examples}});
  }
  return json;
}

}  // namespace kvtrie::inspect
