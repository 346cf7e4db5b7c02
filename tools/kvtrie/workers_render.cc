// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a WorkersReport looks, as text and as JSON (docs/kvtrie-json.md).

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "shm/counter_names.h"
#include "tools/kvtrie/command_workers.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

std::string seconds_or(std::optional<double> seconds, const char* none) {
  return seconds ? seconds_text(*seconds) : none;
}

const char* role_name(const WorkerView& worker) {
  return worker.slot == kCoordinatorSlot ? "coordinator" : name_of(worker.role);
}

bool writes_planes(const WorkerView& worker) {
  return worker.slot != kCoordinatorSlot && worker.role == WorkerRole::kPlaneWriter;
}

std::vector<unsigned> planes_of(const WorkerView& worker) {
  std::vector<unsigned> planes;
  for (unsigned plane = 0; plane < 64; ++plane) {
    if ((worker.plane_mask >> plane & 1) != 0) planes.push_back(plane);
  }
  return planes;
}

// "plane_writer of 3: 0, 1": the slot that it writes for, and the planes.
std::string role_text(const WorkerView& worker) {
  if (!writes_planes(worker)) return role_name(worker);
  return fmt::format("{} of {}: {}", role_name(worker), worker.scheduler, fmt::join(planes_of(worker), ", "));
}

const char* process_text(const WorkerView& worker) {
  if (worker.liveness != Liveness::kAlive) return name_of(worker.liveness);
  return worker.stopped ? "stopped" : "running";
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

std::string leases_text(const WorkerView& worker) {
  std::string text = grouped(worker.leases);
  if (worker.stale_leases != 0) text += fmt::format("+{} stale", grouped(worker.stale_leases));
  return text;
}

// "5, 12 s": pages, and how long the oldest has been so.
std::string own_pages_text(std::uint64_t pages, std::optional<double> oldest_seconds) {
  return pages == 0 ? "0" : fmt::format("{}, {}", grouped(pages), seconds_or(oldest_seconds, "?"));
}

std::string pending_text(const WorkerRow& row) {
  const bool awaited = row.worker.pending != 0 && row.worker.awaited;
  return own_pages_text(row.worker.pending, row.oldest_pending_seconds) + (awaited ? ", awaited" : "");
}

std::string table_text(const WorkersReport& report) {
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
  table.column("oldest lease", kLeft);
  table.column("writing", kRight);
  table.column("pending", kRight);
  table.column("page hits", kRight);
  table.column("waits for", kLeft);
  table.column("note", kLeft);
  for (const WorkerRow& row : report.rows) {
    const WorkerView& worker = row.worker;
    table.row({std::to_string(worker.slot.value),
               worker.slot == kCoordinatorSlot ? "-" : name_of(worker.word.state()),
               worker.pid == 0 ? "-" : std::to_string(worker.pid), process_text(worker), role_text(worker),
               worker.name.empty() ? "-" : worker.name,
               worker.attached() ? seconds_or(row.attached_seconds, "?") : "-", leases_text(worker),
               oldest_text(row), own_pages_text(worker.writing, row.oldest_writing_seconds),
               pending_text(row), hits_text(worker), waits_text(row), row.note});
  }
  return table.text();
}

std::string counters_text(const WorkerView& worker) {
  std::string text;
  for (std::size_t i = 0; i < kCounters; ++i) {
    const char* name = name_of(static_cast<Counter>(i));
    if (name == nullptr || worker.counters[i] == 0) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, grouped(worker.counters[i]));
  }
  return text.empty() ? "all zero" : text;
}

std::string lease_note(const HeldLease& held) {
  std::string note;
  if (held.lease.target == LeaseTarget::kOtherLife) note = "of another life of the page: protects nothing";
  if (held.lease.target == LeaseTarget::kImpossible) note = "names no page of this segment: damaged";
  if (held.lease.beyond_high_water) note += std::string(note.empty() ? "" : "; ") + "ABOVE its high-water mark";
  return note;
}

