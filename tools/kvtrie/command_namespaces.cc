// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_namespaces.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {


class PageCounter {
 public:
  explicit PageCounter(const Segment& segment) : segment_(segment), pages_(segment.namespace_count()) {
    for (std::uint32_t i = 0; i < segment.namespace_count(); ++i) {
      views_.push_back(read_namespace(segment, {static_cast<std::uint16_t>(i)}));
    }
  }

  NamespacesReport run() {
    for (std::uint32_t page = 0; page < segment_.page_count(); ++page) add_page(page);
    for (const LeaseView& lease : read_leases(segment_)) add_lease(lease);
    NamespacesReport report;
    report.records = segment_.namespace_count();
    report.pool_pages = segment_.page_count();
    report.bytes_per_page = segment_.geometry().page_bytes * segment_.geometry().planes;
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (views_[i].open || pages_[i].total() != 0) report.rows.push_back({std::move(views_[i]), pages_[i]});
    }
    std::ranges::stable_sort(report.rows, std::ranges::greater{},
                             [](const NamespaceRow& row) { return row.pages.total(); });
    report.unknown = unknown_;
    return report;
  }

 private:
  NamespacePages& pages_of(std::uint32_t scope) {
    const std::uint16_t id = namespace_in(scope).value;
    return id < pages_.size() ? pages_[id] : unknown_;
  }

  bool flushed(std::uint32_t scope) const {
    const std::uint16_t id = namespace_in(scope).value;
    if (id >= views_.size()) return false;
    return !views_[id].open || scope_of({id}, views_[id].root_generation) != scope;
  }

  void add_page(std::uint32_t page) {
    const Descriptor& descriptor = segment_.descriptor({page});
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    if (!word.well_formed() || !word.canonical()) return;
    const std::uint32_t scope = descriptor.scope.load(kRelaxed);
    NamespacePages& pages = pages_of(scope);
    ++pages.by_state[static_cast<std::size_t>(word.state())];
    if (flushed(scope)) ++pages.flushed;
    if (!word.readable()) return;
    pages.tokens += std::min<std::uint32_t>(descriptor.token_count.load(kRelaxed), segment_.tokens_per_page());
  }

  void add_lease(const LeaseView& lease) {
    if (lease.target != LeaseTarget::kPage) return;
    const std::uint32_t scope = segment_.descriptor(lease.handle.page_index()).scope.load(kRelaxed);
    NamespacePages& pages = pages_of(scope);
    ++pages.leases;
    if (flushed(scope)) ++pages.flushed_leases;
  }

  const Segment& segment_;
  std::vector<NamespaceView> views_;
  std::vector<NamespacePages> pages_;
  NamespacePages unknown_;
};

double share_of(const NamespacesReport& report, std::uint64_t pages) {
  return static_cast<double>(pages) / static_cast<double>(report.pool_pages);
}

std::string flushed_text(const NamespacePages& pages) {
  if (pages.flushed == 0) return "-";
  std::string text = grouped(pages.flushed);
  if (pages.flushed_leases != 0) text += fmt::format(" ({})", counted(pages.flushed_leases, "lease"));
  return text;
}

Json to_json(const NamespacesReport& report, const NamespacePages& pages) {
  return {{"pending", pages.of(PageState::kPending)},
          {"live", pages.of(PageState::kLive)},
          {"condemned", pages.of(PageState::kCondemned)},
          {"flushed", pages.flushed},
          {"total", pages.total()},
          {"bytes", pages.total() * report.bytes_per_page},
          {"share", share_of(report, pages.total())},
          {"tokens", pages.tokens},
          {"leases", pages.leases},
          {"flushed_leases", pages.flushed_leases}};
}

}  // namespace

Command add_namespaces_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("namespaces", "What each namespace is, and how much of the pool it has");
  return {command, [](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string&) {
              return render(gather_namespaces(segment), context.json);
            });
          }};
}

NamespacesReport gather_namespaces(const Segment& segment) { return PageCounter(segment).run(); }

std::string to_text(const NamespacesReport& report) {
  using enum Table::Align;
  Table table;
  table.column("id", kRight);
  table.column("label", kLeft);
  table.column("state", kLeft);
  table.column("generation", kRight);
  table.column("live", kRight);
  table.column("pending", kRight);
  table.column("condemned", kRight);
  table.column("flushed", kRight);
  table.column("bytes", kRight);
  table.column("of pool", kRight);
  table.column("tokens", kRight);
  table.column("leases", kRight);
  table.column("fields", kLeft);
  for (const auto& [view, pages] : report.rows) {
    table.row({std::to_string(view.id.value), view.label.empty() ? "-" : view.label, view.open ? "open" : "closed",
               std::to_string(view.root_generation), grouped(pages.of(PageState::kLive)),
               grouped(pages.of(PageState::kPending)), grouped(pages.of(PageState::kCondemned)), flushed_text(pages),
               bytes_text(pages.total() * report.bytes_per_page),
               percent_text(static_cast<double>(pages.total()), static_cast<double>(report.pool_pages)),
               grouped(pages.tokens), grouped(pages.leases), view.fields});
  }
  std::string text = table.text() + fmt::format("{} of {}. Flushed pages are counted in their states too; they are "
                                                "never matched again, and go when no lease holds them.\n",
                                                counted(report.rows.size(), "namespace"), grouped(report.records));
  if (report.unknown.total() != 0) {
    text += fmt::format("! {} of namespaces that this segment does not have: run kvtrie verify\n",
                        counted(report.unknown.total(), "page"));
  }
  return text;
}

Json to_json(const NamespacesReport& report) {
  Json json;
  json["records"] = report.records;
  json["pool_pages"] = report.pool_pages;
  json["bytes_per_page"] = report.bytes_per_page;
  Json& namespaces = json["namespaces"] = Json::array();
  for (const auto& [view, pages] : report.rows) {
    Json entry;
    entry["id"] = view.id.value;
    entry["label"] = view.label;
    entry["fields"] = view.fields;
    entry["state"] = view.open ? "open" : "closed";
    entry["root_generation"] = view.root_generation;
    entry["pages"] = to_json(report, pages);
    namespaces.push_back(std::move(entry));
  }
  json["unknown_namespace_pages"] = report.unknown.total();
  return json;
}

}  // namespace kvtrie::inspect
