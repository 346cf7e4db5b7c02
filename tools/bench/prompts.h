// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What all measurements need: prompts of random tokens, begun through the plugin.
#pragma once

#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "tools/replay/plugin.h"
#include "tools/replay/random.h"

namespace kvtrie::bench {

inline constexpr std::uint32_t kTokensPerPage = 16;

inline std::vector<std::uint32_t> random_tokens(std::uint64_t seed, std::size_t count) {
  std::vector<std::uint32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<std::uint32_t>(replay::mix64(seed * 0x1'0000'0000 + i));
  }
  return tokens;
}

// `model`: of prompts that others cached with the same.
inline kvtrie_namespace open_namespace(const replay::Plugin& plugin, kvtrie_worker worker,
                                       const char* model = "kvtrie-bench") {
  const kvtrie_field fields[] = {{"model", model}, {"salt", "0"}};
  kvtrie_namespace name_space{};
  plugin.expect(plugin->open_namespace(worker, fields, std::size(fields), "bench", &name_space), "open_namespace");
  return name_space;
}

struct Begun {
  std::uint32_t cached_pages;
  kvtrie_sequence sequence;
};

inline Begun begin(const replay::Plugin& plugin, kvtrie_worker worker, kvtrie_namespace name_space,
                   std::span<const std::uint32_t> tokens, std::uint32_t flags = 0) {
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.flags = flags;
  kvtrie_begin_result result{};
  result.size = sizeof result;
  kvtrie_sequence sequence{};
  plugin.expect(plugin->begin(worker, name_space, tokens.data(), tokens.size(), flags == 0 ? nullptr : &options,
                              &result, &sequence),
                "begin");
  return {result.cached_pages, sequence};
}

}  // namespace kvtrie::bench