std::string lease_table(const WorkerRow& row) {
  using enum Table::Align;
  if (row.leases.empty()) return {};
  Table table;
  table.column("  lease", kRight);
  table.column("page", kRight);
  table.column("state", kLeft);
  table.column("depth", kRight);
  table.column("namespace", kLeft);
  table.column("held for", kRight);
  table.column("request tag", kRight);
  table.column("note", kLeft);
  for (const HeldLease& held : row.leases) {
    const bool known = held.lease.target == LeaseTarget::kPage;
    table.row({std::to_string(held.lease.index), std::to_string(held.lease.handle.page_index().value), held.page_state,
               known ? std::to_string(held.depth) : "-", known ? held.name_space : "-",
               seconds_or(held.held_seconds, "?"), fmt::format("{:#x}", held.lease.request_tag), lease_note(held)});
  }
  std::string text = table.text();
  if (row.leases_left_out != 0) {
    text += fmt::format("  and {} left out; --limit shows more\n", counted(row.leases_left_out, "younger lease"));
  }
  return text;
}

// What only somebody who asks for this worker wants to see.
std::string detail_text(const WorkersReport& report, const WorkerRow& row) {
  std::string text;
  if (report.options.filtered() || !row.leases.empty()) {
    text += fmt::format("\nslot {} ({}), {}\n", row.worker.slot.value,
                        row.worker.slot == kCoordinatorSlot ? "the coordinator" : row.worker.name,
                        counted(row.worker.leases + row.worker.stale_leases, "lease"));
  }
  if (report.options.filtered()) text += fmt::format("  counters: {}\n", counters_text(row.worker));
  return text + lease_table(row);
}

Json optional_json(std::optional<double> value) { return value ? Json(*value) : Json(nullptr); }

Json to_json(const HeldLease& held) {
  const bool known = held.lease.target == LeaseTarget::kPage;
  return {{"lease", held.lease.index},
          {"page", held.lease.handle.page_index().value},
          {"target", name_of(held.lease.target)},
          {"page_state", held.page_state},
          {"depth", known ? Json(held.depth) : Json(nullptr)},
          {"namespace", known ? Json(held.name_space) : Json(nullptr)},
          {"held_seconds", optional_json(held.held_seconds)},
          {"request_tag", held.lease.request_tag},
          {"beyond_high_water", held.lease.beyond_high_water}};
}

Json to_json(const WorkerRow& row, bool leases_asked) {
  const WorkerView& worker = row.worker;
  Json entry;
  entry["slot"] = worker.slot.value;
  entry["state"] = name_of(worker.word.state());
  entry["incarnation"] = worker.word.incarnation();
  entry["pid"] = worker.pid;
  entry["start_time"] = worker.start_time;
  entry["uid"] = worker.uid;
  entry["liveness"] = name_of(worker.liveness);
  entry["process"] = process_text(worker);
  entry["role"] = role_name(worker);
  entry["scheduler"] = writes_planes(worker) ? Json(worker.scheduler) : Json(nullptr);
  entry["planes"] = writes_planes(worker) ? Json(planes_of(worker)) : Json(nullptr);
  entry["name"] = worker.name;
  entry["attached_seconds"] = optional_json(row.attached_seconds);
  entry["leases"] = worker.leases;
  entry["stale_leases"] = worker.stale_leases;
  entry["leases_high_water"] = worker.leases_high_water;
  entry["pages_writing"] = worker.writing;
  entry["oldest_writing_seconds"] = optional_json(row.oldest_writing_seconds);
  entry["pages_pending"] = worker.pending;
  entry["oldest_pending_seconds"] = optional_json(row.oldest_pending_seconds);
  entry["pages_awaited"] = worker.pending != 0 && worker.awaited;
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
  if (!leases_asked) return entry;
  Json& list = entry["lease_list"] = Json::array();
  for (const HeldLease& held : row.leases) list.push_back(to_json(held));
  entry["leases_left_out"] = row.leases_left_out;
  return entry;
}

}  // namespace

std::string to_text(const WorkersReport& report) {
  std::string text = table_text(report);
  for (const WorkerRow& row : report.rows) text += detail_text(report, row);
  if (report.options.filtered()) return text;
  return text + fmt::format(
                    "{} attached, {} slots. Slot 0's leases are the operator's pins; page hits are of all that had the "
                    "slot; beside pages being written: how long the oldest has been so; awaited: others sleep until one "
                    "comes.\n",
                    counted(report.attached, "worker"), report.slots);
}

Json to_json(const WorkersReport& report) {
  Json json;
  json["slots"] = report.slots;
  json["attached"] = report.attached;
  Json& workers = json["workers"] = Json::array();
  for (const WorkerRow& row : report.rows) workers.push_back(to_json(row, report.options.leases));
  return json;
}

}  // namespace kvtrie::inspect
