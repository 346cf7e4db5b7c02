// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// KVTRIE_WIDE_LOADS: neighbouring 64-bit atomics may be read 16 bytes at a time, by SSE2, which every x86-64 has. The
// language has no such load of atomics. The processor has: each aligned 8 bytes of it are read at once, and loads stay
// in order, so each word is what an acquire load would give; and the compiler keeps a plain load behind the acquire load
// of the state word before it, and before the sequentially consistent lease store after it. What was read is believed
// only then (lease.h). Elsewhere, and where a sanitizer looks at each access, words are read one by one.
#pragma once

#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__) && !defined(KVTRIE_TSAN)
#define KVTRIE_WIDE_LOADS 1
#include <emmintrin.h>
#endif
