// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The life of a page. One atomic word says in which state it is (C1); everything else in a descriptor is
// written by the page's present owner before the store that makes it visible.
//
//              take (CAS)          announce (store)       publish (store)
//      Free ------------> Writing ----------------> Pending ------------> Live
//       ^                    |                        |                  |   ^
//       | give back (store,  |                        |   condemn (CAS)  |   | rescue (CAS), by a worker
//       | next generation)   v                        v                  v   | that leases it or the evictor
//       +--------------------+------------------------+               Condemned
//       |                                                                |
//       |   free (store, next generation)               retire (CAS)     v
//       +----------------------------------------------------------- Retiring
//
//   edge       who                       order        why that suffices
//   take       any worker                acq_rel CAS  one wins; reads of the old life are over (C4)
//   announce   the owner, under the      release      nobody else writes a word that is owned; a reader that
//              key's stripe lock                      sees Pending sees parent, tokens and hash
//   publish    the owner                 release      the page's bytes happen before; the lease was stored
//                                                     before (rule 6), so who sees Live sees the lease
//   condemn    the evictor               seq_cst CAS  against lease stores: lease.h, rule 17
//   rescue     worker or evictor         seq_cst CAS  fails only if it was rescued or is Retiring
//   retire     the evictor               acq_rel CAS  decides against every rescue
//   free       evictor, owner, reaper    release      last store of the life; index entry went before (rule 12)
//
// Readers look at a page in this order: state word (acquire), parent handle with generation, tokens (acquire
// loads that pair with release stores). What they read may be of a page that is being recycled; they believe
// it only after the lease on the deepest page is verified (lease.h). No second look at interior pages: the
// deepest page's life pins its parent handle, and C2 pins the parent's life, up to the root.
//
// Crash: a page is left in Writing or Pending of a dead owner (reap_worker frees it), Condemned (recover, at
// adoption, makes it Live), Retiring (recover finishes it). No edge is more than one store, so none is half done.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/wide_loads.h"

namespace kvtrie {

// What a page's descriptor says beside its state.
struct PageNode {
  Handle parent;
  std::uint64_t prefix_hash = 0;
  NamespaceId name_space;
  std::uint64_t root_generation = 0;
  std::uint32_t depth = 0;
  std::uint8_t priority = 0;
  TouchWord touch;
  std::uint32_t tick = 0;
  std::uint32_t retain_until = 0;
  WorkerId publisher;
};

constexpr std::uint32_t scope_of(NamespaceId id, std::uint64_t root_generation) {
  return std::uint32_t{id.value} << 16 | static_cast<std::uint32_t>(root_generation & 0xFFFF);
}
constexpr NamespaceId namespace_in(std::uint32_t scope) {
  return {static_cast<std::uint16_t>(scope >> 16)};
}
constexpr std::uint32_t depth_in(std::uint32_t depth_class) { return depth_class & 0xFFFFFF; }

// All pages by what their descriptors say at one look.
struct PageStats {
  std::array<std::uint64_t, kPageStates> by_state{};
  std::uint64_t impossible = 0;     // state words that no page can have
  std::uint64_t owner_unknown = 0;  // Writing or Pending of a slot that is not in this segment
  std::uint64_t readable_tokens = 0;
  std::vector<std::uint64_t> writing_of;      // by slot
  std::vector<std::uint64_t> pending_of;      // by slot
  std::vector<std::uint64_t> pages_of_scope;  // Pending, Live, Condemned by namespace
  std::uint64_t scope_unknown = 0;

  std::uint64_t of(PageState state) const { return by_state[static_cast<std::size_t>(state)]; }
};

struct PageRecovery {
  std::uint32_t condemned = 0;
  std::uint32_t retiring = 0;
  std::uint32_t orphans = 0;
};

class PageTable {
 public:
  explicit PageTable(const Segment& segment) : segment_(segment) {}

