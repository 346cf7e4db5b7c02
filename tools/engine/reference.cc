// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/reference.h"

#include "tools/engine/beam_search.h"

namespace kvtrie::engine {
namespace {

struct Text {
  std::vector<std::uint32_t> tokens;
  std::vector<std::byte> memory;  // its own KV
  std::uint64_t cost = 0;
  std::uint64_t computed = 0;
};

std::vector<Candidate> candidates_of(Engine& engine, const PageShape& shape, Text& text, std::uint32_t wanted) {
  std::vector<std::byte*> pages;
  for (std::size_t at = 0; at < text.memory.size(); at += shape.page_bytes)
    pages.push_back(text.memory.data() + at);
  Work work{text.tokens, pages, text.computed, text.tokens.size(), wanted, {}, 0};
  engine.step({&work, 1});
  text.computed = work.end;
  return std::move(work.candidates);
}

}  // namespace

std::vector<std::uint32_t> reference_answer(Engine& engine, const PageShape& shape, const RequestSpec& spec) {
  const std::uint64_t most = spec.prompt.size() + spec.output;
  const std::uint64_t pages = (most + shape.tokens_per_page - 1) / shape.tokens_per_page;
  std::vector<Text> texts(1);
  texts[0].tokens = spec.prompt;
  texts[0].memory.resize(pages * shape.page_bytes);
  for (std::uint32_t i = 0; i < spec.output; ++i) {
    std::vector<std::uint64_t> costs;
    std::vector<std::vector<Candidate>> candidates;
    for (Text& text : texts) {
      costs.push_back(text.cost);
      candidates.push_back(candidates_of(engine, shape, text, spec.beams));
    }
    std::vector<Text> next;
    for (const NextBeam& beam : choose_beams(costs, candidates, spec.beams)) {
      next.push_back(texts[beam.parent]);
      next.back().tokens.push_back(beam.token);
      next.back().cost = beam.cost;
    }
    texts = std::move(next);
  }
  std::vector<std::uint32_t> answer;
  for (const Text& text : texts)
    answer.insert(answer.end(), text.tokens.begin() + static_cast<std::ptrdiff_t>(spec.prompt.size()),
                  text.tokens.end());
  return answer;
}

}  // namespace kvtrie::engine
