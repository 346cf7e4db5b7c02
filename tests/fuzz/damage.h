// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Corruption of a segment, chosen by an input: random bytes, and words that are plausible where they are written
// (handles, states, entries, counts, words of other places, neighbours in time). And a tally of what was touched, by
// what it can be held to: see README.md, "What is wrong".
#pragma once

#include <cstdint>

#include "shm/segment.h"
#include "tests/fuzz/input.h"

namespace kvtrie::fuzz {

// What was written to since the segment was whole.
struct Damage {
  bool states = false;   // a state word that names a state: it says whose a page is, and whether its bytes are final
  bool words = false;    // any state word: what was matched before may not be Live
  bool parents = false;  // a parent word that names a page or a root
  bool links = false;    // any parent word: what is above a leased page may be evicted
  bool depths = false;
  bool tokens = false;  // tokens, or how many
  bool leases = false;  // leases, or their high-water marks
  bool roots = false;   // what a namespace's record says of its root
  bool slots = false;   // who has a worker's slot

  // Then every hit must have the bytes of its tokens.
  bool leaves_hits_true() const { return !states && !parents && !tokens && !leases && !roots; }
  // Then no page is given out twice.
  bool leaves_owners_true() const { return !states; }
  // Then what was matched stays.
  bool leaves_leases_true() const { return !words && !links && !leases && !tokens; }
};

// One to a few words. Atomic stores, so it may run beside others.
void damage_some(Input& input, const Segment& segment, Damage& damage);

// A word that is plausible somewhere.
std::uint64_t plausible_word(Input& input, const Segment& segment);

// Stores `value` in the segment's 64-bit word number `word`, and says what that is.
void damage_word(const Segment& segment, std::uint64_t word, std::uint64_t value, Damage& damage);

}  // namespace kvtrie::fuzz
