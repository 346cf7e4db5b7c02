// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What kvtrie-replay is told. Other tools depend on the flags: they are only ever added to.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/geometry.h"
#include "tools/replay/trace.h"

namespace kvtrie::replay {

// Append-only: scripts look at them.
enum ExitCode : int {
  kExitOk = 0,
  kExitWrongPages = 1,
  kExitUsage = 2,
  kExitCountersDiffer = 3,  // the coordinator counted other hits than the workers were told
  kExitFailure = 4,         // could not start, a worker died, pages were lost, stopped by a signal
};

inline constexpr std::uint32_t kInFlightMax = 256;
inline constexpr std::uint32_t kLapsMax = 1U << 20;

struct ReplayOptions {
  // The workload: one of the two.
  std::string trace;
  std::uint64_t generate = 0;
  std::uint64_t limit = kNoLimit;
  std::uint64_t seed = 1;
  std::uint64_t lap = 0;  // of the trace: how many replays of it this one follows

  std::uint32_t workers = 4;
  std::uint32_t in_flight = 4;  // open requests of a worker
  std::uint32_t namespaces = 1;
  double speed =
      0;  // 0: as fast as it goes, the clock is driven; else a multiple of the trace's time
  double check_percent = 100;
  std::uint32_t kill_workers = 0;  // how many times a worker is killed and started again
  std::uint32_t storm = 0;         // kills in all; 0: no storm (storm.h)
  double kill_rate = 40;           // a second
  bool fill_shm = false;           // in a /dev/shm of its own
  bool page_checksums = false;     // of the own cache
  std::vector<std::string> kvtried_flags;  // more of them, for the own kvtried
  int realtime = 0;                // priority of the own kvtried, and of what measures it
  bool mix = false;                // all calls of the plugin, by chance (mix_worker.h)
  std::uint64_t mix_seed = 0;

  // The cache: an existing one, or one of its own with this geometry.
  std::string cache;
  std::string directory;  // of an existing one; see shm/runtime_directory.h
  Geometry geometry{.pages = 16384, .page_bytes = 4096};
  // Given by the caller, so an existing cache must have it.
  bool pages_given = false;
  bool tokens_per_page_given = false;
  bool page_bytes_given = false;
  bool planes_given = false;
  std::string policy = "lru";
  double low_percent = 1;
  double high_percent = 2;

  std::string plugin;  // empty: ../lib/libkvtrie_worker.so beside the program
  std::string json;

  // One request after the other, on a driven clock: the hits are then those of the sequential
  // model, so workers wait until the evictor is idle where the model has evicted.
  [[nodiscard]] bool sequential() const { return workers == 1 && in_flight == 1 && speed == 0; }
};

// Empty, with what main() is to return, when there is nothing to do: --help, or a mistake that has
// been printed. `default_directory` is for --dir.
std::optional<ReplayOptions> parse_options(int argc, const char* const* argv,
                                           const std::string& default_directory, int& exit_code);

}  // namespace kvtrie::replay
