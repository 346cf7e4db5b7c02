// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Matching tokens against the trie: loads only, no lock, no system call (C9, rule 1).
//
// From the page just matched, the next one is looked for where it most likely is: the neighbouring index (pages of
// one prompt are taken as runs), then the child hint, then the index. Each candidate is checked in this order:
// state word, parent handle with generation, tokens. What is found is unprotected: the caller leases the deepest
// page and believes the path only then (lease.h).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/stripe_index.h"

namespace kvtrie {

struct WalkEnd {
  bool pending = false;  // the next page is announced by somebody and not there yet
  bool corrupt = false;  // met a state word that cannot be
};

// Appends the handles of the matched pages to `path`, which is empty at the call.
WalkEnd walk(const Segment& segment, const StripeIndex& index, Handle root, std::uint64_t root_hash,
             std::span<const std::uint32_t> tokens, std::vector<Handle>& path);

}  // namespace kvtrie
