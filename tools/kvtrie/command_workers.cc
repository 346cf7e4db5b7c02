// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_workers.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

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
  if (worker.stopped) return "stopped: keeps what it holds until it goes on or dies";
  if (worker.word.state() == SlotState::kLeaving) return "detached, slot not cleared yet";
  return {};
}

std::string namespace_text(const Segment& segment, std::uint32_t scope) {
  const NamespaceId id = namespace_in(scope);
  if (id.value >= segment.namespace_count()) return fmt::format("{} (none)", id.value);
  const std::string label = read_namespace(segment, id).label;
  return label.empty() ? std::to_string(id.value) : fmt::format("{} \"{}\"", id.value, label);
}

HeldLease held_lease(const Segment& segment, const HostView& host, const LeaseView& lease) {
  HeldLease held;
  held.lease = lease;
  held.held_seconds = host.age_seconds(lease.since_tick);
  held.page_state = "none";
  if (lease.target == LeaseTarget::kImpossible) return held;
  const Descriptor& descriptor = segment.descriptor(lease.handle.page_index());
  held.page_state = name_of(StateWord{descriptor.state.load(std::memory_order_acquire)}.state());
  if (lease.target != LeaseTarget::kPage) return held;
  held.depth = depth_in(descriptor.depth_class.load(std::memory_order_relaxed));
  held.name_space = namespace_text(segment, descriptor.scope.load(std::memory_order_relaxed));
  return held;
}

class Gatherer {
 public:
  Gatherer(const Segment& segment, const WorkersOptions& options)
      : segment_(segment), options_(options), host_(segment), leases_(read_leases(segment)) {}

  WorkersReport run() {
    WorkersReport report;
    report.options = options_;
    report.slots = segment_.geometry().workers;
    const std::vector<OldestOwnPages> own = read_oldest_own_pages(segment_);
    const PageStats pages = PageTable(segment_).stats();
    for (WorkerView& worker : read_workers(segment_, host_, pages, leases_)) {
      const bool coordinator = worker.slot == kCoordinatorSlot;
      if (!coordinator && !worker.attached() && !worker.holds()) continue;
      if (!coordinator && worker.attached()) ++report.attached;
      if (options_.slot && worker.slot.value != *options_.slot) continue;
      if (options_.pid && worker.pid != *options_.pid) continue;
      const OldestOwnPages& oldest = own[worker.slot.value];
      report.rows.push_back(row_of(std::move(worker), oldest));
    }
    return report;
  }

 private:
  WorkerRow row_of(WorkerView worker, const OldestOwnPages& oldest) const {
    WorkerRow row;
    row.note = note_of(worker);
    if (worker.attached()) row.attached_seconds = host_.age_seconds(worker.attach_tick);
    if (worker.oldest_lease) row.oldest_lease_seconds = host_.age_seconds(worker.oldest_lease->since_tick);
    if (oldest.writing_tick) row.oldest_writing_seconds = host_.age_seconds(*oldest.writing_tick);
    if (oldest.pending_tick) row.oldest_pending_seconds = host_.age_seconds(*oldest.pending_tick);
    if (worker.pages_wanted != 0 && worker.wait_ticket != 0) {
      row.waits_seconds = host_.monotonic_age_seconds(worker.wait_ticket);
    }
    if (options_.leases) add_leases(worker.slot, row);
    row.worker = std::move(worker);
    return row;
  }

  void add_leases(WorkerId slot, WorkerRow& row) const {
    std::vector<LeaseView> own;
    std::ranges::copy_if(leases_, std::back_inserter(own), [&](const LeaseView& lease) { return lease.slot == slot; });
    std::ranges::stable_sort(own, [now = host_.now_tick()](const LeaseView& a, const LeaseView& b) {
      return static_cast<std::int32_t>(now - a.since_tick) > static_cast<std::int32_t>(now - b.since_tick);
    });
    const std::size_t shown = std::min<std::size_t>(own.size(), options_.limit);
    for (std::size_t i = 0; i < shown; ++i) row.leases.push_back(held_lease(segment_, host_, own[i]));
    row.leases_left_out = own.size() - shown;
  }

  const Segment& segment_;
  const WorkersOptions& options_;
  HostView host_;
  std::vector<LeaseView> leases_;
};

std::string nobody_text(const std::string& cache, const WorkersOptions& options) {
  std::string text = fmt::format("cache '{}' has no worker", cache);
  if (options.slot) text += fmt::format(" in slot {}", *options.slot);
  if (options.pid) text += fmt::format(" with pid {}", *options.pid);
  return text + "; `kvtrie workers` lists all";
}

}  // namespace

Command add_workers_command(CLI::App& app) {
  const auto options = std::make_shared<WorkersOptions>();
  CLI::App* command = app.add_subcommand("workers", "Who is attached, alive, and holds what");
  command->add_option("--worker", options->slot, "Only the worker in this slot, with its counters")
      ->check(CLI::Range(0U, kWorkersMax))
      ->type_name("SLOT");
  command->add_option("--pid", options->pid, "Only the workers of this process, with their counters")->type_name("PID");
  command->add_flag("--leases", options->leases, "List leases: page, depth, namespace, age and request tag");
  command->add_option("--limit", options->limit, "Leases listed for each worker at most, oldest first")
      ->check(CLI::Range(1U, 1'000'000U))
      ->type_name("N")
      ->capture_default_str();
  return {command, [options](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string& cache) {
              const WorkersReport report = gather_workers(segment, *options);
              if (options->filtered() && report.rows.empty()) {
                return failure(Exit::kNotFound, nobody_text(cache, *options), context.json);
              }
              return render(report, context.json);
            });
          }};
}

WorkersReport gather_workers(const Segment& segment, const WorkersOptions& options) {
  return Gatherer(segment, options).run();
}

}  // namespace kvtrie::inspect
