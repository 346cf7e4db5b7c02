// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/saved_states.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <numeric>
#include <system_error>

namespace kvtrie::llama {
namespace {

constexpr std::size_t kStatesMax = 1024;
constexpr std::size_t kTokensMax = std::size_t{4} << 20;
constexpr llama_seq_id kNoId = -1;

// Keyed by what nobody else knows, so that no bytes can be made that pass for others.
XXH128_hash_t hash_of(std::span<const std::uint8_t> state) {
  static const auto kSecret = [] {
    std::array<std::uint8_t, XXH3_SECRET_SIZE_MIN> secret{};
    if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size())) {
      throw std::system_error(errno, std::generic_category(), "getrandom");
    }
    return secret;
  }();
  return XXH3_128bits_withSecret(state.data(), state.size(), kSecret.data(), kSecret.size());
}

}  // namespace

void SavedStates::put(SharedContext& context, const SharedSequence& sequence, std::span<const std::uint8_t> state) {
  auto known = std::make_unique<SharedSequence>(context, kNoId);
  known->copied_from(sequence, sequence.size());
  states_.push_back({hash_of(state), state.size(), std::move(known)});
  std::size_t tokens = std::accumulate(states_.begin(), states_.end(), std::size_t{0},
                                       [](std::size_t sum, const State& one) { return sum + one.sequence->size(); });
  while (states_.size() > kStatesMax || (tokens > kTokensMax && states_.size() > 1)) {
    tokens -= states_.front().sequence->size();
    states_.pop_front();
  }
}

const SharedSequence* SavedStates::find(std::span<const std::uint8_t> state) const {
  // Most come back that are of no known size at all: nothing is hashed then.
  if (std::ranges::none_of(states_, [&](const State& one) { return one.bytes == state.size(); })) return nullptr;
  const XXH128_hash_t hash = hash_of(state);
  for (auto one = states_.rbegin(); one != states_.rend(); ++one) {
    if (one->bytes == state.size() && XXH128_isEqual(one->hash, hash) != 0) return one->sequence.get();
  }
  return nullptr;
}

}  // namespace kvtrie::llama
