// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie evict`, `flush`, `drain` and `stop`: what the running coordinator does for an operator (shm/admin_wire.h).
// They need a coordinator; the segment is only looked at, for names.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "shm/admin_client.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct EvictionReport {
  std::string cache;
  std::uint64_t pages_max = 0;              // 0: all that can go
  std::optional<std::uint32_t> name_space;  // none: of all
  EvictedPages pages;
};

struct FlushReport {
  std::string cache;
  std::uint32_t name_space = 0;
  std::string label;
  std::uint64_t root_generation = 0;
};

struct DrainReport {
  std::string cache;
  bool draining = true;
  std::uint64_t workers_active = 0;  // that go on
};

struct StopReport {
  std::string cache;
  bool ended = false;  // false: it agreed, and had not ended when we stopped looking
};

Command add_evict_command(CLI::App& app);
Command add_flush_command(CLI::App& app);
Command add_drain_command(CLI::App& app);
Command add_stop_command(CLI::App& app);

std::string to_text(const EvictionReport& report);
std::string to_text(const FlushReport& report);
std::string to_text(const DrainReport& report);
std::string to_text(const StopReport& report);
Json to_json(const EvictionReport& report);
Json to_json(const FlushReport& report);
Json to_json(const DrainReport& report);
Json to_json(const StopReport& report);

}  // namespace kvtrie::inspect
