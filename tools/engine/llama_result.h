// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What came of the comparison of llama.cpp's runs: with the cache, and the same batches without it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvtrie::engine {

// A next token (of beam search: one of the next tokens) that was another one without the cache.
struct TokenDifference {
  std::uint32_t request = 0;
  std::uint32_t position = 0;  // of the token in its text
  std::uint32_t cached = 0;    // token chosen with the cache
  std::uint32_t plain = 0;     // and without
  double gap = 0;              // between the logits of the two, without the cache
};

// A page that was handed in, against the same tokens' KV computed in its place.
struct WrongPage {
  std::uint32_t request = 0;
  std::uint32_t position = 0;  // of its first token
  std::uint32_t page = 0;
  std::uint32_t time_us = 0;  // since the run began: the first one may be the cause of the others
  double off = 0;             // root mean square of the difference, of that of the values
};

// The logit of a token that both chose.
struct LogitDifference {
  std::uint32_t request = 0;
  std::uint32_t position = 0;
  double by = 0;
};

struct LlamaResult {
  double logit_bound = 0;  // what is above it is no rounding
  double page_bound = 0;

  std::uint64_t batches = 0;             // llama_decode of all workers
  std::uint64_t tokens = 0;              // in them
  std::uint64_t pages = 0;               // handed in
  std::uint64_t pages_equal_bits = 0;    // ... that have the same bits without the cache, as far as they are compared
  std::uint64_t page_tokens = 0;         // in them: not computed in the run with the cache
  std::uint64_t choices = 0;             // next tokens compared; of beam search, lists of them
  std::uint64_t choices_equal_bits = 0;  // with the same logit to the last bit
  std::uint64_t unexplained = 0;         // tokens of answers that were chosen nowhere
  LogitDifference logit;                 // the largest one
  double page_most = 0;                  // WrongPage::off of the page that differs most, right ones included
  double gap_median = 0;                 // between the two top logits, of all choices
  std::vector<TokenDifference> differences;
  std::vector<WrongPage> wrong_pages;  // oldest first
  std::uint32_t alone = 0;             // answers compared with those of the request alone
  std::uint32_t alone_differ = 0;
  double seconds = 0;

  // Empty, or the first thing that is wrong.
  [[nodiscard]] std::string first_wrong() const;
};

[[nodiscard]] std::string to_text(const LlamaResult& result);

}  // namespace kvtrie::engine
