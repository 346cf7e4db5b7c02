// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A new segment with what a plan keeps of a damaged one. The old one is read only; nothing is repaired in place.
//
// Same: geometry, device, clock, names, hash secret and cache id (a copy queue has it too), so the pools and their
// names stay as they are; namespaces, pages and pins under their numbers; handles of kept pages, so the parent
// handles hold.
// A page's word becomes Live in its life. A page that is thrown away is Free in the life after the one that its old
// word says, whatever that was: no process has a handle of it (the caller saw to that), and none is in the new
// segment, since what hung on it and pins of it went too.
// New: locks, index (entries where they were), free bits, held counts; worker slots are free, leases and waits none.
// Announce counters are what they were, but never below a page's children. Hints are kept where they are right, else 0.
//
// Worker counters are kept, so that sums which are exported go on, but for those above kCounterMax: nothing counts that
// far, they are damage. A slot's incarnation is kept likewise.
#pragma once

#include <cstdint>

#include "shm/repair_plan.h"
#include "shm/segment.h"

namespace kvtrie {

inline constexpr std::uint64_t kCounterMax = std::uint64_t{1} << 48;

// To build the new one with.
SegmentIdentity identity_of(const Segment& segment);

// `fresh` was just built with identity_of(damaged) and its geometry, and nobody else has it. Then verify(fresh) at
// rest is clean; the caller asks, and throws it away otherwise (`damaged` may have been written meanwhile).
void write_repaired(const Segment& damaged, const RepairPlan& plan, const Segment& fresh);

}  // namespace kvtrie
