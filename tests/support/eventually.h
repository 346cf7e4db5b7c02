// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for a condition that another thread or process brings about: bounded, and without a
// guessed sleep.
#pragma once

#include <sched.h>

#include <chrono>

namespace kvtrie::test {

template <typename Condition>
bool eventually(Condition condition, std::chrono::milliseconds bound = std::chrono::seconds(20)) {
  const auto end = std::chrono::steady_clock::now() + bound;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::sched_yield();
  }
  return true;
}

}  // namespace kvtrie::test
