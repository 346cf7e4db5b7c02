// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What llama.cpp writes for the tokens of one page (llama_state_seq_get_data of a sequence that holds just them), which is
// what a page in the pool has. The beginning, little-endian, is checked before the engine reads it, since another process
// wrote it and the engine believes counts and asserts on positions; layers check themselves in the engine:
//
//   magic u32 | sequence i32 | streams u32 = 1 | cells u32 = tokens
//   tokens x { position i32 | sequences u32 = 1 | sequence i32 }
//   V transposed u32 (flash attention off) | layers u32 | layers x K | layers x V
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace kvtrie::llama {

// Of one context: all its pages begin alike.
struct StateShape {
  std::uint32_t magic = 0;
  std::uint32_t v_transposed = 0;
  std::uint32_t layers = 0;
  std::size_t bytes_of_one = 0;   // of a state of one token
  std::size_t bytes_of_more = 0;  // ... of each one more
  std::size_t bytes(std::uint32_t tokens) const { return bytes_of_one + (tokens - 1) * bytes_of_more; }
};

// From a state of one token at position 0 and the size of one of two. Not empty: why this is no state as above.
std::string read_shape(std::span<const std::byte> one_token, std::size_t bytes_of_two, StateShape& shape);

// Whether it is a state of the `tokens` tokens from `position` on, in any order, as far as its beginning says.
bool state_fits(std::span<const std::byte> state, const StateShape& shape, std::int32_t position, std::uint32_t tokens);

}  // namespace kvtrie::llama
