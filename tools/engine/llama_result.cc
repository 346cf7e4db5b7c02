// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/llama_result.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvtrie::engine {
namespace {

constexpr std::size_t kShown = 20;

}  // namespace

std::string LlamaResult::first_wrong() const {
  if (!wrong_pages.empty()) {
    const WrongPage& wrong = wrong_pages.front();
    return fmt::format("request {}: page {} at position {} is {:.1f} % off", wrong.request, wrong.page, wrong.position,
                       wrong.off * 100);
  }
  for (const TokenDifference& one : differences) {
    if (one.gap <= logit_bound) continue;
    return fmt::format("request {}: token {} at position {} instead of {}, with a gap of {:.6f}", one.request,
                       one.cached, one.position, one.plain, one.gap);
  }
  if (!(logit.by <= logit_bound))
    return fmt::format("request {}: a logit at position {} is {:.6f} off", logit.request, logit.position, logit.by);
  if (unexplained > 0) return fmt::format("{} tokens of answers were chosen nowhere", unexplained);
  return {};
}

std::string to_text(const LlamaResult& r) {
  std::string text = fmt::format(
      "  without the cache  {} batches of {} tokens in {:.1f} s; {} tokens of {} pages computed in "
      "their place\n"
      "  pages handed in    {} wrong; {} of {} bit for bit the same, the others up to {:.3f} % off "
      "(wrong: {:.0f} %)\n"
      "  tokens chosen      {} other than without the cache, of {}; {} with the same logit to the "
      "last bit\n"
      "  logits             up to {:.6f} off (wrong: {:.2f}); between the two best ones {:.3f}, "
      "median\n",
      r.batches, r.tokens, r.seconds, r.page_tokens, r.pages, r.wrong_pages.size(), r.pages_equal_bits, r.pages,
      r.page_most * 100, r.page_bound * 100, r.differences.size(), r.choices, r.choices_equal_bits, r.logit.by,
      r.logit_bound, r.gap_median);
  for (std::size_t i = 0; i < std::min(kShown, r.differences.size()); ++i) {
    const TokenDifference& one = r.differences[i];
    text += fmt::format("    request {:>5} position {:>4}: {} instead of {}, gap {:.6f}\n", one.request, one.position,
                        one.cached, one.plain, one.gap);
  }
  if (r.differences.size() > kShown) text += fmt::format("    and {} more\n", r.differences.size() - kShown);
  if (r.alone > 0) text += fmt::format("  alone              {} of {} answers differ\n", r.alone_differ, r.alone);
  if (const std::string wrong = r.first_wrong(); !wrong.empty())
    text += fmt::format("  first wrong        {}\n", wrong);
  return text;
}

}  // namespace kvtrie::engine
