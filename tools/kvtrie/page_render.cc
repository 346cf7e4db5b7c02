// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a PageReport looks, as text and as JSON (docs/kvtrie-json.md).

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/command_page.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr std::size_t kTokensShown = 12;
constexpr std::size_t kChildrenShown = 12;
constexpr std::size_t kRunsShown = 8;

// Never used, or not in the trie yet: what it says of its place is of its last life.
bool is_of_last_life(const PageReport& report) {
  return report.word.state() == PageState::kFree || report.word.state() == PageState::kWriting;
}

std::string state_text(const PageReport& report) {
  std::string text =
      fmt::format("{}, generation {}", name_of(report.word.state()), report.word.generation());
  if (report.word.owned()) text += ", owned by " + report.owner;
  if (report.word.state() != PageState::kFree) text += ", " + ago_text(report.since_seconds);
  if (!report.word.well_formed())
    text += fmt::format(" (IMPOSSIBLE word {})", hex_text(report.word.raw));
  if (report.changed) text += " (changed while being read: look again)";
  return text;
}

std::string list_text(const std::vector<std::uint32_t>& numbers, std::size_t shown,
                      std::uint64_t total) {
  const std::size_t count = std::min(shown, numbers.size());
  std::string text = fmt::format(
      "{}", fmt::join(numbers.begin(), numbers.begin() + static_cast<std::ptrdiff_t>(count), " "));
  if (total > count) text += fmt::format(" ... ({} more)", grouped(total - count));
  return text;
}

std::string tokens_text(const PageReport& report) {
  if (report.tokens.empty()) return fmt::format("{}", report.token_count);
  return fmt::format("{}: {}", report.token_count,
                     list_text(report.tokens, kTokensShown, report.token_count));
}

std::string hash_text(const PageReport& report) {
  std::string text = hex_text(report.prefix_hash);
  if (report.hash_fits)
    text += *report.hash_fits ? " (fits parent and tokens)" : " (DOES NOT FIT parent and tokens)";
  return text;
}

std::string retain_text(const PageReport& report) {
  if (report.retain_until == 0) return "none";
  if (!report.retain_seconds) return fmt::format("tick {}", report.retain_until);
  return *report.retain_seconds > 0
             ? fmt::format("for another {}", seconds_text(*report.retain_seconds))
             : fmt::format("over since {}", seconds_text(-*report.retain_seconds));
}

std::string index_text(const PageReport& report) {
  std::string text = counted(report.index_entries.size(), "entry", "entries");
  for (const IndexEntryView& entry : report.index_entries) {
    text += fmt::format(", bucket {} place {}", entry.bucket, entry.entry);
  }
  return text + fmt::format(" (its key belongs to buckets {} and {}, stripe {})",
                            report.index_buckets[0], report.index_buckets[1], report.index_stripe);
}

std::string path_text(const PathToRoot& path) {
  std::string text = path.broken.empty()
                         ? fmt::format("root of namespace {}", path.name_space.value_or(0))
                         : fmt::format("BROKEN, {}", path.broken);
  text += fmt::format(" > {}: ", counted(path.pages, "page"));
  auto add = [&](std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i) {
      const auto [first, last] = path.runs[i];
      text += first == last ? fmt::format("{} ", first) : fmt::format("{}..{} ", first, last);
    }
  };
  if (path.runs.size() <= kRunsShown) {
    add(0, path.runs.size());
  } else {
    add(0, kRunsShown / 2);
    text += fmt::format("... ({}) ... ", counted(path.runs.size() - kRunsShown, "more run"));
    add(path.runs.size() - kRunsShown / 2, path.runs.size());
  }
  text.pop_back();
  return text;
}

void add_leases(const PageReport& report, FieldLines& lines) {
  if (report.leases.empty()) lines.add("leases", "none");
  std::string label = "leases";
  for (const PageLease& lease : report.leases) {
    std::string text =
        fmt::format("{}, lease {}, taken {}, request tag {:#x}", lease.holder, lease.lease.index,
                    ago_text(lease.held_seconds), lease.lease.request_tag);
    if (lease.lease.target != LeaseTarget::kPage) text += " (of another life: protects nothing)";
    if (lease.lease.beyond_high_water)
      text += " (ABOVE its high-water mark: the evictor misses it)";
    lines.add(label, text);
    label.clear();
  }
}

}  // namespace

