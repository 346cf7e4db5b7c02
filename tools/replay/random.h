// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Random numbers that are the same on every machine and with every library: integer arithmetic
// only, no std distribution. Used by the workload generator and by the content of pages.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace kvtrie::replay {

// The odd number nearest to 2^64 / golden ratio: successive multiples are spread evenly.
inline constexpr std::uint64_t kGoldenGamma = 0x9E3779B97F4A7C15ULL;

// A bijection of 64-bit words in which every input bit reaches every output bit.
constexpr std::uint64_t mix64(std::uint64_t value) {
  value ^= value >> 30;
  value *= 0xBF58476D1CE4E5B9ULL;
  value ^= value >> 27;
  value *= 0x94D049BB133111EBULL;
  value ^= value >> 31;
  return value;
}

// xoshiro256** seeded by a splitmix64 sequence.
class Random {
 public:
  explicit constexpr Random(std::uint64_t seed) {
    for (std::uint64_t& word : state_) {
      seed += kGoldenGamma;
      word = mix64(seed);
    }
  }

  constexpr std::uint64_t next() {
    const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
    const std::uint64_t carried = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= carried;
    state_[3] = std::rotl(state_[3], 45);
    return result;
  }

  // 0 <= result < bound. The bias of the remainder is below bound / 2^64. bound > 0.
  constexpr std::uint64_t below(std::uint64_t bound) { return next() % bound; }

  // first <= result <= last.
  constexpr std::uint64_t between(std::uint64_t first, std::uint64_t last) {
    return first + below(last - first + 1);
  }

  constexpr bool percent(std::uint64_t chance) { return below(100) < chance; }

 private:
  std::array<std::uint64_t, 4> state_{};
};

}  // namespace kvtrie::replay
