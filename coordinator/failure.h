// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Why kvtried cannot go on: a text for people that says what to do, and the exit code that scripts
// look at.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "shm/status.h"

namespace kvtrie {

inline constexpr int kExitStopped = 0;         // by a signal, before it served
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;         // flags or configuration file
inline constexpr int kExitOtherRunning = 3;  // another coordinator serves this cache

struct Failure {
  std::string text;
  int exit_code = kExitFailure;
  bool no_room = false;  // memory did not suffice: less of it taken by others might help
};

// Empty: it worked.
using MaybeFailure = std::optional<Failure>;

// "what: literal of the status (errno in words)".
Failure failure_of(const std::string& what, const Status& status);
Failure system_failure(const std::string& what, int error);

}  // namespace kvtrie
