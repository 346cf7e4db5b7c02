// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What must hold in a CrashWorld at rest, judged from the state words alone and not by the code
// under test; and `verify` beside it. All throw Violation.
#pragma once

#include <cstdint>

#include "tests/support/crash_world.h"

namespace kvtrie::test {

struct PageCensus {
  std::uint32_t free = 0;
  std::uint32_t held = 0;    // Writing or Pending
  std::uint32_t cached = 0;  // Live
};

// Every page is in one possible state, none is Condemned or Retiring; free + held + cached = all
// pages.
PageCensus count_pages(const Segment& segment);

// The paths of all Live pages. Throws where a parent is not Live, or tokens or bytes are not those
// of the path.
Paths cached_paths(const View& view);

// The census; free bits are exactly the Free pages; held counts are exactly the pages held; every
// Live and Pending page is in the index once, and nothing else is; leases name Live pages; and
// verify() finds nothing.
void check_at_rest(const View& view);

// must <= cached_paths <= may.
void check_cached(const View& view, const Paths& must, const Paths& may);

}  // namespace kvtrie::test
