// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_admin.h"

#include <fmt/format.h>
#include <poll.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "shm/process_identity.h"
#include "shm/worker_table.h"
#include "tools/kvtrie/admin_target.h"
#include "tools/kvtrie/snapshot.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr int kStopWaitMs = 10'000;

struct EvictOptions {
  std::uint64_t pages_max = 0;
  std::string name_space;
};

Outcome run_evict(const AdminTarget& target, const EvictOptions& options) {
  EvictionReport report;
  report.cache = target.address.cache;
  report.pages_max = options.pages_max;
  std::optional<NamespaceKey> of;
  if (!options.name_space.empty()) {
    const NamespaceFound found = find_open_namespace(target, options.name_space);
    if (!found.name_space) return found.failure;
    of = {found.name_space->id, found.name_space->fields_hash};
    report.name_space = of->id.value;
  }
  std::string message;
  const Result<EvictedPages> pages =
      request_eviction(target.address, options.pages_max, of, message);
  if (!pages) return refused(pages.error(), message, target.json);
  report.pages = *pages;
  return render(report, target.json);
}

Outcome run_flush(const AdminTarget& target, const std::string& name_space) {
  const NamespaceFound found = find_open_namespace(target, name_space);
  if (!found.name_space) return found.failure;
  const NamespaceId id = found.name_space->id;
  std::string message;
  const Result<std::uint64_t> generation =
      request_flush(target.address, {id, found.name_space->fields_hash}, message);
  if (!generation) return refused(generation.error(), message, target.json);
  return render(FlushReport{target.address.cache, id.value,
                            read_namespace(target.segment, id).label, *generation},
                target.json);
}

Outcome run_drain(const AdminTarget& target, bool undo) {
  std::string message;
  if (const Status status = request_drain(target.address, undo, message); !status) {
    return refused(status, message, target.json);
  }
  const WorkerTableStats workers = WorkerTable(target.segment).stats();
  return render(DrainReport{target.address.cache, !undo,
                            workers.slots[static_cast<std::size_t>(SlotState::kActive)]},
                target.json);
}

// Waits for the process, so that a script may start the next coordinator at once.
Outcome run_stop(const AdminTarget& target) {
  const Superblock& block = target.segment.superblock();
  const Result<FileDescriptor> process =
      open_pidfd_of(block.coordinator_pid.load(std::memory_order_relaxed),
                    block.coordinator_start_time.load(std::memory_order_relaxed));
  std::string message;
  if (const Status status = request_stop(target.address, message); !status) {
    return refused(status, message, target.json);
  }
  pollfd end{process ? process->get() : -1, POLLIN, 0};
  const bool ended = process && ::poll(&end, 1, kStopWaitMs) > 0;
  return render(StopReport{target.address.cache, ended}, target.json);
}

}  // namespace

Command add_evict_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("evict", "Have pages evicted now, the least recently used first");
  const auto options = std::make_shared<EvictOptions>();
  command->add_option("--pages", options->pages_max, "Pages at most; left out: all that can go")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{kPagesMax}))
      ->type_name("N");
  command->add_option("--namespace", options->name_space, "Only of this one: its id or label")
      ->type_name("NS");
  return {command, [options](const Context& context) {
            return on_coordinator(
                context, [&](const AdminTarget& target) { return run_evict(target, *options); });
          }};
}

Command add_flush_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "flush",
      "Forget a namespace: nothing of it is matched from now on (new weights, say); its pins end");
  const auto name_space = std::make_shared<std::string>();
  command->add_option("namespace", *name_space, "Its id or label")->required()->type_name("NS");
  return {command, [name_space](const Context& context) {
            return on_coordinator(
                context, [&](const AdminTarget& target) { return run_flush(target, *name_space); });
          }};
}

Command add_drain_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "drain", "No new workers and namespaces until --undo or the coordinator's end; others go on");
  const auto undo = std::make_shared<bool>(false);
  command->add_flag("--undo", *undo, "Take new workers again");
  return {command, [undo](const Context& context) {
            return on_coordinator(
                context, [&](const AdminTarget& target) { return run_drain(target, *undo); });
          }};
}

Command add_stop_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "stop", "End the coordinator as SIGTERM does, and wait for its end; the cache stays");
  return {command, [](const Context& context) { return on_coordinator(context, run_stop); }};
}

std::string to_text(const EvictionReport& report) {
  const EvictedPages& pages = report.pages;
  std::string text = fmt::format("{} evicted\n", counted(pages.evicted, "page"));
  const auto stayed = [&](std::uint64_t count, const char* why) {
    if (count != 0) text += fmt::format("  {} stayed: {}\n", counted(count, "page"), why);
  };
  stayed(pages.pinned, "pinned (kvtrie pins)");
  stayed(pages.leased, "leased by workers (kvtrie workers)");
  stayed(pages.pending, "being written");
  stayed(pages.interior, "above pages that stay");
  stayed(pages.other, "retained by their engine, or not reached");
  if (!pages.done) text += "! the time was up before all that can go was gone: run it again\n";
  return text;
}

std::string to_text(const FlushReport& report) {
  return fmt::format(
      "namespace {} ({}) flushed: root generation {}; its pages go as the leases on them are "
      "dropped\n",
      report.name_space, report.label.empty() ? "no label" : report.label, report.root_generation);
}

std::string to_text(const DrainReport& report) {
  if (!report.draining) return fmt::format("cache {} takes new workers again\n", report.cache);
  return fmt::format(
      "cache {} is draining: {} on, nobody new may attach; kvtrie drain --undo ends that\n",
      report.cache, counted(report.workers_active, "worker goes", "workers go"));
}

std::string to_text(const StopReport& report) {
  return report.ended
             ? fmt::format("the coordinator of cache {} has ended; the cache stays\n", report.cache)
             : fmt::format(
                   "the coordinator of cache {} agreed to stop, and had not ended after {} s; look "
                   "at "
                   "its log\n",
                   report.cache, kStopWaitMs / 1000);
}

Json to_json(const EvictionReport& report) {
  Json json;
  json["cache"] = report.cache;
  json["pages_max"] = report.pages_max == 0 ? Json(nullptr) : Json(report.pages_max);
  json["namespace"] = report.name_space ? Json(*report.name_space) : Json(nullptr);
  json["evicted"] = report.pages.evicted;
  json["stayed"] = {{"pinned", report.pages.pinned},
                    {"leased", report.pages.leased},
                    {"pending", report.pages.pending},
                    {"interior", report.pages.interior},
                    {"other", report.pages.other}};
  json["done"] = report.pages.done;
  return json;
}

Json to_json(const FlushReport& report) {
  return {{"cache", report.cache},
          {"namespace", report.name_space},
          {"label", report.label},
          {"root_generation", report.root_generation}};
}

Json to_json(const DrainReport& report) {
  return {{"cache", report.cache},
          {"draining", report.draining},
          {"workers_active", report.workers_active}};
}

Json to_json(const StopReport& report) {
  return {{"cache", report.cache}, {"ended", report.ended}};
}

}  // namespace kvtrie::inspect
