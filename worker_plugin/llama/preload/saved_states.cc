// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/saved_states.h"

#include <algorithm>
#include <numeric>

namespace kvtrie::llama {
namespace {

constexpr std::size_t kStatesMax = 1024;
constexpr std::size_t kTokensMax = std::size_t{4} << 20;
constexpr llama_seq_id kNoId = -1;

}  // namespace

void SavedStates::put(SharedContext& context, const SharedSequence& sequence, std::span<const std::uint8_t> state) {
  auto known = std::make_unique<SharedSequence>(context, kNoId);
  known->copied_from(sequence, sequence.size());
  states_.push_back({XXH3_128bits(state.data(), state.size()), state.size(), std::move(known)});
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
  const XXH128_hash_t hash = XXH3_128bits(state.data(), state.size());
  for (auto one = states_.rbegin(); one != states_.rend(); ++one) {
    if (one->bytes == state.size() && XXH128_isEqual(one->hash, hash) != 0) return one->sequence.get();
  }
  return nullptr;
}

}  // namespace kvtrie::llama
