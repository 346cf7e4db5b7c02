// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What kvtried is told. Filled by settings.h from flags and a file; nothing below main reads the
// environment.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/format.h"
#include "shm/geometry.h"

namespace kvtrie {

struct Options {
  std::string cache;
  std::string directory;  // holds NAME/; see shm/runtime_directory.h
  std::string metrics = "127.0.0.1:9464";
  std::string policy = "lru";
  std::string load;  // save file that a cache which has to be made starts with; empty: none
  bool fresh = false;
  unsigned mode = 0600;           // of the objects and the socket
  std::vector<uid_t> allow_uids;  // besides the coordinator's own and root
  std::vector<gid_t> allow_gids;
  double low_percent = 1;
  double high_percent = 2;
  bool prefault = false;
  int realtime = 0;  // SCHED_RR priority of the loop while it waits and reaps; 0: ordinary

  // Fixed in the segment. Empty: not given, so an existing cache keeps what it has.
  std::optional<std::uint64_t> pages;
  std::optional<std::uint32_t> tokens_per_page;
  std::optional<std::uint64_t> page_bytes;
  std::optional<std::uint32_t> planes;
  std::optional<std::uint32_t> workers;
  std::optional<std::uint32_t> leases;
  std::optional<std::uint32_t> namespaces;
  std::optional<std::uint32_t> stripes;
  std::optional<ClockKind> clock;
  std::optional<std::uint64_t> tick_ns;
};

inline constexpr std::uint64_t kSystemTickNs = 1'000'000'000;
inline constexpr std::uint64_t kDrivenTickNs = 1'000'000;

// What fits together only as a whole; empty when all is well.
std::string options_problem(const Options& options);

// Geometry and clock of a segment to be made: what was given, else `base`'s.
struct CacheShape {
  Geometry geometry;
  ClockKind clock = ClockKind::kSystem;
  std::uint64_t tick_ns = kSystemTickNs;
  bool operator==(const CacheShape&) const = default;
};
CacheShape shape_of(const Options& options, const std::optional<CacheShape>& base);

// First option that was given and is not what the segment has, in words; empty when none is.
std::string shape_conflict(const Options& options, const CacheShape& there);

}  // namespace kvtrie
