// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A death between two stores, within one process: the operation goes no further than the named
// crash point, the memory stays as it is. For operations that hold no lock and need no destructor
// to run.
#pragma once

#include "shm/crash_point.h"

#ifdef KVTRIE_DEV
#include <string>

namespace kvtrie::test {

namespace detail {
struct Died {};
inline std::string fatal_place;
}  // namespace detail

// False when the operation ended without passing there.
template <typename Operation>
bool dies_at(const std::string& place, Operation operation) {
  detail::fatal_place = place;
  crash_hook.store([](const char* here) {
    if (detail::fatal_place == here) throw detail::Died{};
  });
  bool died = false;
  try {
    operation();
  } catch (const detail::Died&) {
    died = true;
  }
  crash_hook.store(nullptr);
  return died;
}

}  // namespace kvtrie::test
#endif
