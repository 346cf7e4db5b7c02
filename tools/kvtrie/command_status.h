// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie status`: one screen that says whether the cache is well, and what to do when it is not.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/geometry.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"
#include "tools/kvtrie/snapshot.h"

namespace kvtrie::inspect {

struct StatusReport {
  std::string cache;
  std::string cache_id;
  std::string object_name_says;  // the name in the superblock, when it is another one
  double age_seconds = 0;
  std::uint64_t made_realtime_ns = 0;
  Geometry geometry;
  std::uint64_t segment_bytes = 0;
  DeviceKind device = DeviceKind::kHost;
  std::uint64_t pool_bytes_each = 0;
  std::uint32_t pools_found = 0;  // objects there, of the size that the geometry asks for

  bool poisoned = false;
  std::uint32_t poison_reason = 0;
  std::string successor;  // empty: none

  bool same_boot = false;
  bool same_pid_namespace = false;
  CoordinatorView coordinator;
  bool evictor_busy = false;
  std::uint64_t shortfall = 0;
  std::uint32_t waiters = 0;
  std::uint64_t low_pages = 0;
  std::uint64_t high_pages = 0;

  ClockKind clock = ClockKind::kSystem;
  std::uint64_t tick_ns = 0;
  std::uint32_t now_tick = 0;

  PageStats pages;
  std::array<std::uint64_t, kCounters> counters{};  // sums over all slots
  std::uint64_t stripe_recoveries = 0;
  std::uint64_t stripe_passed_by = 0;

  std::uint64_t attached = 0;
  std::uint64_t attached_dead = 0;
  std::uint64_t waiting = 0;
  std::uint64_t pages_wanted = 0;
  std::optional<double> longest_wait_seconds;  // none: nobody waits, or since when is unknown
  std::uint64_t leases = 0;
  std::uint64_t leases_stale = 0;
  std::uint64_t pins = 0;
  std::optional<LeaseView> oldest_lease;  // without pins
  std::optional<double> oldest_lease_seconds;
  std::uint64_t namespaces_open = 0;

  std::vector<std::string> attention;  // what an operator should act on, most urgent first

  std::uint64_t counter(Counter which) const { return counters[static_cast<std::size_t>(which)]; }
};

Command add_status_command(CLI::App& app);

StatusReport gather_status(const Segment& segment, const std::string& cache,
                           const std::string& shm_directory);
std::string to_text(const StatusReport& report);
Json to_json(const StatusReport& report);

// Append-only like PoisonReason.
const char* poison_reason_name(std::uint32_t reason);

}  // namespace kvtrie::inspect
