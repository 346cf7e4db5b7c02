// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie pins`, `pin` and `unpin`: cached prefixes that an operator keeps (shm/pins.h). `pins` looks at any segment,
// live or dead; the other two need a coordinator. The prefix is looked up here, and the coordinator leases the very
// page that was found, or says that it went.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/pins.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct PinRow {
  Pin pin;
  bool protects = false;       // false: its page is of another life by now, or no page
  NamespaceId name_space;      // of the page, and the two below too, when it protects one
  std::string label;
  std::uint32_t pages = 0;     // that it keeps
  std::optional<double> age_seconds;
  std::optional<double> expires_seconds;  // from now; none: never, or unknown
};

struct PinsReport {
  std::string cache;
  std::uint32_t pins_max = 0;
  std::vector<PinRow> rows;
};
PinsReport gather_pins(const Segment& segment, const std::string& cache);

struct PinReport {
  std::string cache;
  std::uint32_t pin = 0;
  std::uint32_t page = 0;
  std::uint32_t pages = 0;         // kept
  std::uint64_t tokens = 0;        // of these
  std::uint64_t tokens_given = 0;  // 0: a page was named
  std::uint32_t expires_s = 0;     // 0: never
};

struct UnpinReport {
  std::string cache;
  std::vector<std::uint32_t> pins;
};

Command add_pins_command(CLI::App& app);
Command add_pin_command(CLI::App& app);
Command add_unpin_command(CLI::App& app);

std::string to_text(const PinsReport& report);
std::string to_text(const PinReport& report);
std::string to_text(const UnpinReport& report);
Json to_json(const PinsReport& report);
Json to_json(const PinReport& report);
Json to_json(const UnpinReport& report);

}  // namespace kvtrie::inspect
