// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What llama.cpp writes for tokens of one sequence (llama_state_seq_get_data). A page in the pool has such a state of
// its tokens in the order of their positions, so that the engine can take it as it is. Little-endian:
//
//   magic u32 | sequence i32 | streams u32 = 1 | cells u32
//   cells x { position i32 | sequences u32 = 1 | sequence i32 }         in the order in which they lie in the cache
//   V transposed u32 (flash attention off) | layers u32
//   layers x { type i32 | row bytes u64 | cells x row }                 K
//   layers x the same, or { type i32 | element bytes u32 | rows u32 | rows x cells x element }   V, transposed
//
// States of one page at a time cost a cache miss for each row of V. So pages of a run go through one state of all of
// them: split() makes pages of it, gather() makes it of pages.
//
// Pages were written by other processes, and the engine believes counts and asserts on positions: fits() first.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvtrie::llama {

// K or V of a layer in a state of n cells: a header, then rows x n x cell_bytes.
struct StateSection {
  std::array<std::byte, 12> header{};
  std::uint32_t rows = 1;
  std::uint32_t cell_bytes = 0;
};

// Of one context: all its states are alike.
class StateShape {
 public:
  // From a state of one token. Not empty: why this is no state as above; then the shape is none.
  std::string read(std::span<const std::byte> one_token);

  [[nodiscard]] std::size_t bytes(std::size_t cells) const;
  // Whether `state` is of the `tokens` positions from `first` on, in order.
  [[nodiscard]] bool fits(std::span<const std::byte> state, std::int32_t first, std::uint32_t tokens) const;
  // Which sequence a state of so many tokens was read from is nothing of the page: 0, so that equal pages have equal
  // bytes.
  static void clear_ids(std::span<std::byte> state, std::uint32_t tokens);

  // From a state of pages.size() * tokens positions from `first` on, in any order, to a state of `tokens` in each page,
  // of bytes(tokens). False: it is no such state; then pages have any bytes.
  [[nodiscard]] bool split(std::span<const std::byte> state, std::int32_t first, std::uint32_t tokens,
                           std::span<std::byte* const> pages) const;
  // The other way: of `count` positions from `from` on, which lie in pages whose first one begins at `first`; every
  // page fits().
  void gather(std::span<const std::byte* const> pages, std::int32_t first, std::uint32_t tokens, std::int32_t from,
              std::size_t count, std::span<std::byte> state) const;

 private:
  [[nodiscard]] std::vector<std::uint32_t> cells_of(std::span<const std::byte> state, std::int32_t first,
                                                    std::size_t count) const;
  std::byte* write_head(std::byte* at, std::int32_t first, std::size_t cells) const;

  std::uint32_t magic_ = 0;
  std::uint32_t v_transposed_ = 0;
  std::uint32_t layers_ = 0;
  std::vector<StateSection> sections_;
};

}  // namespace kvtrie::llama
