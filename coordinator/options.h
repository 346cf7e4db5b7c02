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
#include <string_view>
#include <vector>

#include "shm/format.h"
#include "shm/geometry.h"
#include "shm/status.h"

namespace kvtrie {

// Where the pages' bytes are (device.h).
struct DeviceChoice {
  DeviceKind kind = DeviceKind::kHost;
  std::vector<int> ordinals;  // CUDA devices: one for each plane, or one for all
  bool operator==(const DeviceChoice&) const = default;
};
// "host", "queued", "cuda:0" or "cuda:0,1".
Result<DeviceChoice> parse_device(std::string_view text);

// How the memory of host planes lies (host_memory.h).
struct HostMemory {
  bool huge_pages = false;
  bool lock = false;
  std::optional<unsigned> numa_node;
  bool operator==(const HostMemory&) const = default;
};

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
  bool page_checksums = false;  // of a cache that is made
  int realtime = 0;  // SCHED_RR priority of the loop while it waits and reaps; 0: ordinary
  HostMemory memory;
  std::optional<std::uint32_t> queue_delay_ms;

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
  std::optional<DeviceChoice> device;  // the ordinals are not fixed
};

inline constexpr std::uint64_t kSystemTickNs = 1'000'000'000;
inline constexpr std::uint64_t kDrivenTickNs = 1'000'000;

// What fits together only as a whole; empty when all is well.
std::string options_problem(const Options& options);

// The same for options of one kind of device; of the cache that is there, say.
std::string device_problem(const Options& options, DeviceKind kind, std::uint32_t planes);

// Geometry, clock and device of a segment to be made: what was given, else `base`'s.
struct CacheShape {
  Geometry geometry;
  ClockKind clock = ClockKind::kSystem;
  std::uint64_t tick_ns = kSystemTickNs;
  DeviceKind device = DeviceKind::kHost;
  bool page_checksums = false;
  bool operator==(const CacheShape&) const = default;
};
CacheShape shape_of(const Options& options, const std::optional<CacheShape>& base);

// First option that was given and is not what the segment has, in words; empty when none is.
std::string shape_conflict(const Options& options, const CacheShape& there);

}  // namespace kvtrie
