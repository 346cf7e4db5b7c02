// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One request of a worker: the pages it shares, the pages it owns, and its lease. All of it is private memory;
// what others see are state words, the index and one lease slot, moved as page_table.h, announce.h and lease.h say.
//
// Positions 0 .. shared-1 were matched by begin. Each position above has a page of the sequence's own:
//
//   kPrivate   Writing: nobody else knows it. Its tokens may be unknown, or another worker's page has the same key,
//              or a stripe was busy. When that other page is Live it may be linked: `node` then names it, it is
//              under this sequence's lease, and what follows is announced below it (rule 9)
//   kPending   announced
//   kLive      published; kept by the lease
//
//   shared <= published <= linked <= positions
//     linked      positions whose node may be a parent (rule 3): shared, own Pending, own Live, linked
//     published   of these, from the start: Live. The lease is on node(published - 1), always
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shm/announce.h"
#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

enum class OwnState : std::uint8_t { kPrivate, kPending, kLive };

struct OwnPage {
  Handle node;  // canonical page of this position; none: not linked
  PageIndex page;
  OwnState state = OwnState::kPrivate;
  bool before_other = false;  // another page of this key was there first
};

// What begin was asked for beside the tokens.
struct SequenceOptions {
  bool read = true;
  bool publish = true;
  std::uint32_t request_tag = 0;
  std::uint32_t retention_ticks = 0;
  std::uint8_t hint = 0;
  std::uint8_t priority = 0;
};

struct Sequence {
  NamespaceId name_space;
  std::uint64_t root_generation = 0;
  std::uint64_t root_hash = 0;
  SequenceOptions options;
  std::uint32_t lease_slot = 0;
  std::vector<Handle> shared;
  std::vector<OwnPage> own;
  std::vector<std::uint32_t> tokens;  // from the first token after the shared pages
  std::uint32_t published = 0;
  std::uint32_t linked = 0;

  std::uint32_t positions() const { return static_cast<std::uint32_t>(shared.size() + own.size()); }
  OwnPage& own_at(std::uint32_t position) { return own[position - shared.size()]; }
  PageIndex page_at(std::uint32_t position) const {
    return position < shared.size() ? shared[position].page_index()
                                    : own[position - shared.size()].page;
  }
  Handle root() const { return Handle::root(name_space, root_generation); }
  Handle node_at(std::uint32_t position) const {
    return position < shared.size() ? shared[position] : own[position - shared.size()].node;
  }
  Handle parent_of(std::uint32_t position) const {
    return position == 0 ? root() : node_at(position - 1);
  }
  // Positions whose tokens are all known.
  std::uint32_t full_positions(std::uint32_t tokens_per_page) const {
    return static_cast<std::uint32_t>(shared.size() + tokens.size() / tokens_per_page);
  }
};

}  // namespace kvtrie
