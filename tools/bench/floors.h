// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What no lookup can do without, written as an optimising compiler would have it: the least that the bytes, the hashes
// and the synchronization of an operation cost on this machine. Other sections take their ratios to these.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvtrie::bench {

// The value is computed; nothing is stored.
template <typename Value>
inline void keep(const Value& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

inline constexpr std::size_t kDescriptorBytes = 128;  // header and tokens of a 16-token page
inline constexpr std::size_t kFloorLineBytes = 64;

// Reads what a full hit of these pages must compare: of each descriptor 16 bytes of the header (state, parent) and the
// 64 bytes of its tokens, and the 64 bytes of the prompt's tokens; plain vector loads, no atomics. Page i of the prompt
// has its tokens at tokens + 16 * i, its descriptor at descriptors + 128 * pages[i]. Returns 0 when each page is Live
// and has these tokens; the parent is loaded with the state and not looked at.
std::uint64_t stream(const std::byte* descriptors, std::span<const std::uint32_t> pages, const std::uint32_t* tokens);
// The same, with both lines of the descriptor prefetched 16 pages ahead.
std::uint64_t stream_prefetched(const std::byte* descriptors, std::span<const std::uint32_t> pages,
                                const std::uint32_t* tokens);

// The same, and of each page its line of the index: page i's is line index_lines[i] of `index`, any 8 bytes of which are
// read. All three lines are prefetched 16 pages ahead.
std::uint64_t stream_by_index(const std::byte* descriptors, std::span<const std::uint32_t> pages,
                              const std::uint32_t* tokens, const std::byte* index,
                              std::span<const std::uint32_t> index_lines);

// What a lease is at least: a word of one's own, and nothing overtakes it.
inline void store_and_fence(std::atomic<std::uint64_t>& word, std::uint64_t value) {
  word.store(value, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

// Lines of 64 bytes, each with the number of another in its first word: one cycle through all, in an order that nothing
// foresees.
class RandomLines {
 public:
  explicit RandomLines(std::uint32_t count);
  // Addresses known beforehand, prefetched 16 lines ahead: what an index with nothing to wait for costs.
  std::uint64_t independent() const;
  // Each line says which is the next: what a chain of pointers costs.
  std::uint64_t dependent() const;
  std::uint32_t count() const { return static_cast<std::uint32_t>(lines_.size()); }

 private:
  struct alignas(kFloorLineBytes) Line {
    std::uint32_t next;
  };
  std::vector<std::uint32_t> order_;
  std::vector<Line> lines_;
};

}  // namespace kvtrie::bench
