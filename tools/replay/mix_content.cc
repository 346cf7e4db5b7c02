// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/mix_content.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace kvtrie::replay {
namespace {

constexpr std::uint64_t kMixDomain = 0x3117000000000005ULL;

}  // namespace

PageShape::PageShape(std::uint64_t page_bytes, std::uint32_t tokens_per_page)
    : tokens(tokens_per_page),
      head_words(static_cast<std::uint32_t>(page_bytes / tokens_per_page / sizeof(std::uint64_t))) {
  for (std::uint32_t* part : {&layers, &kv, &heads}) {
    if (head_words % 2 != 0) return;
    *part = 2;
    head_words /= 2;
  }
}

std::string PageShape::problem(std::uint64_t page_bytes, std::uint32_t tokens_per_page) {
  const std::uint64_t unit = sizeof(std::uint64_t) * tokens_per_page;
  if (page_bytes % unit == 0) return {};
  return fmt::format("--mix: page bytes must be a multiple of 8 for each of the {} tokens: {}", tokens_per_page, unit);
}

EngineMemory::EngineMemory(const PageShape& shape, std::uint64_t tokens, Random& chance)
    : shape_(shape), words_(shape.token_words() * tokens) {
  layout_.size = sizeof layout_;
  layout_.layers = shape.layers;
  layout_.kv = shape.kv;
  layout_.heads = shape.heads;
  layout_.head_bytes = shape.head_words * sizeof(std::uint64_t);
  using Dimension = std::pair<std::int64_t*, std::uint64_t>;
  std::array<Dimension, 4> dimensions{Dimension{&layout_.layer_stride, shape.layers},
                                      Dimension{&layout_.kv_stride, shape.kv}, Dimension{&layout_.token_stride, tokens},
                                      Dimension{&layout_.head_stride, shape.heads}};
  for (std::size_t left = dimensions.size(); left > 1; --left) {
    std::swap(dimensions[left - 1], dimensions[chance.below(left)]);
  }
  std::uint64_t stride = layout_.head_bytes;
  for (const auto& [to, count] : dimensions) {
    *to = static_cast<std::int64_t>(stride);
    stride *= count;
  }
}

std::uint64_t& EngineMemory::at(std::uint64_t token, std::size_t word) {
  const std::size_t group = word / shape_.words_in_group();
  const std::size_t in_group = word % shape_.words_in_group();
  const auto offset = static_cast<std::int64_t>(group / shape_.kv) * layout_.layer_stride +
                      static_cast<std::int64_t>(group % shape_.kv) * layout_.kv_stride +
                      static_cast<std::int64_t>(token) * layout_.token_stride +
                      static_cast<std::int64_t>(in_group / shape_.head_words) * layout_.head_stride;
  return words_[static_cast<std::size_t>(offset) / sizeof(std::uint64_t) + in_group % shape_.head_words];
}

MixContent::MixContent(const PageShape& shape, std::uint32_t name_space, std::uint32_t weights)
    : shape_(shape), root_(kMixDomain + (std::uint64_t{weights} << 20 | name_space)) {}

void MixContent::learn(std::span<const std::uint32_t> tokens) {
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  append_digests(root_, tokens_, shape_.tokens, digests_);
}

void MixContent::salt_from(std::uint64_t token, std::uint64_t salt) {
  salt_from_ = token;
  salt_ = salt;
}

PathDigest MixContent::digest_of(std::uint64_t token) const {
  const std::size_t page = token / shape_.tokens;
  const PathDigest parent = page == 0 ? root_digest(root_) : digests_[page - 1];
  const std::span<const std::uint32_t> all = tokens_;
  PathDigest digest = next_digest(parent, all.subspan(page * shape_.tokens, token % shape_.tokens + 1));
  if (token >= salt_from_) digest.low ^= salt_;
  return digest;
}

void MixContent::words_of(std::uint64_t token, std::uint32_t plane, std::span<std::uint64_t> words) const {
  fill_page(words, digest_of(token), token, plane);
}

void MixContent::write(std::uint64_t* page, std::uint32_t position, std::uint32_t first, std::uint32_t end,
                       std::uint32_t plane) const {
  std::vector<std::uint64_t> words(shape_.token_words());
  const std::size_t group_words = shape_.words_in_group();
  for (std::uint32_t token = first; token < end; ++token) {
    words_of(std::uint64_t{position} * shape_.tokens + token, plane, words);
    for (std::size_t group = 0; group < shape_.groups(); ++group) {
      std::copy_n(&words[group * group_words], group_words, page + (group * shape_.tokens + token) * group_words);
    }
  }
}

std::uint32_t MixContent::first_wrong(const std::uint64_t* page, std::uint32_t position, std::uint32_t end,
                                      std::uint32_t plane) const {
  std::vector<std::uint64_t> words(shape_.token_words());
  const std::size_t group_words = shape_.words_in_group();
  for (std::uint32_t token = 0; token < end; ++token) {
    words_of(std::uint64_t{position} * shape_.tokens + token, plane, words);
    for (std::size_t group = 0; group < shape_.groups(); ++group) {
      const std::uint64_t* there = page + (group * shape_.tokens + token) * group_words;
      if (std::memcmp(there, &words[group * group_words], group_words * sizeof(std::uint64_t)) != 0) return token;
    }
  }
  return end;
}

}  // namespace kvtrie::replay
