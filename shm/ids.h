// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Strong ids, and the two 64-bit words that the protocol is made of.
//
//   state word   63 62 61            24 23     16 15       4 3     0
//               | 0   | generation     | 0       | owner    | state |
//   handle      | kind| generation     | index (page or namespace)  |
//
// The generation stands at the same bits in both, so one mask compares them. A zero word is a Free page of
// generation 0, a zero handle is "none": a segment of zero bytes is a segment of free pages.
// A generation grows by one each time the page is recycled and wraps after 2^38 recycles of one page.
#pragma once

#include <compare>
#include <cstdint>

namespace kvtrie {

inline constexpr unsigned kIndexBits = 24;
inline constexpr unsigned kGenerationShift = 24;
inline constexpr unsigned kGenerationBits = 38;
inline constexpr std::uint64_t kIndexMask = (std::uint64_t{1} << kIndexBits) - 1;
inline constexpr std::uint64_t kGenerationMask =
    ((std::uint64_t{1} << kGenerationBits) - 1) << kGenerationShift;

template <typename Tag, typename Rep>
struct StrongId {
  Rep value{};
  constexpr auto operator<=>(const StrongId&) const = default;
};

using PageIndex = StrongId<struct PageTag, std::uint32_t>;
using WorkerId = StrongId<struct WorkerTag, std::uint16_t>;
using NamespaceId = StrongId<struct NamespaceTag, std::uint16_t>;

inline constexpr WorkerId kCoordinatorSlot{0};

// Append-only: the numbers are in the segment.
enum class PageState : std::uint8_t {
  kFree = 0,       // nobody's; may be taken
  kWriting = 1,    // its owner's alone: being computed, or private for the life of a sequence
  kPending = 2,    // announced: in the index, its bytes not there yet; owner's
  kLive = 3,       // bytes final, shared
  kCondemned = 4,  // chosen for eviction; readers walk over it and a lease rescues it
  kRetiring = 5,   // past return: index entry goes, then Free with the next generation
};
inline constexpr std::uint8_t kPageStates = 6;

constexpr const char* name_of(PageState state) {
  constexpr const char* kNames[] = {"free", "writing", "pending", "live", "condemned", "retiring"};
  const auto i = static_cast<std::uint8_t>(state);
  return i < kPageStates ? kNames[i] : "impossible";
}

// The truth about one page, in one atomic word (C1).
struct StateWord {
  std::uint64_t raw = 0;

  static constexpr StateWord make(PageState state, std::uint64_t generation, WorkerId owner = {}) {
    return {(generation << kGenerationShift & kGenerationMask) | std::uint64_t{owner.value} << 4 |
            static_cast<std::uint64_t>(state)};
  }
  constexpr PageState state() const { return static_cast<PageState>(raw & 0xF); }
  constexpr WorkerId owner() const { return {static_cast<std::uint16_t>(raw >> 4 & 0xFFF)}; }
  constexpr std::uint64_t generation() const { return (raw & kGenerationMask) >> kGenerationShift; }
  constexpr StateWord with(PageState state, WorkerId owner = {}) const {
    return make(state, generation(), owner);
  }
  constexpr StateWord recycled() const { return make(PageState::kFree, generation() + 1); }
  // Live and Condemned pages hold final bytes; readers treat them alike (rule 1).
  constexpr bool readable() const {
    return state() == PageState::kLive || state() == PageState::kCondemned;
  }
  // In the index, or entitled to be: what a duplicate check must find (rule 4).
  constexpr bool canonical() const { return readable() || state() == PageState::kPending; }
  constexpr bool owned() const {
    return state() == PageState::kWriting || state() == PageState::kPending;
  }
  // Bits that no valid word has: unknown state, reserved bits, an owner where the state has none.
  constexpr bool well_formed() const {
    return static_cast<std::uint8_t>(state()) < kPageStates && (raw & 0xC000000000FF0000) == 0 &&
           (owned() ? owner().value != 0 : owner().value == 0);
  }
  constexpr bool operator==(const StateWord&) const = default;
};

enum class HandleKind : std::uint8_t { kNone = 0, kPage = 1, kRoot = 2 };

// Names one life of a page (index + generation), or one generation of a namespace's root.
struct Handle {
  std::uint64_t raw = 0;

  static constexpr Handle page(PageIndex index, std::uint64_t generation) {
    return {std::uint64_t{1} << 62 | (generation << kGenerationShift & kGenerationMask) | index.value};
  }
  static constexpr Handle page(PageIndex index, StateWord word) {
    return {std::uint64_t{1} << 62 | (word.raw & kGenerationMask) | index.value};
  }
  static constexpr Handle root(NamespaceId id, std::uint64_t generation) {
    return {std::uint64_t{2} << 62 | (generation << kGenerationShift & kGenerationMask) | id.value};
  }
  constexpr HandleKind kind() const { return static_cast<HandleKind>(raw >> 62); }
  constexpr bool none() const { return raw == 0; }
  constexpr bool is_page() const { return kind() == HandleKind::kPage; }
  constexpr bool is_root() const { return kind() == HandleKind::kRoot; }
  constexpr std::uint64_t generation() const { return (raw & kGenerationMask) >> kGenerationShift; }
  constexpr PageIndex page_index() const { return {static_cast<std::uint32_t>(raw & kIndexMask)}; }
  constexpr NamespaceId namespace_id() const { return {static_cast<std::uint16_t>(raw & 0xFFFF)}; }
  constexpr bool same_life(StateWord word) const { return ((raw ^ word.raw) & kGenerationMask) == 0; }
  constexpr bool operator==(const Handle&) const = default;
};

// Recency of a page in one word, so that it is written by one store and never torn:
// {tick 32 | order within the tick 16 | touches 8 | engine's hint 2 + flags 6}. Compared as an integer
// after dropping the low 16 bits.
struct TouchWord {
  std::uint64_t raw = 0;

  static constexpr TouchWord make(std::uint32_t tick, std::uint16_t order, std::uint8_t touches,
                                  std::uint8_t hint_and_flags) {
    return {std::uint64_t{tick} << 32 | std::uint64_t{order} << 16 | std::uint64_t{touches} << 8 |
            hint_and_flags};
  }
  constexpr std::uint32_t tick() const { return static_cast<std::uint32_t>(raw >> 32); }
  constexpr std::uint16_t order() const { return static_cast<std::uint16_t>(raw >> 16); }
  constexpr std::uint8_t touches() const { return static_cast<std::uint8_t>(raw >> 8); }
  constexpr std::uint8_t hint_and_flags() const { return static_cast<std::uint8_t>(raw); }
  constexpr std::uint64_t stamp() const { return raw >> 16; }
};

}  // namespace kvtrie
