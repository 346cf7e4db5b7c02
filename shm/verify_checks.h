// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The parts of verify.cc. Each check looks at one unit (a page, a bucket, a worker ...) as it is
// now and says what is wrong with it; verify.cc decides what is looked at, how often, and what is
// reported.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "shm/page_table.h"
#include "shm/segment.h"
#include "shm/stripe_index.h"
#include "shm/verify.h"

namespace kvtrie::verify_detail {

enum class UnitKind : std::uint8_t {
  kSuperblock,
  kPadding,
  kPage,
  kBucket,
  kChunk,
  kWorker,
  kNamespace,
  kNamespacePair,
  kStripe,
  kPagePair
};

struct Unit {
  UnitKind kind;
  std::uint64_t number = 0;
  std::uint64_t other = 0;  // of a pair
};

// Something wrong, and a key of the words that are wrong: equal keys at two moments, the same
// wrong.
struct Wrong {
  Finding finding;
  std::uint64_t key;
};

class Wrongs {
 public:
  // `key` is mixed with the invariant and the subject.
  void add(Invariant invariant, Subject subject, std::uint64_t number, std::uint64_t key,
           std::string text);
  std::vector<Wrong>& all() { return all_; }
  bool empty() const { return all_.empty(); }
  void clear() { all_.clear(); }

 private:
  std::vector<Wrong> all_;
};

// A page's fields, read while its state word did not change.
struct PageView {
  StateWord word;
  Handle parent;
  std::uint64_t prefix_hash = 0;
  std::uint32_t scope = 0;
  std::uint32_t depth_class = 0;
  std::uint32_t child_hint = 0;
  std::uint16_t token_count = 0;
  std::uint16_t publisher = 0;
  std::uint64_t checksum = 0;
};

// Bytes that others may be writing.
inline std::uint8_t byte_at(const void* address) {
  return __atomic_load_n(static_cast<const std::uint8_t*>(address), __ATOMIC_RELAXED);
}

inline const std::byte* end_of(const void* field, std::size_t bytes) {
  return static_cast<const std::byte*>(field) + bytes;
}

template <typename Field>
const std::byte* end_of(const Field& field) {
  return end_of(&field, sizeof field);
}


struct Totals {
  std::array<std::uint64_t, kPageStates> pages{};
  std::uint64_t pages_impossible = 0;
  std::uint64_t leases = 0;
  std::uint64_t index_entries = 0;
  std::vector<std::uint32_t> children;  // readable ones, by page
};

// What looks at pages told about the index, so that its lines are read where the page is, once.
struct Seen {
  std::vector<std::uint8_t> entries;  // by bucket; bit i: entry i was seen from its page, so it belongs there
  std::vector<std::pair<std::uint32_t, std::uint32_t>> twins;  // entries of one tag in one bucket; lower page first
  bool twins_left_out = false;
};

// Tokens of a page, copied where no allocator is asked.
using TokenBuffer = std::array<std::uint32_t, kTokensPerPageMax>;

class Checks {
 public:
  Checks(const Segment& segment, const VerifyOptions& options);

  void check(const Unit& unit, Wrongs& wrongs);
  // Nothing when the page changes all the time.
  std::optional<PageView> view(PageIndex page) const;
  // Of the page's parent, count and tokens; two canonical pages of one content are duplicates.
  std::uint64_t content_hash(PageIndex page, const PageView& v) const;
  void count(const Unit& unit, Totals& totals) const;
  // Asks for the lines that looks at this page and at others behind it will need.
  void prefetch(PageIndex page, const Totals& totals) const;
  // The entries of a bucket that are not empty, as bits.
  std::uint8_t entries_in(std::uint64_t bucket) const;
  const Seen& seen() const { return seen_; }

 private:
  // verify_pages.cc
  void check_page(PageIndex page, Wrongs& wrongs);
  void check_canonical(PageIndex page, const PageView& v, Wrongs& wrongs);
  void check_root(PageIndex page, const PageView& v, Wrongs& wrongs) const;
  void check_parent(PageIndex page, const PageView& v, Wrongs& wrongs) const;
  void check_index(PageIndex page, const PageView& v, Wrongs& wrongs);
  void check_bucket(std::uint64_t bucket, Wrongs& wrongs) const;
  void check_chunk(std::uint32_t chunk, Wrongs& wrongs) const;
  void check_pair(PageIndex a, PageIndex b, Wrongs& wrongs) const;
  bool pending_unlisted(PageIndex page, const PageView& v) const;
  std::span<const std::uint32_t> tokens_of(PageIndex page, std::uint16_t count,
                                           TokenBuffer& into) const;

  // verify_tables.cc
  void check_superblock(Wrongs& wrongs) const;
  void check_padding(Wrongs& wrongs) const;
  void check_worker(WorkerId worker, Wrongs& wrongs) const;
  void check_leases(WorkerId worker, std::uint64_t slot_word, Wrongs& wrongs) const;
  void check_lease(WorkerId worker, std::uint64_t number, Handle handle, Wrongs& wrongs) const;
  void check_held(WorkerId worker, bool free, Wrongs& wrongs) const;
  void check_namespace(NamespaceId id, Wrongs& wrongs) const;
  void check_namespace_pair(NamespaceId a, NamespaceId b, Wrongs& wrongs) const;
  void check_stripe(std::uint32_t stripe, Wrongs& wrongs) const;
  void expect_zero(const void* from, const void* to, Subject subject, std::uint64_t number,
                   const char* what, Wrongs& wrongs) const;

  SlotState slot_state(WorkerId worker) const;
  bool slot_in_use(WorkerId worker) const;
  // Live only: the worker may have stopped, or died, between any two stores, and its slot is still
  // in use. While adopting any worker may have: one in a frozen container looks like one that runs.
  bool excused(WorkerId worker) const;
  bool coordinator_excused() const;

  const Segment& segment_;
  const StripeIndex index_;
  const bool at_rest_;
  const bool adopting_;
  const std::uint32_t tokens_per_page_;
  Seen seen_;
};

// Whether this process exists, is not stopped, traced or a zombie, and started at `start_time`.
bool process_runs(std::uint32_t pid, std::uint64_t start_time);

}  // namespace kvtrie::verify_detail
