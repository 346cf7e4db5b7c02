// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie destroy`: removes a cache that no coordinator serves: its objects in /dev/shm, temporary
// ones too, and its directory. There is no way to force it: two that write one cache would serve
// wrong pages.
//
// It holds both locks that a coordinator holds (the one in the cache's directory and the one on the
// segment, which also meets a coordinator that was given another --dir) until the names are gone. A
// segment that can be opened is poisoned first, so that workers that still map it stop using it;
// their memory returns when they unmap.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct DestroyReport {
  std::string cache;
  std::vector<std::string> removed;  // paths
  std::vector<std::string> left;     // paths, with why
  std::uint64_t bytes = 0;           // of the objects removed
  std::uint64_t workers_alive = 0;   // that still map the old objects
};

Command add_destroy_command(CLI::App& app);

std::string to_text(const DestroyReport& report);
Json to_json(const DestroyReport& report);

}  // namespace kvtrie::inspect
