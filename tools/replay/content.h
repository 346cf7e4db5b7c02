// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a replay writes into pages, and how it sees a wrong one.
//
//   hash id  --tokens_of_block-->  512 tokens
//   namespace number, tokens of pages 0..i  --next_digest, chained-->  PathDigest of page i
//   PathDigest, page position, plane, word index  --fill_page-->  the word
//
// So each 8-byte word of each plane of a page is a function of all that must be right about it, and
// a page that is in the wrong place, of another prefix, plane or namespace, half written or handed
// to two owners differs in (nearly) every word: two different places agree in a word with a chance
// of 2^-64. Within a page no two words are equal, so moved bytes are seen too.
//
// Digests go over pages of the token sequence, so tokens_per_page need not divide 512.
// Everything here is deterministic and the same on all (little-endian) machines.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tools/replay/trace.h"

namespace kvtrie::replay {

static_assert(std::endian::native == std::endian::little,
              "digests are taken over the bytes of tokens as they lie in memory");

inline constexpr std::size_t npos = static_cast<std::size_t>(-1);

// The tokens of a block. Any 32-bit value may occur; ids that differ give unrelated tokens.
void tokens_of_block(std::uint64_t id, std::span<std::uint32_t, kBlockTokens> tokens);

// The tokens of the answer to a prompt that ends with block `last_id`: the first tokens.size() of
// an endless sequence that is unrelated to every block's.
void tokens_of_output(std::uint64_t last_id, std::span<std::uint32_t> tokens);

// Replaces `tokens` by those of the prompt of a request (512 for each id).
void tokens_of_prompt(const Request& request, std::vector<std::uint32_t>& tokens);

// 128 bits that stand for a namespace and all tokens from the start of a prompt to a page's end.
struct PathDigest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend bool operator==(const PathDigest&, const PathDigest&) = default;
};

[[nodiscard]] PathDigest root_digest(std::uint64_t namespace_number);
[[nodiscard]] PathDigest next_digest(const PathDigest& parent,
                                     std::span<const std::uint32_t> page_tokens);

// Appends the digests of the full pages of `tokens` after the first `digests.size()` pages, whose
// digests are there already: a prompt that has grown costs only what is new.
void append_digests(std::uint64_t namespace_number, std::span<const std::uint32_t> tokens,
                    std::uint32_t tokens_per_page, std::vector<PathDigest>& digests);

// `page_position` counts pages from the start of the prompt.
void fill_page(std::span<std::uint64_t> words, const PathDigest& digest,
               std::uint64_t page_position, std::uint32_t plane);

// Index of the first word that is not what fill_page() writes; npos: all are right.
[[nodiscard]] std::size_t first_wrong_word(std::span<const std::uint64_t> words,
                                           const PathDigest& digest, std::uint64_t page_position,
                                           std::uint32_t plane);

}  // namespace kvtrie::replay
