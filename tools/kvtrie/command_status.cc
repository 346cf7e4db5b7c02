// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_status.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "shm/lease_table.h"
#include "shm/namespace_table.h"
#include "shm/stripe_index.h"
#include "tools/kvtrie/caches.h"
#include "tools/kvtrie/status_attention.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {


std::uint32_t count_pools(const StatusReport& report, const std::string& shm_directory) {
  std::uint32_t found = 0;
  for (const FoundObject& object : find_objects(shm_directory)) {
    const bool pool = !object.name.segment && !object.name.queue && !object.name.temporary &&
                      object.name.cache == report.cache && object.name.layout == kLayoutVersion &&
                      object.name.plane < report.geometry.planes;
    if (pool && object.bytes >= report.pool_bytes_each) ++found;
  }
  return found;
}

void add_workers(const Segment& segment, const HostView& host, StatusReport& report) {
  const LeaseStats held = LeaseTable(segment).stats();
  report.leases = held.held;
  report.pins = held.pins;
  report.leases_stale = held.stale;
  const std::vector<LeaseView> leases = read_leases(segment);
  for (const WorkerView& worker : read_workers(segment, host, report.pages, leases)) {
    for (std::size_t i = 0; i < kCounters; ++i)
      report.counters[i] += worker.counters[i];
    if (worker.slot == kCoordinatorSlot) continue;
    if (worker.oldest_lease &&
        (!report.oldest_lease || static_cast<std::int32_t>(worker.oldest_lease->since_tick -
                                                           report.oldest_lease->since_tick) < 0)) {
      report.oldest_lease = worker.oldest_lease;
    }
    if (!worker.attached()) continue;
    ++report.attached;
    if (worker.liveness == Liveness::kDead) ++report.attached_dead;
    if (worker.pages_wanted != 0) {
      ++report.waiting;
      report.pages_wanted += worker.pages_wanted;
      const auto waits = host.monotonic_age_seconds(worker.wait_ticket);
      if (waits && worker.wait_ticket != 0) {
        report.longest_wait_seconds = std::max(*waits, report.longest_wait_seconds.value_or(0));
      }
    }
  }
  if (report.oldest_lease) {
    report.oldest_lease_seconds = host.age_seconds(report.oldest_lease->since_tick);
  }
}

}  // namespace

Command add_status_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("status", "Is the cache well? One screen, and what to do");
  return {command, [](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string& cache) {
              return render(gather_status(segment, cache, context.environment.shm_directory), context.json);
            });
          }};
}

const char* poison_reason_name(std::uint32_t reason) {
  constexpr const char* kNames[] = {"none", "lock_not_recoverable", "corrupt_structure", "operator",
                                    "pool_gone"};
  return reason < std::size(kNames) ? kNames[reason] : "impossible";
}

StatusReport gather_status(const Segment& segment, const std::string& cache,
                           const std::string& shm_directory) {
  const Superblock& block = segment.superblock();
  const HostView host(segment);
  StatusReport report;
  report.cache = cache;
  report.cache_id = fmt::format("{:016x}{:016x}", block.cache_id[0], block.cache_id[1]);
  const std::string inside = printable(block.cache_name, sizeof block.cache_name);
  if (inside != cache) report.object_name_says = inside;
  report.age_seconds = host.made_seconds_ago(block.created_realtime_ns);
  report.made_realtime_ns = block.created_realtime_ns;
  report.geometry = segment.geometry();
  report.segment_bytes = segment.size_bytes();
  report.device = segment.device();
  report.pool_bytes_each = pool_bytes(segment.geometry());
  // Device memory has no names: who has the segment served has its planes.
  report.pools_found =
      segment.device() == DeviceKind::kCuda ? report.geometry.planes : count_pools(report, shm_directory);

  report.poisoned = block.poison_state.load(std::memory_order_acquire) != 0;
  report.poison_reason = block.poison_reason.load(kRelaxed);
  const std::uint64_t successor[] = {block.successor_id[0].load(kRelaxed),
                                     block.successor_id[1].load(kRelaxed)};
  if ((successor[0] | successor[1]) != 0) {
    report.successor = fmt::format("{:016x}{:016x}", successor[0], successor[1]);
  }
  report.same_boot = host.same_boot();
  report.same_pid_namespace = host.same_pid_namespace();
  report.coordinator = read_coordinator(segment, host);
  report.evictor_busy = block.evictor_busy.load(kRelaxed) != 0;
  report.shortfall = block.eviction_shortfall.load(kRelaxed);
  report.waiters = block.pages_waiters.load(kRelaxed);
  report.low_pages = block.low_pages.load(kRelaxed);
  report.high_pages = block.high_pages.load(kRelaxed);
  report.clock = host.clock();
  report.tick_ns = host.tick_ns();
  report.now_tick = host.now_tick();

  report.pages = PageTable(segment).stats();
  add_workers(segment, host, report);
  const IndexStats index = StripeIndex(segment).stats();
  report.stripe_recoveries = index.recoveries;
  report.stripe_passed_by = index.passed_by;
  report.namespaces_open = NamespaceTable(segment).stats().open;
  report.attention = find_attention(report);
  return report;
}

}  // namespace kvtrie::inspect
