// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Prompts of the programs that tests run on a real llama.cpp.
#pragma once

#include <llama.h>
#include <xxhash.h>

#include <cstddef>
#include <cstdint>
#include <vector>

using Tokens = std::vector<llama_token>;

// The same numbers for the same name.
inline Tokens words(std::uint32_t name, std::size_t count) {
  Tokens tokens;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t key[] = {name, i};
    tokens.push_back(static_cast<llama_token>(300 + XXH64(key, sizeof key, 0) % 30000));
  }
  return tokens;
}

inline Tokens joined(Tokens first, const Tokens& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}
