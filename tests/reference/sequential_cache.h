// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The prefix cache as one thread with ordinary memory would write it: a trie of pages, compared by
// their tokens, with exact LRU along paths. Concurrent and crashed runs of the real cache are
// compared with it, so it is written to be obviously right and not to be fast: the victim of an
// eviction is found by looking at every page.
//
// A page is
//   Free      in nobody's hands, only counted
//   private   of one open request, unknown to the trie        (the real cache's Writing)
//   Pending   of one open request, in the trie, not matched    (announced)
//   Live      in the trie, matched; it stays when its request ends
//
// begin      walks the Live pages of the longest known prefix, leases and touches the deepest one.
//            Stops before a Pending page and says so.
// allocate   takes Free pages for a request, evicting as described below, and announces those whose
//            tokens are known: it stops for good at the first page that somebody else has in the
//            trie (rule 9: the first to announce is canonical); that page and all below stay
//            private.
// publish    makes the announced pages up to a token count Live and moves the lease to the deepest.
//            Before that it announces what it can; where it stands before a page of somebody else, it looks:
//            gone: announces its own; Live: leases and touches it and goes on below, its own copy
//            stays private; still Pending: nothing.
// release    drops the lease; all pages of the request that are not Live are Free again.
//
// Eviction. A victim is a Live page without children (Pending counts as one) and without a lease,
// the one with the oldest stamp. It passes its stamp to its parent if that is older. Each operation
// has a stamp of its own, and all pages that one operation stamps lie on one path, so no two leaves
// ever have the same stamp: the order is total. allocate(n new pages):
//   free < n              evict until free = max(high, n); if that cannot give n: not now
//   free < low afterwards evict until free = high
//   low = ceil(pages * low_percent / 100), high likewise
//
// Not modelled: incomplete pages (they match only inside a page), waiting, death (it is a release
// of all that the worker had open).
//
// A RequestId that is not open is a fault of the test and throws std::out_of_range.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace kvtrie::reference {

using Token = std::uint32_t;
using Tokens = std::vector<Token>;

struct CacheOptions {
  std::uint32_t pages = 64;
  std::uint32_t tokens_per_page = 16;
  std::uint32_t low_percent = 1;
  std::uint32_t high_percent = 2;
  // Off: allocate() takes only what is free, and evict() is called by hand.
  bool evict_in_allocate = true;
  // On: a page that has been stamped in this tick (see set_tick) is not stamped by another begin.
  bool touch_once_a_tick = false;
};

[[nodiscard]] constexpr std::uint32_t pages_of_percent(std::uint32_t pages, std::uint32_t percent) {
  return static_cast<std::uint32_t>((std::uint64_t{pages} * percent + 99) / 100);
}

enum class RequestId : std::uint64_t {};
enum class AllocateResult { kOk, kNotNow, kNever };

struct BeginResult {
  RequestId request{};
  std::uint32_t matched_pages = 0;
  bool stopped_at_pending = false;
};

struct PublishResult {
  std::uint32_t published_pages = 0;  // of this request, made Live by this call
  std::uint32_t canonical_pages = 0;  // pages of the prompt that are Live under the lease now
};

struct CachedPath {
  std::uint32_t name_space = 0;
  Tokens tokens;  // from the start of the prompt to the end of the page

  friend auto operator<=>(const CachedPath&, const CachedPath&) = default;
};

struct CacheCounters {
  std::uint64_t evictions = 0;
  std::uint64_t duplicates = 0;  // own pages that were found to be somebody else's already
  std::uint64_t not_now = 0;
  std::uint64_t never = 0;
};

class SequentialCache {
 public:
  explicit SequentialCache(const CacheOptions& options);
  ~SequentialCache();
  SequentialCache(const SequentialCache&) = delete;
  SequentialCache& operator=(const SequentialCache&) = delete;

  BeginResult begin(std::uint32_t name_space, std::span<const Token> tokens);

  // `pages_total` counts from the start of the prompt: matched pages and those taken before are in
  // it. Never: more than the pool has. On anything but kOk the request holds what it held before.
  AllocateResult allocate(RequestId request, std::uint32_t pages_total);

  // Tokens that were not known at begin (an answer): announced by the next allocate or publish.
  void append(RequestId request, std::span<const Token> tokens);

  PublishResult publish(RequestId request, std::size_t tokens);

  void release(RequestId request);

  // Evicts in LRU order until that many pages are free or nothing is evictable. Returns how many.
  std::uint32_t evict(std::uint32_t free_target);

  void set_tick(std::uint32_t tick) { tick_ = tick; }

  // free + held + cached = pages.
  [[nodiscard]] std::uint32_t free_pages() const { return free_pages_; }
  [[nodiscard]] std::uint32_t held_pages() const;    // private and Pending
  [[nodiscard]] std::uint32_t cached_pages() const;  // Live
  [[nodiscard]] std::uint32_t low_pages() const { return low_pages_; }
  [[nodiscard]] std::uint32_t high_pages() const { return high_pages_; }
  [[nodiscard]] std::size_t open_requests() const { return requests_.size(); }
  [[nodiscard]] const CacheCounters& counters() const { return counters_; }

  // Every Live page as its path, in order; a page's prefixes are in it too.
  [[nodiscard]] std::set<CachedPath> cached_paths() const;

  // Empty if all is consistent, else what is not. For tests of this model itself.
  [[nodiscard]] std::string find_violation() const;

 private:
  struct Node;
  struct OpenRequest;

  [[nodiscard]] Tokens page_tokens(const OpenRequest& request, std::size_t position) const;
  [[nodiscard]] Node* find_child(const Node& parent, const Tokens& page) const;
  Node* root_of(std::uint32_t name_space);
  void lease(OpenRequest& request, Node* node);
  void announce(OpenRequest& request);
  void join_canonical(OpenRequest& request);
  bool evict_one();
  Node* find_victim() const;

  const CacheOptions options_;
  const std::uint32_t low_pages_;
  const std::uint32_t high_pages_;
  std::uint32_t free_pages_;
  std::uint64_t stamp_ = 0;  // of the running operation
  std::uint32_t tick_ = 0;
  std::uint64_t next_request_ = 1;
  CacheCounters counters_;
  std::map<std::uint32_t, std::unique_ptr<Node>> roots_;
  std::set<Node*> nodes_;  // all but the roots
  std::map<RequestId, std::unique_ptr<OpenRequest>> requests_;
};

}  // namespace kvtrie::reference