  // Zero bytes are Free pages of generation 0.
  void init() const {}
  // Empty, or the first page whose state word cannot be. True at any moment; what a page says beside its state is
  // for `verify`.
  std::string validate() const;
  // By a coordinator that holds the cache's lock, after it reaped the dead and before it evicts: Condemned to Live;
  // Retiring, and pages of slots that nobody has, out of the index and Free. Idempotent.
  PageRecovery recover() const;
  PageStats stats() const;  // one line a page: about 0.1 s at 16 M pages

  StateWord state(PageIndex page) const {
    return {segment_.descriptor(page).state.load(std::memory_order_acquire)};
  }
  Handle parent(PageIndex page) const {
    return {segment_.descriptor(page).parent.load(std::memory_order_acquire)};
  }

  // By the owner, in Writing.
  void write_node(PageIndex page, const PageNode& node,
                  std::span<const std::uint32_t> tokens) const;

  // Whether the page holds exactly these tokens below `parent`. Unverified until a lease holds.
  bool matches(PageIndex page, Handle parent, std::span<const std::uint32_t> tokens) const;

  // Compare-and-swap of a page's state within one life; true if this call moved it.
  bool move(Handle page, PageState from, PageState to) const {
    StateWord expected = StateWord::make(from, page.generation());
    return segment_.descriptor(page.page_index())
        .state.compare_exchange_strong(expected.raw, expected.with(to).raw,
                                       std::memory_order_seq_cst);
  }

 private:
  const Segment& segment_;
};

// The 64-bit word that two neighbouring tokens are stored as.
inline std::uint64_t token_word(const std::uint32_t* tokens) {
  if constexpr (std::endian::native == std::endian::little) {
    std::uint64_t word;
    std::memcpy(&word, tokens, sizeof word);  // one load; compilers do not make one of two tokens
    return word;
  }
  return tokens[0] | std::uint64_t{tokens[1]} << 32;
}

inline constexpr std::size_t kUsualTokens = 16;  // tokens of a page; other numbers take a loop

// Whether `words` hold these tokens, all looked at.
template <std::size_t kTokens>
bool equal_words(const AtomicU64* words, const std::uint32_t* tokens) {
#ifdef KVTRIE_WIDE_LOADS
  const auto* there = reinterpret_cast<const __m128i*>(words);
  const auto* mine = reinterpret_cast<const __m128i*>(tokens);
  __m128i different = _mm_setzero_si128();
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kTokens / 4; ++i) {
    different = _mm_or_si128(different, _mm_xor_si128(_mm_load_si128(there + i), _mm_loadu_si128(mine + i)));
  }
  return _mm_movemask_epi8(_mm_cmpeq_epi8(different, _mm_setzero_si128())) == 0xFFFF;
#else
  std::uint64_t different = 0;
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kTokens / 2; ++i) {
    different |= words[i].load(std::memory_order_acquire) ^ token_word(tokens + 2 * i);
  }
  return different == 0;
#endif
}

inline bool PageTable::matches(PageIndex page, Handle parent,
                               std::span<const std::uint32_t> tokens) const {
  const Descriptor& descriptor = segment_.descriptor(page);
  if (descriptor.parent.load(std::memory_order_acquire) != parent.raw) return false;
  if (descriptor.token_count.load(std::memory_order_relaxed) != tokens.size()) return false;
  const AtomicU64* words = segment_.token_words(page);
  if (tokens.size() == kUsualTokens) return equal_words<kUsualTokens>(words, tokens.data());
  std::uint64_t different = 0;
  std::size_t i = 0;
  for (; i + 1 < tokens.size(); i += 2) {
    different |= words[i / 2].load(std::memory_order_acquire) ^ token_word(&tokens[i]);
  }
  if (i < tokens.size()) different |= words[i / 2].load(std::memory_order_acquire) ^ tokens[i];
  return different == 0;
}

}  // namespace kvtrie
