// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Matching tokens against the trie: loads only, no lock, no system call (C9, rule 1).
//
// Three ways to the next page, taken where each is quickest:
//
//   along a run   the neighbouring index, since pages of one prompt are taken as runs; fetched some pages ahead
//   over a jump   where a run ends: the child hint, then the index. The end is seen some pages ahead; then what is
//                 behind it is fetched: the page that the hint names, the buckets, the page in them
//   by the index  at the start, and where runs are short: hashed ahead, then buckets and descriptors fetched ahead
//
// What was seen ahead only saves time. Each page is checked when it is entered: state word, depth, parent handle with
// generation, tokens. Where what was seen ahead does not hold, the index is asked anew, and a walk ends only where that
// has no next page: it finds all that is cached, and when pages are evicted meanwhile, at least those that stay.
// What is found is unprotected: the caller leases the deepest page and believes the path only then (lease.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/stripe_index.h"
#include "worker_plugin/sequence.h"

namespace kvtrie {

struct WalkEnd {
  Handle pending;                   // the next page, announced by somebody and not there yet; none: nobody does it
  std::uint32_t pending_pages = 0;  // announced from there on
  std::uint32_t pending_since = 0;  // tick of the first one's announcement
  bool corrupt = false;             // met a state word that cannot be
};

// Where a walk begins: a root, with its hash, or a page under the caller's lease.
struct WalkStart {
  Handle at;
  std::uint64_t root_hash = 0;
};

// Appends the handles of the matched pages to `path`, which has those from the root to `start` already.
WalkEnd walk(const Segment& segment, const StripeIndex& index, WalkStart start,
             std::span<const std::uint32_t> tokens, std::vector<Handle>& path);

// The page that `at`'s child hint names, if it is a child of `at` and begins as `tokens` do, and how far. Best effort:
// the only place where a match inside a page is looked for. Lease it before it is believed.
CopySource start_in_hinted_child(const Segment& segment, Handle at,
                                 std::span<const std::uint32_t> tokens);

// How many pages of a path are probably cached, by their prefix hashes: a binary search in the index, an estimate.
std::uint32_t cached_depth(const Segment& segment, const StripeIndex& index, Handle root,
                           std::span<const std::uint64_t> prefix_hashes);

}  // namespace kvtrie
