// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a mix writes into pages. As content.h, but token by token, so that pages that are incomplete, or copied up to a
// token, have a content, too:
//
//   namespace number and weights, tokens 0..t  --MixContent::digest_of-->  PathDigest of token t
//   PathDigest, t, plane  --fill_page (content.h)-->  the words of token t in that plane
//
// In a page they lie as kvtrie.h has it: layers x kv x tokens x heads x head_bytes. Weights are a number that each
// flush of the namespace raises: what is matched of older weights is wrong in every word.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tools/replay/content.h"
#include "tools/replay/random.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie::replay {

// How a page of these sizes is divided, with as much structure as fits.
struct PageShape {
  std::uint32_t tokens = 0;  // a page
  std::uint32_t layers = 1;
  std::uint32_t kv = 1;
  std::uint32_t heads = 1;
  std::uint32_t head_words = 0;

  PageShape(std::uint64_t page_bytes, std::uint32_t tokens_per_page);
  // Empty, or why a mix cannot use pages of these sizes.
  static std::string problem(std::uint64_t page_bytes, std::uint32_t tokens_per_page);

  [[nodiscard]] std::size_t groups() const { return std::size_t{layers} * kv; }
  [[nodiscard]] std::size_t words_in_group() const { return std::size_t{heads} * head_words; }
  [[nodiscard]] std::size_t token_words() const { return groups() * words_in_group(); }
};

// The engine's own memory for some tokens, in an order of dimensions that is drawn by chance.
class EngineMemory {
 public:
  EngineMemory(const PageShape& shape, std::uint64_t tokens, Random& chance);
  [[nodiscard]] const kvtrie_layout& layout() const { return layout_; }
  [[nodiscard]] std::uint64_t* base() { return words_.data(); }
  // Word `word` of token `token`, counted as fill_page does.
  std::uint64_t& at(std::uint64_t token, std::size_t word);

 private:
  PageShape shape_;
  kvtrie_layout layout_{};
  std::vector<std::uint64_t> words_;
};

// The content of one sequence's pages. Tokens from `salt_from` on are in pages that are never published: theirs also
// depends on who writes them.
class MixContent {
 public:
  MixContent(const PageShape& shape, std::uint32_t name_space, std::uint32_t weights);

  void learn(std::span<const std::uint32_t> tokens);
  void salt_from(std::uint64_t token, std::uint64_t salt);
  [[nodiscard]] const std::vector<std::uint32_t>& tokens() const { return tokens_; }

  // `words` has room for token_words().
  void words_of(std::uint64_t token, std::uint32_t plane, std::span<std::uint64_t> words) const;
  // Tokens [first, end) of the page at `position`, counted inside it.
  void write(std::uint64_t* page, std::uint32_t position, std::uint32_t first, std::uint32_t end,
             std::uint32_t plane) const;
  // The first of the page's first `end` tokens that is wrong, or `end`.
  [[nodiscard]] std::uint32_t first_wrong(const std::uint64_t* page, std::uint32_t position, std::uint32_t end,
                                          std::uint32_t plane) const;

 private:
  [[nodiscard]] PathDigest digest_of(std::uint64_t token) const;

  PageShape shape_;
  std::uint64_t root_;
  std::vector<std::uint32_t> tokens_;
  std::vector<PathDigest> digests_;  // of whole pages
  std::uint64_t salt_ = 0;
  std::uint64_t salt_from_ = ~std::uint64_t{0};
};

}  // namespace kvtrie::replay
