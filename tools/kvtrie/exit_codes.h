// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How kvtrie ends: the one table that --help prints and scripts may depend on. Append-only.
#pragma once

#include <cerrno>
#include <string>

#include "shm/status.h"

namespace kvtrie::inspect {

enum class Exit : int {
  kOk = 0,
  kFindings = 1,
  kUsage = 2,
  kNotFound = 3,
  kCorrupt = 4,
  kRefused = 5,
  kSystem = 6,
  kNoCoordinator = 7,
};

struct ExitMeaning {
  Exit code;
  const char* text;
};

inline constexpr ExitMeaning kExitTable[] = {
    {Exit::kOk, "done; verify, diff-dumps: nothing found"},
    {Exit::kFindings, "verify or diff-dumps found something"},
    {Exit::kUsage, "wrong arguments, or several caches and no --cache"},
    {Exit::kNotFound, "no such cache, page, namespace, worker, model, file, dump or pin, or a prefix that is not cached"},
    {Exit::kCorrupt, "the segment, file or dump cannot be read: damaged, truncated or something else"},
    {Exit::kRefused, "not allowed, refused by the coordinator, made by another build, a coordinator runs (destroy, verify --repair), or a flush "
                     "came between or another save writes the file (save)"},
    {Exit::kSystem, "a system call failed"},
    {Exit::kNoCoordinator, "no coordinator answers: evict, flush, pin, unpin, drain and stop need one"},
};

inline std::string exit_table_text() {
  std::string text = "Exit codes:\n";
  for (const ExitMeaning& row : kExitTable) {
    text += "  " + std::to_string(static_cast<int>(row.code)) + "  " + row.text + "\n";
  }
  return text;
}

constexpr Exit exit_of(Status status) {
  switch (status.code()) {
    case Code::kOk:
      return Exit::kOk;
    case Code::kInvalid:
      return Exit::kUsage;
    case Code::kNotFound:
      return Exit::kNotFound;
    case Code::kNoCoordinator:
      return Exit::kNoCoordinator;
    case Code::kCorrupt:
    case Code::kPoisoned:
      return Exit::kCorrupt;
    case Code::kSystem: {
      const bool denied = status.system_errno() == EACCES || status.system_errno() == EPERM;
      return denied ? Exit::kRefused : Exit::kSystem;
    }
    default:
      return Exit::kRefused;
  }
}

}  // namespace kvtrie::inspect
