// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Short stories of two or three processes that meet at exactly one place (tests/support/party.h),
// each ending in the checks of cache_oracle.h. Every one of them is what some rule is there for;
// mutants_test.cc says which.
#pragma once

#include <ostream>
#include <span>
#include <string_view>

#include "tests/support/crash_world.h"

namespace kvtrie::test {

struct Interleaving {
  std::string_view name;
  void (*tell)(CrashWorld&);  // throws Violation
};

std::span<const Interleaving> all_interleavings();
// Those of call_interleavings.cc and flush_interleavings.cc, parts of them.
std::span<const Interleaving> call_interleavings();
std::span<const Interleaving> flush_interleavings();

// For the stories: what must hold.
void expect(bool holds, const char* what);
void check_all(const CrashWorld& world);

// For test names.
inline void PrintTo(const Interleaving& interleaving, std::ostream* out) {
  *out << interleaving.name;
}

}  // namespace kvtrie::test
