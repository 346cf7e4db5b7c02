// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Named places between two stores that recovery must tell apart. A test sets a hook that kills the process
// at the n-th place it passes; in builds without KVTRIE_DEV nothing is compiled in.
#pragma once

#ifdef KVTRIE_DEV
#include <atomic>

namespace kvtrie {
using CrashHook = void (*)(const char* place);
inline std::atomic<CrashHook> crash_hook{nullptr};
}  // namespace kvtrie

#define KVTRIE_CRASH_POINT(place)                                                         \
  do {                                                                                    \
    if (auto hook = ::kvtrie::crash_hook.load(std::memory_order_relaxed)) hook(place);    \
  } while (false)
#else
#define KVTRIE_CRASH_POINT(place) \
  do {                            \
  } while (false)
#endif
