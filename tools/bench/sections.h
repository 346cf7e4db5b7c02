// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What kvtrie-bench measures. Each section stands in a file of its name, and adds its rows to the report.
#pragma once

#include <cstdint>
#include <string>

#include "tools/bench/report.h"

namespace kvtrie::bench {

struct Settings {
  std::uint32_t rounds = 9;
  bool quick = false;   // sizes for a test: every row is there, no figure is to be believed
  std::uint64_t pages = 1U << 20;  // of the caches; hit has several sizes, unless this was asked for
  bool pages_given = false;
  std::string age;                 // hit: only caches of this age; empty: all
  double turnovers = 10;           // hit: of an aged cache
  std::uint32_t busy = 0;          // reap: other workers
  int realtime = 0;                // reap: of kvtried and of what measures; 0: ordinary
  std::string trace;               // requests that age a cache; empty: generated ones
  std::string plugin;   // libkvtrie_worker.so
  std::string kvtried;  // the coordinator's program
  std::string replay;   // kvtrie-replay
};

// Each throws std::runtime_error with what went wrong.
void run_floors(const Settings& settings, Report& report);
void run_bulk(const Settings& settings, Report& report);
void run_first_touch(const Settings& settings, Report& report);
void run_eviction(const Settings& settings, Report& report);
void run_hit(const Settings& settings, Report& report);
void run_calls(const Settings& settings, Report& report);
void run_peers(const Settings& settings, Report& report);
void run_locks(const Settings& settings, Report& report);
void run_checksums(const Settings& settings, Report& report);
void run_reap(const Settings& settings, Report& report);

}  // namespace kvtrie::bench
