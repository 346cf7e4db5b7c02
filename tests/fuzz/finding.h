// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a target saw that must not be. It ends the process as a crash does, so that every driver keeps the input.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace kvtrie::fuzz {

inline void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "FINDING: %s\n", what);
  std::abort();
}

}  // namespace kvtrie::fuzz
