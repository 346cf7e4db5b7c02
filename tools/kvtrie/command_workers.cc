// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_workers.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "shm/counter_names.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

std::string note_of(const WorkerView& worker) {
  if (worker.slot == kCoordinatorSlot)
    return worker.attached() ? "slot 0 is never given: damaged" : "";
  if (!worker.word.well_formed())
    return fmt::format("impossible slot word {}", hex_text(worker.word.raw));
  if (!worker.attached()) return "free slot that still holds something: run kvtrie verify";
  if (worker.liveness == Liveness::kDead) {
    return worker.word.state() == SlotState::kReaping ? "dead, being reaped"
                                                      : "dead, waits for its reap";
  }
  if (worker.liveness == Liveness::kNone && worker.word.state() != SlotState::kReaping) {
    return "names no process";
  }
  if (worker.word.state() == SlotState::kLeaving) return "detached, slot not cleared yet";
  return {};
}

WorkerRow row_of(WorkerView worker, const HostView& host) {
  WorkerRow row;
  row.note = note_of(worker);
  if (worker.attached()) row.attached_seconds = host.age_seconds(worker.attach_tick);
  if (worker.oldest_lease)
    row.oldest_lease_seconds = host.age_seconds(worker.oldest_lease->since_tick);
  if (worker.pages_wanted != 0 && worker.wait_ticket != 0) {
    row.waits_seconds = host.monotonic_age_seconds(worker.wait_ticket);
  }
  row.worker = std::move(worker);
  return row;
}

std::string seconds_or(std::optional<double> seconds, const char* none) {
  return seconds ? seconds_text(*seconds) : none;
}

std::string hits_text(const WorkerView& worker) {
  const std::uint64_t asked = worker.counter(Counter::kPagesAsked);
  if (asked == 0) return "-";
  return fmt::format("{} of {}",
                     percent_text(static_cast<double>(worker.counter(Counter::kPagesHit)),
                                  static_cast<double>(asked)),
                     grouped(asked));
}

std::string oldest_text(const WorkerRow& row) {
  if (!row.worker.oldest_lease) return "-";
  return fmt::format("{} (tag {:#x})", seconds_or(row.oldest_lease_seconds, "?"),
                     row.worker.oldest_lease->request_tag);
}

std::string waits_text(const WorkerRow& row) {
  if (row.worker.pages_wanted == 0) return "-";
  return fmt::format("{} pages for {}", grouped(row.worker.pages_wanted),
                     seconds_or(row.waits_seconds, "?"));
}

Json optional_json(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

Command add_workers_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("workers", "Who is attached, alive, and holds what");
  return {command, [](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string&) {
              return render(gather_workers(segment), context.json);
            });
          }};
}

WorkersReport gather_workers(const Segment& segment) {
  const HostView host(segment);
  const PageStats pages = PageTable(segment).stats();
  WorkersReport report;
  report.slots = segment.geometry().workers;
  for (WorkerView& worker : read_workers(segment, host, pages, read_leases(segment))) {
    if (worker.slot != kCoordinatorSlot && !worker.attached() && !worker.holds()) continue;
    report.rows.push_back(row_of(std::move(worker), host));
  }
  return report;
}

std::string to_text(const WorkersReport& report) {
  using enum Table::Align;
  Table table;
  table.column("slot", kRight);
  table.column("state", kLeft);
  table.column("pid", kRight);
  table.column("process", kLeft);
  table.column("role", kLeft);
  table.column("name", kLeft);
  table.column("attached", kRight);
  table.column("leases", kRight);
  table.column("writing", kRight);
  table.column("pending", kRight);
  table.column("oldest lease", kLeft);
  table.column("page hits", kRight);
  table.column("waits for", kLeft);
  table.column("note", kLeft);
  std::uint64_t attached = 0;
  for (const WorkerRow& row : report.rows) {
    const WorkerView& worker = row.worker;
    const bool coordinator = worker.slot == kCoordinatorSlot;
    if (!coordinator && worker.attached()) ++attached;
    std::string leases = grouped(worker.leases);
    if (worker.stale_leases != 0) leases += fmt::format("+{} stale", grouped(worker.stale_leases));
    table.row({std::to_string(worker.slot.value), coordinator ? "-" : name_of(worker.word.state()),
               worker.pid == 0 ? "-" : std::to_string(worker.pid), name_of(worker.liveness),
               coordinator ? "coordinator" : name_of(worker.role),
               worker.name.empty() ? "-" : worker.name,
               worker.attached() ? seconds_or(row.attached_seconds, "?") : "-", leases,
               grouped(worker.writing), grouped(worker.pending), oldest_text(row),
               hits_text(worker), waits_text(row), row.note});
  }
  return table.text() +
         fmt::format(
             "{} attached, {} slots. Slot 0's leases are the operator's pins; page hits are of "
             "all that had the slot.\n",
             counted(attached, "worker"), report.slots);
}

Json to_json(const WorkersReport& report) {
  Json json;
  json["slots"] = report.slots;
  Json& workers = json["workers"] = Json::array();
  for (const WorkerRow& row : report.rows) {
    const WorkerView& worker = row.worker;
    const bool coordinator = worker.slot == kCoordinatorSlot;
    Json entry;
    entry["slot"] = worker.slot.value;
    entry["state"] = name_of(worker.word.state());
    entry["incarnation"] = worker.word.incarnation();
    entry["pid"] = worker.pid;
    entry["start_time"] = worker.start_time;
    entry["uid"] = worker.uid;
    entry["liveness"] = name_of(worker.liveness);
    entry["role"] = coordinator ? "coordinator" : name_of(worker.role);
    entry["name"] = worker.name;
    entry["attached_seconds"] = optional_json(row.attached_seconds);
    entry["leases"] = worker.leases;
    entry["stale_leases"] = worker.stale_leases;
    entry["leases_high_water"] = worker.leases_high_water;
    entry["pages_writing"] = worker.writing;
    entry["pages_pending"] = worker.pending;
    entry["pages_held_hint"] = worker.held_hint;
    entry["oldest_lease_seconds"] = optional_json(row.oldest_lease_seconds);
    entry["oldest_lease_request_tag"] =
        worker.oldest_lease ? Json(worker.oldest_lease->request_tag) : Json(nullptr);
    entry["oldest_lease_page"] =
        worker.oldest_lease ? Json(worker.oldest_lease->handle.page_index().value) : Json(nullptr);
    entry["pages_wanted"] = worker.pages_wanted;
    entry["waits_seconds"] = optional_json(row.waits_seconds);
    entry["note"] = row.note;
    Json& counters = entry["counters"] = Json::object();
    for (std::size_t i = 0; i < kCounters; ++i) {
      if (const char* name = name_of(static_cast<Counter>(i))) counters[name] = worker.counters[i];
    }
    workers.push_back(std::move(entry));
  }
  return json;
}

}  // namespace kvtrie::inspect
