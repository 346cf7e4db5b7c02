// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What of a damaged segment can be kept: the plan of a repair. Reads, and writes nothing; any bytes give a plan (C7).
//
// A page is kept when all of this holds (kFree and kUnfinished are no loss: the first has nothing, the second is what
// any recovery gives back, since its owner is dead):
//   its state word is well formed, and Live or Condemned           else kState (kFree, kUnfinished)
//   it has 1 to tokens_per_page tokens                             else kTokens
//   its scope names a namespace that is kept                       else kNamespace
//   ... in its present root generation                             else kFlushed, or kScope
//   its parent is that root, or another page in that page's life   else kParent
//   it is one deeper than that                                     else kDepth
//   the parent is kept                                             else kBelow
//   ... and full, so it may have children                          else kParent
//   its prefix hash is its parent's with its tokens                else kHash
//   its bytes have its checksum, where there is one                else kChecksum
//   no page that is kept has the same parent and tokens            else kDuplicate
//   it is in the index, or its free bit is clear                   else kSaysFree: so looks a free page with a bad word
//   one of its two buckets has room                                else kIndexFull
// Depths decide the order: parents first, and a cycle cannot be. Of duplicates the one in the index is kept, else the
// lower page. Entries stay where they were, so an index that is not damaged never fills up.
//
// A namespace is kept when its record is valid by itself (NamespaceTable::validate) and no lower one has its fields.
// Where a page proves that its root generation went back, it is kept without pages, in a generation after that one:
// what was flushed must not come back. Root generations that went forward cannot be told from a flush.
//
// Bytes of pages without a checksum are not looked at: nothing says what they should be.
//
// Cost: two passes over the pages, and a sort of the readable ones; 25 bytes of memory a page, and the index once more.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/pins.h"
#include "shm/segment.h"

namespace kvtrie {

// clang-format off
// X(constant, name in reports, why the page is not kept)
#define KVTRIE_PAGE_FATES(X)                                                              \
  X(kKept, "kept", "kept")                                                                \
  X(kFree, "free", "free")                                                                \
  X(kUnfinished, "unfinished", "was being written or evicted by a process that is dead")  \
  X(kState, "state", "its state word is impossible")                                      \
  X(kTokens, "tokens", "its token count is impossible")                                   \
  X(kNamespace, "namespace", "its namespace is lost")                                     \
  X(kFlushed, "flushed", "its namespace was flushed: nothing could match it")             \
  X(kScope, "scope", "it is not in its parent's namespace and root generation")           \
  X(kParent, "parent", "its parent is no page that may have it below")                    \
  X(kDepth, "depth", "it is not one deeper than its parent")                              \
  X(kBelow, "below", "its parent is not kept")                                            \
  X(kHash, "hash", "its prefix hash is not that of its parent and tokens")                \
  X(kChecksum, "checksum", "its bytes have not its checksum")                             \
  X(kDuplicate, "duplicate", "another page has its parent and tokens")                    \
  X(kSaysFree, "says_free", "it is not in the index, and marked free")                    \
  X(kIndexFull, "index_full", "both of its buckets are full")
// clang-format on

enum class PageFate : std::uint8_t {
#define KVTRIE_X(constant, name, why) constant,
  KVTRIE_PAGE_FATES(KVTRIE_X)
#undef KVTRIE_X
};
inline constexpr std::size_t kPageFates = 0
#define KVTRIE_X(constant, name, why) +1
    KVTRIE_PAGE_FATES(KVTRIE_X)
#undef KVTRIE_X
    ;
const char* name_of(PageFate fate);
const char* why_of(PageFate fate);
// Whether a page of this fate is thrown away because of damage.
constexpr bool is_loss(PageFate fate) { return fate > PageFate::kUnfinished && fate != PageFate::kFlushed; }

struct NamespacePlan {
  bool kept = false;
  std::uint64_t root_generation = 0;  // in the new segment
  std::uint64_t pages_kept = 0;
  std::uint64_t pages_lost = 0;
  std::string why;  // it, or all of its pages, are lost; empty: neither, or nobody had it

  bool lost() const { return !kept && !why.empty(); }
};

struct PinPlan {
  Pin pin;
  bool kept = false;
};

struct RepairPlan {
  static constexpr std::size_t kExamples = 5;

  std::vector<PageFate> fate;                       // by page
  std::array<std::uint64_t, kPageFates> pages{};    // by fate
  std::array<std::vector<std::uint32_t>, kPageFates> examples;  // the first pages of each fate
  std::vector<std::uint64_t> entries;               // of the new index, by bucket
  std::vector<NamespacePlan> namespaces;            // by id
  std::vector<PinPlan> pins;
  std::uint64_t checksums_compared = 0;

  std::uint64_t of(PageFate which) const { return pages[static_cast<std::size_t>(which)]; }
  bool keeps(PageIndex page) const { return fate[page.value] == PageFate::kKept; }
  std::uint64_t pages_lost() const;
};

// Whether a page's bytes have this checksum; asked for pages that have one. Empty: nobody looks.
using ChecksumFits = std::function<bool(PageIndex page, std::uint64_t checksum)>;

// Of a segment that nobody writes. It may be mapped read-only.
RepairPlan plan_repair(const Segment& segment, const ChecksumFits& checksum_fits = {});

}  // namespace kvtrie