std::string to_text(const PageReport& report) {
  FieldLines lines;
  lines.add("page", std::to_string(report.page.value));
  lines.add("state", state_text(report));
  if (is_of_last_life(report)) {
    const bool free = report.word.state() == PageState::kFree;
    lines.add("", free ? "what follows is left over from its last life"
                       : "not in the trie: what follows may be left over from its last life");
  }
  lines.add("namespace", report.name_space_text +
                             fmt::format(", root generation ..{}", report.scope_generation_low));
  lines.add("parent", report.parent_text);
  lines.add("path", path_text(report.path));
  lines.add("depth",
            fmt::format("{} (priority {}, tier {})", report.depth, report.priority, report.tier));
  lines.add("tokens", tokens_text(report));
  lines.add("children",
            report.children_count == 0
                ? "none"
                : fmt::format("{}: {}", grouped(report.children_count),
                              list_text(report.children, kChildrenShown, report.children_count)));
  lines.add("child hint", report.child_hint_text);
  add_leases(report, lines);
  for (std::size_t i = 0; i < report.eviction.reasons.size(); ++i) {
    lines.add(i == 0 ? "evictable" : "", fmt::format("{}: {}", report.eviction.possible ? "yes" : "no",
                                                     report.eviction.reasons[i]));
  }
  lines.add("touched", fmt::format("{} (order {} in its tick, {} touches, hint and flags {:#04x})",
                                   ago_text(report.touched_seconds), report.touch.order(),
                                   report.touch.touches(), report.touch.hint_and_flags()));
  lines.add("retained", retain_text(report));
  lines.add("written by", report.publisher_text);
  lines.add("prefix hash", hash_text(report));
  lines.add("index", index_text(report));
  lines.add("announced", fmt::format("{} below it, ever",
                                     counted(report.announce_counter, "child", "children")));
  lines.add("free bit", report.free_bit ? "set" : "clear");
  lines.add("checksum", report.checksum == 0 ? "not computed" : hex_text(report.checksum));
  if (report.path_tokens) lines.add("path tokens", fmt::format("{}", fmt::join(*report.path_tokens, ",")));
  return lines.text() + (report.statistics ? to_text(*report.statistics) : "");
}

Json to_json(const PageReport& report) {
  auto optional = [](const auto& value) { return value ? Json(*value) : Json(nullptr); };
  Json json;
  json["page"] = report.page.value;
  json["state"] = name_of(report.word.state());
  json["generation"] = report.word.generation();
  json["state_word"] = hex_text(report.word.raw);
  json["well_formed"] = report.word.well_formed();
  json["changed_while_read"] = report.changed;
  json["owner_slot"] = report.word.owned() ? Json(report.owner_slot) : Json(nullptr);
  json["since_seconds"] = optional(report.since_seconds);
  json["namespace"] = report.scope_namespace;
  json["root_generation_low16"] = report.scope_generation_low;
  json["parent"] = {{"handle", hex_text(report.parent.raw)},
                    {"kind", report.parent.none()      ? "none"
                             : report.parent.is_page() ? "page"
                             : report.parent.is_root() ? "root"
                                                       : "impossible"},
                    {"index", report.parent.is_root() ? report.parent.namespace_id().value
                                                      : report.parent.page_index().value},
                    {"generation", report.parent.generation()},
                    {"text", report.parent_text}};
  Json& path = json["path"];
  path["pages"] = report.path.pages;
  path["namespace"] = optional(report.path.name_space);
  path["broken"] = report.path.broken.empty() ? Json(nullptr) : Json(report.path.broken);
  Json& runs = path["runs"] = Json::array();
  for (const auto& [first, last] : report.path.runs)
    runs.push_back({first, last});
  json["path_tokens"] = optional(report.path_tokens);
  json["depth"] = report.depth;
  json["priority"] = report.priority;
  json["tier"] = report.tier;
  json["token_count"] = report.token_count;
  json["tokens"] = report.tokens;
  json["children_count"] = report.children_count;
  json["children"] = report.children;
  json["child_hint"] = report.child_hint == 0 ? Json(nullptr) : Json(report.child_hint - 1);
  Json& leases = json["leases"] = Json::array();
  for (const PageLease& lease : report.leases) {
    leases.push_back({{"slot", lease.lease.slot.value},
                      {"lease", lease.lease.index},
                      {"held_seconds", optional(lease.held_seconds)},
                      {"request_tag", lease.lease.request_tag},
                      {"target", name_of(lease.lease.target)},
                      {"beyond_high_water", lease.lease.beyond_high_water}});
  }
  json["flushed"] = report.flushed;
  json["evictable"] = {{"possible", report.eviction.possible}, {"reasons", report.eviction.reasons}};
  json["touched_seconds"] = optional(report.touched_seconds);
  json["touch"] = {{"tick", report.touch.tick()},
                   {"order", report.touch.order()},
                   {"touches", report.touch.touches()},
                   {"hint_and_flags", report.touch.hint_and_flags()}};
  json["retain_until_tick"] = report.retain_until;
  json["retain_seconds"] = optional(report.retain_seconds);
  json["publisher_slot"] = report.publisher;
  json["prefix_hash"] = hex_text(report.prefix_hash);
  json["hash_fits"] = optional(report.hash_fits);
  Json& index = json["index"];
  index["stripe"] = report.index_stripe;
  index["buckets"] = {report.index_buckets[0], report.index_buckets[1]};
  Json& entries = index["entries"] = Json::array();
  for (const IndexEntryView& entry : report.index_entries) {
    entries.push_back({{"bucket", entry.bucket}, {"place", entry.entry}});
  }
  json["announce_counter"] = report.announce_counter;
  json["free_bit"] = report.free_bit;
  json["checksum"] = hex_text(report.checksum);
  json["statistics"] = report.statistics ? to_json(*report.statistics) : Json(nullptr);
  return json;
}

}  // namespace kvtrie::inspect
