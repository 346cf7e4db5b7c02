// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// States of sequences that a program took out of its context, as llama-server's prompt cache does:
// whose bytes come back is known by a keyed hash of all of them (XXH3, 128 bits) and their number, so
// that the sequence goes on as the one that it was. Of each the tokens are kept, no pages and no
// bytes.
#pragma once

#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "worker_plugin/llama/kvtrie_llama.h"

namespace kvtrie::llama {

class SavedStates {
 public:
  // The oldest ones are forgotten: those of 4 M tokens in all (16 MiB) and 1,024 states are kept.
  void put(SharedContext& context, const SharedSequence& sequence, std::span<const std::uint8_t> state);
  // NULL: not one of them.
  [[nodiscard]] const SharedSequence* find(std::span<const std::uint8_t> state) const;
  void clear() noexcept { states_.clear(); }

 private:
  struct State {
    XXH128_hash_t hash;
    std::size_t bytes;
    std::unique_ptr<SharedSequence> sequence;  // of no sequence id: what is known of the tokens, flushes and the cache
  };
  std::deque<State> states_;  // oldest first
};

}  // namespace kvtrie::llama
