// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Which caches this host has, by the names of their objects, and which of them a command means.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "shm/segment.h"
#include "shm/status.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

// "kvtrie.NAME.v<layout>.<seg|poolK|queue>[.tmp]"
struct ObjectName {
  std::string cache;
  std::uint32_t layout = 0;
  bool segment = false;
  bool queue = false;       // the copy queue of a queued device
  std::uint32_t plane = 0;  // of a pool
  bool temporary = false;
};
std::optional<ObjectName> parse_object_name(std::string_view name);

struct FoundObject {
  std::string file;
  ObjectName name;
  std::uint64_t bytes = 0;
};
// Every kvtrie object of the directory, sorted by name.
std::vector<FoundObject> find_objects(const std::string& shm_directory);

// Caches with a whole segment of this build's layout, sorted.
std::vector<std::string> find_caches(const std::string& shm_directory);

// `named`, or the only cache of the host; else a failure that lists what there is.
struct CacheChoice {
  std::string cache;  // empty: `failure` says why
  Outcome failure;
};
CacheChoice choose_cache(const Environment& environment, const std::string& named, bool json);

// Read-only, without a coordinator.
struct OpenedCache {
  std::optional<Segment> segment;
  Outcome failure;  // set when there is no segment
};
OpenedCache open_cache(const Environment& environment, const std::string& cache, bool json);

// What an operator should read when a segment of `cache` cannot be opened.
std::string open_problem(const Environment& environment, const std::string& cache, Status status);

}  // namespace kvtrie::inspect
