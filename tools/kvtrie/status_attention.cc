// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/status_attention.h"

#include <fmt/format.h>

#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr double kLongWaitSeconds = 1;  // shorter ones are everyday life in a full pool
constexpr std::uint32_t kServing = static_cast<std::uint32_t>(CoordinatorState::kServing);
constexpr std::uint32_t kDraining = static_cast<std::uint32_t>(CoordinatorState::kDraining);

void add_coordinator(const StatusReport& report, std::vector<std::string>& lines) {
  const CoordinatorView& coordinator = report.coordinator;
  if (!report.same_boot) {
    lines.push_back(
        "the segment is of another boot of this machine, or of another machine: no process "
        "that it names is alive, ages are unknown, kvtried builds it anew");
  } else if (coordinator.liveness == Liveness::kDead) {
    lines.push_back(
        fmt::format("coordinator pid {} is dead: nothing is evicted and the dead are not reaped; "
                    "start kvtried, it "
                    "adopts what is here (workers go on meanwhile)",
                    coordinator.pid));
  } else if (coordinator.liveness == Liveness::kNone) {
    lines.push_back(
        "no coordinator: nothing is evicted and nobody can attach; start kvtried, it adopts "
        "what is here (workers go on meanwhile)");
  } else if (coordinator.liveness == Liveness::kUnknown) {
    lines.push_back(
        report.same_pid_namespace
            ? "who is alive is unknown: /proc cannot be read here; run kvtrie as root"
            : "the segment belongs to another PID namespace: who is alive is unknown here; "
              "run kvtrie in the container of kvtried, or give both the host's PID namespace");
  } else if (coordinator.state == kDraining) {
    lines.push_back("an operator drains the cache: nobody new may attach until kvtrie drain --undo");
  } else if (coordinator.state != kServing) {
    lines.push_back(fmt::format("coordinator pid {} lives but is not serving (state {})",
                                coordinator.pid, coordinator_state_name(coordinator.state)));
  }
}

void add_pages(const StatusReport& report, std::vector<std::string>& lines) {
  const PageStats& pages = report.pages;
  if (pages.impossible != 0 || pages.owner_unknown != 0 || pages.scope_unknown != 0) {
    lines.push_back(fmt::format(
        "the segment is damaged: {} with an impossible state, {} of unknown owners, {} of unknown "
        "namespaces; run kvtrie verify",
        counted(pages.impossible, "page"), grouped(pages.owner_unknown),
        grouped(pages.scope_unknown)));
  }
  if (report.longest_wait_seconds.value_or(0) >= kLongWaitSeconds) {
    lines.push_back(
        fmt::format("{} for {} in all, {} free, the longest for {}: see kvtrie workers for who "
                    "holds leases",
                    counted(report.waiting, "worker waits", "workers wait"),
                    counted(report.pages_wanted, "page"), grouped(pages.of(PageState::kFree)),
                    seconds_text(*report.longest_wait_seconds)));
  } else if (report.shortfall != 0) {
    lines.push_back(
        fmt::format("the last eviction found {} too few: most pages are leased, pinned or "
                    "being written (kvtrie workers)",
                    counted(report.shortfall, "page")));
  }
}

}  // namespace

std::vector<std::string> find_attention(const StatusReport& report) {
  std::vector<std::string> lines;
  if (report.poisoned) {
    lines.push_back(
        fmt::format("the segment was given up ({}): its workers serve misses{}",
                    poison_reason_name(report.poison_reason),
                    report.successor.empty() ? "; restart kvtried to make its successor (kvtrie verify --repair before "
                                             "that keeps what is sound)"
                                           : ""));
  }
  if (!report.object_name_says.empty()) {
    lines.push_back(fmt::format("the object was made for cache '{}' and renamed by hand",
                                report.object_name_says));
  }
  add_coordinator(report, lines);
  if (report.pools_found < report.geometry.planes) {
    lines.push_back(
        fmt::format("{} of {} missing or too small in /dev/shm: their bytes are gone; "
                    "kvtrie destroy, or kvtried --fresh",
                    report.geometry.planes - report.pools_found,
                    counted(report.geometry.planes, "pool is", "pools are")));
  }
  add_pages(report, lines);
  if (report.attached_dead != 0 && report.coordinator.liveness == Liveness::kAlive) {
    lines.push_back(
        fmt::format("{} dead and not reaped yet (kvtrie workers); if it stays so, look at "
                    "the coordinator's log",
                    counted(report.attached_dead, "worker is", "workers are")));
  }
  if (report.counter(Counter::kCorruptSeen) != 0) {
    lines.push_back(fmt::format("workers met corrupt bytes {}: run kvtrie verify",
                                counted(report.counter(Counter::kCorruptSeen), "time")));
  }
  if (report.counter(Counter::kWrongChecksums) != 0) {
    lines.push_back(fmt::format("cached pages had other bytes than were published {}, and were not handed out: a worker "
                                "writes where it must not, or memory is bad",
                                counted(report.counter(Counter::kWrongChecksums), "time")));
  }
  return lines;
}

}  // namespace kvtrie::inspect
