// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One read-only checker of C1 to C4 and of every structure, over a live or a dead segment, writable
// or not.
//
// Nothing that it reads is believed: every index is checked before use, every loop is bounded by
// the geometry that the Segment copied when it was opened, so any bytes give findings, never a
// crash or a hang (C7).
//
// Three strengths
//   live     (default) finds what no process, killed, stopped or running at any instruction, can
//            leave. Whatever looks wrong is looked at again over `settle_ms` and reported only when
//            the same words are still wrong. What a worker may leave between two stores is excused
//            while its process is stopped or dead and its slot in use: the reaper will see to it.
//   adopting  live, for a coordinator before it takes over. It asks of nobody whether he runs: what
//            the last coordinator and any worker may leave between two stores is excused, since one
//            in a frozen container looks like one that runs, and a false finding would cost the cache.
//   at rest  nobody else runs and the dead were reaped, so stale things are findings too:
//            Condemned or Retiring pages, counts that are only bounds, identities of nobody.
//
// Why no cross-page check tears: a page's fields count only if its state word is equal before and
// after they were read; a page that is canonical (Pending, Live, Condemned) in one life at two
// moments was it all the time between, so a parent read between the two must be good at that very
// moment (C2).
//
// Cost: one pass over the pages, each with its place in the index while its lines are near, and one
// over what is left of the index: about 0.1 s a million pages of 16 tokens in runs, 0.2 s when the
// pages of a path are scattered. 4 bytes of memory a page and one a bucket; as soon as a page looks
// wrong, 16 bytes a canonical page more, and the time to sort them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

// clang-format off
// X(constant, name in reports, what is true when there is no finding)
#define KVTRIE_INVARIANTS(X)                                                                       \
  X(kConstant, "S.constant", "the superblock's constant part is as it was built")                  \
  X(kPoisoned, "S.poisoned", "the segment was not given up")                                       \
  X(kWords, "S.words", "the superblock's changing words have possible values")                     \
  X(kUnused, "S.unused", "unused bytes are zero")                                                  \
  X(kState, "C1.state", "state words are well formed")                                             \
  X(kOwner, "C1.owner", "Writing and Pending pages belong to a worker slot in use")                \
  X(kUnfinished, "C1.unfinished", "at rest no page is Condemned or Retiring")                      \
  X(kParent, "C2.parent", "a Live or Condemned page hangs on a readable page or a root")           \
  X(kPendingParent, "R3.parent", "a Pending page hangs on one, or on a Pending page of its owner") \
  X(kDepth, "C2.depth", "a page is one deeper than its parent, so there are no cycles")            \
  X(kScope, "C8.scope", "a page is in its parent's namespace and root generation")                 \
  X(kHash, "C3.hash", "a prefix hash is its parent's with the page's tokens")                      \
  X(kTokens, "C3.tokens", "a page with a child is full, none has too many tokens or none")         \
  X(kDescriptor, "C7.descriptor", "child hint and publisher are in range")                         \
  X(kIndexed, "I1.indexed", "a Pending, Live or Condemned page is in the index just once")         \
  X(kDuplicate, "I2.duplicate", "no two such pages have the same parent and tokens")               \
  X(kEntry, "I3.entry", "an index entry is of such a page, in one of its two buckets")             \
  X(kLease, "C4.lease", "a lease names a page that it protects")                                   \
  X(kHighWater, "C4.high_water", "no lease stands above its worker's high-water mark")             \
  X(kHeld, "F1.held", "held counts cover the pages that a worker owns")                            \
  X(kHeldExact, "F1.exact", "at rest held counts are exact")                                       \
  X(kLost, "F2.lost", "a Free page has its bit, or somebody will set it")                          \
  X(kFreeBits, "F3.bits", "no free bit stands for a page that is not there")                       \
  X(kCounter, "R5.counter", "an announce counter is not below the page's readable children")       \
  X(kSlot, "W.slot", "worker slot words are possible")                                             \
  X(kIdentity, "W1.identity", "a slot in use says whose it is, at rest a free one nothing")        \
  X(kSlotHolds, "W3.holds", "a free slot holds no page, lease or wait")                            \
  X(kNamespace, "N2.namespace", "namespace records are whole")                                     \
  X(kNamespaceTwice, "N1.twice", "no two open namespaces have the same fields")                    \
  X(kPin, "W.pin", "a pin has a reason with an end, or is zero")                           \
  X(kLock, "L.lock", "stripe locks are robust mutexes that can be had")
// clang-format on

enum class Invariant : std::uint8_t {
#define KVTRIE_X(constant, name, meaning) constant,
  KVTRIE_INVARIANTS(KVTRIE_X)
#undef KVTRIE_X
};
inline constexpr std::size_t kInvariants = 0
#define KVTRIE_X(constant, name, meaning) +1
    KVTRIE_INVARIANTS(KVTRIE_X)
#undef KVTRIE_X
    ;

const char* name_of(Invariant invariant);
const char* meaning_of(Invariant invariant);

enum class Subject : std::uint8_t {
  kSegment,    // number: byte offset
  kPage,       // page index
  kBucket,     // bucket
  kChunk,      // chunk of the free bitmap
  kWorker,     // worker slot
  kLease,      // worker slot x leases per worker + lease slot
  kNamespace,  // namespace id
  kStripe,     // stripe
};
const char* name_of(Subject subject);

struct Finding {
  Invariant invariant;
  Subject subject;
  std::uint64_t number;
  std::string text;  // one line, without the names above
};

struct VerifyOptions {
  bool at_rest = false;
  bool adopting = false;  // live, by the coordinator that takes over: of nobody is it asked whether it runs
  std::size_t findings_max = 100;  // kept; all are counted up to an internal bound
  unsigned settle_ms = 500;        // live: how long something must stay wrong
};

struct VerifyReport {
  std::vector<Finding> findings;
  std::uint64_t findings_total = 0;
  std::array<std::uint64_t, kPageStates> pages{};  // by PageState
  std::uint64_t pages_impossible = 0;
  std::uint64_t leases = 0;
  std::uint64_t index_entries = 0;
  std::uint64_t rechecked = 0;  // things that looked wrong at first

  bool clean() const { return findings_total == 0; }
};

VerifyReport verify(const Segment& segment, const VerifyOptions& options = {});

// "C2.parent page 17: parent is page 9 of another life"
std::string to_string(const Finding& finding);

}  // namespace kvtrie
