// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Records histories: three worker processes and one that evicts, on a cache so small that they are always in each
// other's way. Between the stores of the protocol (at the crash points of builds that have them) a process gives way
// to others now and then, so that calls overlap also on few processors.
#pragma once

#include <cstdint>
#include <optional>

#include "tests/concurrency/support/history.h"

namespace kvtrie::test {

inline constexpr std::uint32_t kHistoryWorkers = 3;
inline constexpr std::uint32_t kHistoryCalls = 200;  // of each worker, before it releases what it has

// A run from this seed. Nothing: a process hung or died (and all of them are ended).
std::optional<History> record_history(std::uint32_t seed);

}  // namespace kvtrie::test
