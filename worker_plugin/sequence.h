// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One request of a worker: the pages it shares, the pages it owns, and its lease. All of it is private memory;
// what others see are state words, the index and lease slots, moved as page_table.h, announce.h and lease.h say.
//
// Positions 0 .. shared-1 were matched by begin. Each position above has a page of the sequence's own:
//
//   kPrivate     Writing: nobody else knows it. Its tokens may be unknown, or another worker's page has the same key,
//                or a stripe was busy. When that other page is Live it may be linked: `node` then names it, it is
//                under this sequence's lease, and what follows is announced below it (rule 9)
//   kPending     announced
//   kLive        published; kept by the lease
//   kIncomplete  published with fewer tokens than a page has: the last position, nothing can stand below it. To go on
//                the sequence takes a new page for this position and copies (C3)
//   kGone        given back: the position has no page, and nothing from there on is published
//
//   shared <= published <= linked <= positions
//     linked      positions whose node may be a parent (rule 3): shared, own Pending, own Live, linked
//     published   of these, from the start: Live. The lease is on node(published - 1), or on the incomplete page
//                 at `published`, always
//
// A *source* is a page that is copied into the own page of one position before anybody writes there: the incomplete page
// that the sequence goes on from, or a page whose first tokens a begin matched. It has a lease of its own until then.
//
// Sequences of one batch may use one page: `borrowed` says that another of them owns it (batch.h).
//
// One thread at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "shm/announce.h"
#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

class Batch;

enum class OwnState : std::uint8_t { kPrivate, kPending, kLive, kIncomplete, kGone };

inline constexpr PageIndex kNoPage{std::numeric_limits<std::uint32_t>::max()};
inline constexpr std::uint32_t kNoSlot = std::numeric_limits<std::uint32_t>::max();

struct OwnPage {
  Handle node;  // canonical page of this position; none: not linked
  PageIndex page;
  OwnState state = OwnState::kPrivate;
  bool before_other = false;  // another page of this key was there first
  bool borrowed = false;
};

struct CopySource {
  Handle page;
  std::uint32_t tokens = 0;  // from its start; 0: there is none
  std::uint32_t position = 0;
  std::uint32_t lease_slot = 0;
  bool callers = false;  // the caller copies, or has copied: nobody else does. The claim lasts until he publishes

  bool any() const { return tokens != 0; }
};

// What begin was asked for beside the tokens.
struct SequenceOptions {
  bool read = true;
  bool publish = true;
  bool partial = false;  // look for a match inside the next page, too
  bool tokens_stay = false;  // the caller's tokens are not copied
  std::uint32_t request_tag = 0;
  std::uint32_t retention_ticks = 0;
  std::uint8_t hint = 0;
  std::uint8_t priority = 0;
};

// The tokens that a sequence knows beyond its shared pages: a copy, or the caller's own, who lets them stay until then.
class KnownTokens {
 public:
  KnownTokens() = default;
  KnownTokens(const KnownTokens&) = delete;  // the view may be of this object's copy, which moves with it
  KnownTokens& operator=(const KnownTokens&) = delete;
  KnownTokens(KnownTokens&& other) noexcept : own_(std::move(other.own_)), view_(std::exchange(other.view_, {})) {}
  KnownTokens& operator=(KnownTokens&& other) noexcept {
    own_ = std::move(other.own_);
    view_ = std::exchange(other.view_, {});
    return *this;
  }
  void copy(std::span<const std::uint32_t> tokens) {
    own_.assign(tokens.begin(), tokens.end());
    view_ = own_;
  }
  void borrow(std::span<const std::uint32_t> tokens) {
    own_.clear();
    view_ = tokens;
  }
  // What was borrowed is copied first: it and these stand in one piece.
  void append(std::span<const std::uint32_t> tokens) {
    if (view_.data() != own_.data()) own_.assign(view_.begin(), view_.end());
    own_.insert(own_.end(), tokens.begin(), tokens.end());
    view_ = own_;
  }
  void drop_first(std::size_t count) {
    if (view_.data() != own_.data()) {
      view_ = view_.subspan(count);
    } else {
      own_.erase(own_.begin(), own_.begin() + static_cast<std::ptrdiff_t>(count));
      view_ = own_;
    }
  }
  void clear() { borrow({}); }
  std::span<const std::uint32_t> view() const { return view_; }
  std::size_t size() const { return view_.size(); }
  std::size_t kept_bytes() const { return own_.capacity() * sizeof own_[0]; }

 private:
  std::vector<std::uint32_t> own_;
  std::span<const std::uint32_t> view_;
};

struct Sequence {
  NamespaceId name_space;
  std::uint64_t root_generation = 0;
  std::uint64_t root_hash = 0;
  SequenceOptions options;
  std::uint32_t lease_slot = kNoSlot;  // none: the sequence is not open
  std::vector<Handle> shared;
  std::vector<OwnPage> own;
  KnownTokens tokens;  // from the first token after the shared pages
  std::uint32_t published = 0;
  std::uint32_t linked = 0;
  CopySource source;
  std::shared_ptr<Batch> batch;  // of sequences that use each other's pages; null: none

  std::uint32_t positions() const { return static_cast<std::uint32_t>(shared.size() + own.size()); }
  OwnPage& own_at(std::uint32_t position) { return own[position - shared.size()]; }
  const OwnPage& own_at(std::uint32_t position) const { return own[position - shared.size()]; }
  PageIndex page_at(std::uint32_t position) const {
    return position < shared.size() ? shared[position].page_index() : own_at(position).page;
  }
  Handle root() const { return Handle::root(name_space, root_generation); }
  Handle node_at(std::uint32_t position) const {
    return position < shared.size() ? shared[position] : own_at(position).node;
  }
  Handle parent_of(std::uint32_t position) const {
    return position == 0 ? root() : node_at(position - 1);
  }
  // Tokens known in all, those of shared pages too.
  std::uint64_t known_tokens(std::uint32_t tokens_per_page) const {
    return shared.size() * std::uint64_t{tokens_per_page} + tokens.size();
  }
  // Positions whose tokens are all known.
  std::uint32_t full_positions(std::uint32_t tokens_per_page) const {
    return static_cast<std::uint32_t>(known_tokens(tokens_per_page) / tokens_per_page);
  }
  // Of a position from the first own one on: its tokens, fewer than a page has when not all are known.
  std::span<const std::uint32_t> tokens_at(std::uint32_t position, std::uint32_t tokens_per_page) const {
    const std::span<const std::uint32_t> all = tokens.view();
    const std::size_t first = (position - shared.size()) * tokens_per_page;
    return all.subspan(first, std::min<std::size_t>(tokens_per_page, all.size() - first));
  }
  // Then it is the page at `published`.
  bool has_incomplete() const {
    return published < positions() && own_at(published).state == OwnState::kIncomplete;
  }
};

}  // namespace kvtrie
