// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Decides whether a recorded history is one that DESIGN.md allows.
//
// The model is the cache of tests/reference, by steps: each step of a call takes effect at one instant, and steps of
// concurrent calls may come in any order that the calls' own order allows. A history is right if there is an instant
// for each of its steps, between invocation and response of its call, so that each step finds what it needs:
//
//   call      steps, in this order                                     a step needs
//   begin     match(1..k): the answer and the lease                    each of them Live, no Live page of key k+1
//             pending(L)  anywhere in the call                         L announced, neither published nor freed
//   allocate  take(L) each                                             its page Free
//             announce(L) each, parents first                          nobody has the key; the parent is a root, Live and
//                                                                      held by this sequence, or this process's Pending
//             blocked     why the next one stayed private              another page has the key
//   publish   announce, blocked, link(L') to another's page            L' Live
//             publish(L)  each, parents first                          Pending, its parent a root or Live
//   release   drop; abort(L), free(L) each
//   evict     retire(L) each                                           Live, no sequence holds it, no Live or Pending
//                                                                      page below it
//
// A sequence holds what it matched, published or was linked to, and all above, from that step until its drop. A key is
// a path's prefix; it is Live or Pending in at most one page. Condemned counts as Live, as it does for a reader.
//
// Linearizable as a whole: begin (what it matches is the longest cached prefix at one instant of the call: the walk
// misses page k+1 at some instant, and the look at the leased page afterwards shows that the first k had been Live all
// the time from when the walk came through), release and a failed call but for its code. Linearizable step by step,
// not as a whole: allocate, publish and evict go through their pages one after the other, and others see the cache in
// between.
//
// Not linearizable: the count of what comes (pending_pages, an estimate, not checked; the first of them is, above);
// which pages are evicted (the order of use is exact only at rest: tests/worker_plugin/model_comparison_test.cc); and
// "not now", since allocate looks through the free pages one after the other. What holds of that is an interval: it
// fails only if fewer pages than it wanted were free all the time from its invocation to its response, less what other
// failing calls may have had in their hands.
//
// The search is that of Wing and Gong, with the states that led nowhere remembered (Lowe): a state is given by the
// place in the order of events and by the steps done of each running call.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/concurrency/support/history.h"

namespace kvtrie::test {

// What a history breaks.
enum class Promise : std::uint8_t {
  kKept,
  kMatchIsLive,       // a match is of pages that were Live at one instant of the call
  kPublishedIsFound,  // what is Live during a whole begin is matched by it
  kPendingIsPending,  // a page reported as coming is coming at an instant of the call
  kRightPage,         // a match is of the path's own pages, with their bytes (C3)
  kPageIsOnes,        // allocate gives nobody a page that another has or that is Live (C1)
  kKeyOnce,           // a key is in one page at a time; a page stays private only for another of its key (rules 4, 9)
  kParentHeld,        // announced below a root, an own Pending page or a Live page that is held (rule 3)
  kParentsFirst,      // published below what is Live (C2)
  kLeaseKeeps,        // no page is evicted between the response that gave it and the release (C4)
  kChildKeepsParent,  // no page is evicted above a Live or Pending one (C4)
  kCounts,            // free + cached is all pages at rest, evict's count is what went
  kEnoughIsEnough,    // allocate does not fail with enough free pages all the time
  kRecord,            // the record itself cannot be of this cache
  kUndecided,         // the search took too long
};
const char* name_of(Promise promise);

struct Verdict {
  std::vector<Promise> broken;  // empty: the history is right. When the search ends nowhere, all that stood in its way
                                // where it came furthest
  std::string text;             // what and where
  std::uint64_t states = 0;     // looked at

  bool right() const { return broken.empty(); }
  bool breaks(Promise promise) const;
};

Verdict check(const History& history);

}  // namespace kvtrie::test
