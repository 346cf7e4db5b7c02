// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/hash_engine.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "tools/replay/random.h"

namespace kvtrie::engine {

using replay::kGoldenGamma;
using replay::mix64;

// What the pages say is hashed, not what was meant to be in them: each token's KV is read back before the next one.
void HashEngine::compute(Work& work) const {
  const std::uint64_t token_bytes = model_.page_bytes / model_.tokens_per_page;
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, model_.seed);
  for (std::uint64_t token = 0; token < work.first; token += model_.tokens_per_page) {
    const std::uint64_t held = std::min<std::uint64_t>(model_.tokens_per_page, work.first - token);
    XXH3_64bits_update(&state, work.pages[token / model_.tokens_per_page], held * token_bytes);
  }
  for (std::uint64_t token = work.first; token < work.end; ++token) {
    const std::uint64_t above = XXH3_64bits_digest(&state);
    std::byte* const kv = work.pages[token / model_.tokens_per_page] + token % model_.tokens_per_page * token_bytes;
    std::uint64_t word = mix64(above ^ (work.tokens[token] + 1) * kGoldenGamma);
    for (std::uint64_t at = 0; at < token_bytes; at += sizeof word) {
      word = mix64(word + kGoldenGamma);
      std::memcpy(kv + at, &word, sizeof word);
    }
    XXH3_64bits_update(&state, kv, token_bytes);
  }
  const std::uint64_t all = XXH3_64bits_digest(&state);
  work.candidates.clear();
  std::uint32_t cost = 0;
  for (std::uint32_t i = 0; i < work.wanted; ++i) {
    const std::uint64_t chance = mix64(all + (i + 1) * kGoldenGamma);
    work.candidates.push_back({static_cast<std::uint32_t>(chance >> 40), cost});
    cost += 1 + static_cast<std::uint32_t>(chance & 0xFF);
  }
}

void HashEngine::step(std::span<Work> batch) {
  std::uint64_t prefilled = 0;
  for (Work& work : batch) {
    compute(work);
    if (work.end - work.first > 1) prefilled += work.end - work.first;
  }
  if (model_.prefill_token_us <= 0 || prefilled == 0) return;
  std::this_thread::sleep_for(
      std::chrono::duration<double, std::micro>(model_.prefill_token_us * static_cast<double>(prefilled)));
}

}  // namespace kvtrie::engine
