// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/content.h"

#include <xxhash.h>

#include <algorithm>

#include "tools/replay/random.h"

namespace kvtrie::replay {
namespace {

// Keep the sequences of blocks, outputs and digests apart.
constexpr std::uint64_t kBlockDomain = 0xB10C000000000001ULL;
constexpr std::uint64_t kOutputDomain = 0x0007000000000002ULL;
constexpr std::uint64_t kRootDomain = 0x4007000000000003ULL;
constexpr std::uint64_t kPageDomain = 0x9A6E000000000004ULL;

// Two tokens from each step of a splitmix64 sequence that starts at a place of the seed's own.
void fill_tokens(std::uint64_t seed, std::span<std::uint32_t> tokens) {
  const std::size_t pairs = tokens.size() / 2;
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    const std::uint64_t mixed = mix64(seed + pair * kGoldenGamma);
    tokens[2 * pair] = static_cast<std::uint32_t>(mixed);
    tokens[2 * pair + 1] = static_cast<std::uint32_t>(mixed >> 32);
  }
  if (tokens.size() % 2 != 0) {
    tokens.back() = static_cast<std::uint32_t>(mix64(seed + pairs * kGoldenGamma));
  }
}

// The words of one page in one plane. For given parameters word() is a bijection of the index, so
// no word occurs twice in a page; both parameters depend on everything that names the page.
class PageWords {
 public:
  PageWords(const PathDigest& digest, std::uint64_t page_position, std::uint32_t plane)
      : start_(mix64(digest.low + mix64(kPageDomain + page_position))),
        mask_(mix64(digest.high + mix64(start_ + plane))) {
    start_ = mix64(start_ ^ mask_);
  }

  [[nodiscard]] std::uint64_t word(std::size_t index) const {
    std::uint64_t value = start_ + index * kGoldenGamma;
    value ^= value >> 32;
    value *= 0xD6E8FEB86659FD93ULL;
    return value ^ (value >> 29) ^ mask_;
  }

 private:
  std::uint64_t start_;
  std::uint64_t mask_;
};

}  // namespace

void tokens_of_block(std::uint64_t id, std::span<std::uint32_t, kBlockTokens> tokens) {
  fill_tokens(mix64(kBlockDomain + mix64(id)), tokens);
}

void tokens_of_output(std::uint64_t last_id, std::span<std::uint32_t> tokens) {
  fill_tokens(mix64(kOutputDomain + mix64(last_id)), tokens);
}

void tokens_of_prompt(const Request& request, std::vector<std::uint32_t>& tokens) {
  tokens.resize(request.hash_ids.size() * kBlockTokens);
  std::size_t offset = 0;
  for (const std::uint64_t id : request.hash_ids) {
    tokens_of_block(id, std::span<std::uint32_t, kBlockTokens>(&tokens[offset], kBlockTokens));
    offset += kBlockTokens;
  }
}

PathDigest root_digest(std::uint64_t namespace_number) {
  const std::uint64_t low = mix64(kRootDomain + mix64(namespace_number));
  return {low, mix64(low + kGoldenGamma)};
}

PathDigest next_digest(const PathDigest& parent, std::span<const std::uint32_t> page_tokens) {
  const XXH128_hash_t hash =
      XXH3_128bits_withSeed(page_tokens.data(), page_tokens.size_bytes(), parent.low);
  // The seed carries the lower half of the parent in; the upper half comes in here, so that the
  // chain is 128 bits wide.
  const std::uint64_t carried = mix64(parent.high + kGoldenGamma);
  return {hash.low64 ^ carried, mix64(hash.high64 + carried)};
}

void append_digests(std::uint64_t namespace_number, std::span<const std::uint32_t> tokens,
                    std::uint32_t tokens_per_page, std::vector<PathDigest>& digests) {
  const std::size_t pages = tokens.size() / tokens_per_page;
  PathDigest digest = digests.empty() ? root_digest(namespace_number) : digests.back();
  for (std::size_t page = digests.size(); page < pages; ++page) {
    digest = next_digest(digest, tokens.subspan(page * tokens_per_page, tokens_per_page));
    digests.push_back(digest);
  }
}

void fill_page(std::span<std::uint64_t> words, const PathDigest& digest,
               std::uint64_t page_position, std::uint32_t plane) {
  const PageWords content(digest, page_position, plane);
  for (std::size_t index = 0; index < words.size(); ++index)
    words[index] = content.word(index);
}

std::size_t first_wrong_word(std::span<const std::uint64_t> words, const PathDigest& digest,
                             std::uint64_t page_position, std::uint32_t plane) {
  // Differences are collected over a chunk and looked at once: no branch a word.
  constexpr std::size_t kChunkWords = 256;
  const PageWords content(digest, page_position, plane);
  for (std::size_t begin = 0; begin < words.size(); begin += kChunkWords) {
    const std::size_t end = std::min(words.size(), begin + kChunkWords);
    std::uint64_t differences = 0;
    for (std::size_t index = begin; index < end; ++index) {
      differences |= words[index] ^ content.word(index);
    }
    if (differences == 0) continue;
    for (std::size_t index = begin; index < end; ++index) {
      if (words[index] != content.word(index)) return index;
    }
    // Right when read again: somebody is writing the page now, which is wrong as well.
    return begin;
  }
  return npos;
}

}  // namespace kvtrie::replay
