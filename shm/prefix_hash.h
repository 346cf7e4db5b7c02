// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The chained hash that finds candidates (it never decides: tokens are compared).
//   hash(root) = the namespace's seed        hash(page) = XXH3-64(tokens of the page, seed = hash(parent))
// Seeds come from the segment's secret, so keys of two caches are unrelated and collisions cannot be aimed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

namespace kvtrie {

inline std::uint64_t hash_page(std::uint64_t parent_hash, std::span<const std::uint32_t> tokens) {
  constexpr std::size_t kUsualBytes = 64;  // bytes of 16 tokens: a length that the compiler knows makes it twice as fast
  if (tokens.size_bytes() == kUsualBytes) return XXH3_64bits_withSeed(tokens.data(), kUsualBytes, parent_hash);
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), parent_hash);
}

inline std::uint64_t hash_bytes(std::uint64_t seed, const void* data, std::size_t bytes) {
  return XXH3_64bits_withSeed(data, bytes, seed);
}

}  // namespace kvtrie
