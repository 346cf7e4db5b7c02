// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How trace_operations tells who traces it which of its accesses count: before each phase it writes
// to a place of the phase's own, at an address that both know. Nothing counts in kRest.
#pragma once

#include <cstdint>

namespace kvtrie::test {

enum class Phase : std::uint8_t {
  kRest = 0,
  kFirstHit = 1,   // in its tick, so the deepest page is touched
  kSecondHit = 2,  // in the same tick
  kPublish = 3,    // a prompt of its own
  kEnd = 4,
};

inline constexpr std::uint64_t kPhaseMarks =
    0x20'0000'0000;  // one byte a phase, in a page that is mapped there

}  // namespace kvtrie::test
