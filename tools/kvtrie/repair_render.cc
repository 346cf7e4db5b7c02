// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What `kvtrie verify --repair` says.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/command_repair.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

std::string examples_text(const std::vector<std::uint32_t>& pages, std::uint64_t of) {
  return fmt::format("{} {}{}", of == 1 ? "page" : "pages", fmt::join(pages, ", "),
                     of > pages.size() ? fmt::format(" and {} more", grouped(of - pages.size())) : "");
}

std::string bytes_line(const RepairReport& report) {
  const RepairPlan& plan = report.plan;
  if (plan.checksums_compared == 0)
    return "not looked at: this cache has no page checksums that say what they should be";
  return fmt::format("compared with the checksums of {}", counted(plan.checksums_compared, "page"));
}

std::string things(std::uint64_t pages, std::uint64_t namespaces, std::uint64_t pins) {
  return fmt::format("{}, {}, {}", grouped(pages) + (pages == 1 ? " page" : " pages"),
                     counted(namespaces, "namespace"), counted(pins, "pin"));
}

std::string namespace_name(const NamespaceLine& line) {
  return fmt::format("namespace {} ({})", line.id, line.label.empty() ? "no label" : line.label);
}

void add_losses(const RepairReport& report, std::string& text) {
  const RepairPlan& plan = report.plan;
  for (std::size_t i = 0; i < kPageFates; ++i) {
    const auto fate = static_cast<PageFate>(i);
    if (!is_loss(fate) || plan.pages[i] == 0) continue;
    text += fmt::format("- {}: {} ({})\n", counted(plan.pages[i], "page"), why_of(fate),
                        examples_text(plan.examples[i], plan.pages[i]));
  }
  for (const NamespaceLine& line : report.namespaces) {
    if (!line.plan.why.empty())
      text += fmt::format("- {}{}: {}\n", namespace_name(line), line.plan.kept ? " keeps no page" : "", line.plan.why);
  }
  for (const PinPlan& pin : plan.pins) {
    if (pin.kept) continue;
    text += fmt::format("- pin {} ({}): its page is not kept\n", pin.pin.number,
                        printable(pin.pin.reason.data(), pin.pin.reason.size()));
  }
}

std::string ending(const RepairReport& report) {
  if (report.done) return "repaired: start kvtried as before, it adopts the cache\n";
  std::string text;
  if (!report.living.empty()) {
    text += "! these processes work with it and have to end first:\n";
    for (const LivingProcess& each : report.living) {
      text += fmt::format("    pid {}{}\n", each.pid,
                          each.slot == 0 ? " (has its memory mapped)"
                                         : fmt::format(" (worker slot {}, {})", each.slot, each.name));
    }
  }
  return text + fmt::format("nothing was changed; to do it: kvtrie verify --repair --yes --cache {} (needs {} in "
                            "/dev/shm)\n",
                            report.cache, bytes_text(report.segment_bytes));
}

}  // namespace

std::string to_text(const RepairReport& report) {
  FieldLines lines;
  lines.add("cache", report.cache);
  if (!report.needed) {
    lines.add("found", "nothing: kvtried adopts it as it is, there is nothing to repair");
    return lines.text();
  }
  const RepairPlan& plan = report.plan;
  const auto pins_kept = static_cast<std::uint64_t>(std::ranges::count(plan.pins, true, &PinPlan::kept));
  const auto namespaces_kept = static_cast<std::uint64_t>(
      std::ranges::count(report.namespaces, true, [](const NamespaceLine& line) { return line.plan.kept; }));
  lines.add("found", fmt::format("{}{}", report.first_finding,
                                 report.findings_total > 1
                                     ? fmt::format(" (of {} findings)", grouped(report.findings_total))
                                     : ""));
  lines.add(report.done ? "kept" : "would keep", things(plan.of(PageFate::kKept), namespaces_kept, pins_kept));
  lines.add(report.done ? "thrown away" : "would throw away",
            things(plan.pages_lost(), report.namespaces.size() - namespaces_kept, plan.pins.size() - pins_kept));
  lines.add("no loss", fmt::format("{} of dead processes, unfinished; {} of flushed namespaces",
                                   counted(plan.of(PageFate::kUnfinished), "page"),
                                   counted(plan.of(PageFate::kFlushed), "page")));
  lines.add("page bytes", bytes_line(report));
  std::string text = lines.text();
  add_losses(report, text);
  return text + ending(report);
}

Json to_json(const RepairReport& report) {
  const RepairPlan& plan = report.plan;
  Json json;
  json["cache"] = report.cache;
  json["needed"] = report.needed;
  json["done"] = report.done;
  json["findings_total"] = report.findings_total;
  json["first_finding"] = report.first_finding;
  json["pages_kept"] = plan.of(PageFate::kKept);
  json["pages_lost"] = plan.pages_lost();
  json["pages_unfinished"] = plan.of(PageFate::kUnfinished);
  json["pages_flushed"] = plan.of(PageFate::kFlushed);
  json["checksums_compared"] = plan.checksums_compared;
  Json& lost = json["lost"] = Json::array();
  for (std::size_t i = 0; i < kPageFates; ++i) {
    const auto fate = static_cast<PageFate>(i);
    if (!is_loss(fate) || plan.pages[i] == 0) continue;
    lost.push_back({{"reason", name_of(fate)}, {"meaning", why_of(fate)}, {"pages", plan.pages[i]},
                    {"examples", plan.examples[i]}});
  }
  Json& namespaces = json["namespaces"] = Json::array();
  for (const NamespaceLine& line : report.namespaces) {
    namespaces.push_back({{"namespace", line.id}, {"label", line.label}, {"kept", line.plan.kept},
                          {"pages_kept", line.plan.pages_kept}, {"pages_lost", line.plan.pages_lost},
                          {"problem", line.plan.why}});
  }
  Json& pins = json["pins"] = Json::array();
  for (const PinPlan& pin : plan.pins) {
    pins.push_back({{"pin", pin.pin.number}, {"page", pin.pin.page.page_index().value}, {"kept", pin.kept},
                    {"reason", printable(pin.pin.reason.data(), pin.pin.reason.size())}});
  }
  json["segment_bytes"] = report.segment_bytes;
  Json& living = json["living"] = Json::array();
  for (const LivingProcess& each : report.living)
    living.push_back({{"pid", each.pid}, {"slot", each.slot}, {"name", each.name}});
  return json;
}

}  // namespace kvtrie::inspect
