// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The hash engine sees what an engine must see of its pages; beams are chosen as a search does; requests are the same
// everywhere.

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include "tools/engine/beam_search.h"
#include "tools/engine/hash_engine.h"
#include "tools/engine/reference.h"
#include "tools/engine/workload.h"

namespace kvtrie::engine {
namespace {

constexpr std::uint32_t kTokens = 40;
constexpr HashModel kModel{.seed = 7, .tokens_per_page = 16, .page_bytes = 256, .prefill_token_us = 0};

class HashEngineTest : public testing::Test {
 protected:
  HashEngineTest() {
    std::iota(tokens_.begin(), tokens_.end(), 100U);
    for (std::size_t at = 0; at < memory_.size(); at += kModel.page_bytes)
      pages_.push_back(memory_.data() + at);
  }
  // The best next token behind tokens [0, end), whose KV from `first` on is computed.
  std::uint32_t next(std::uint64_t first, std::uint64_t end) {
    Work work{tokens_, pages_, first, end, 1, {}, 0};
    engine_.step({&work, 1});
    return work.candidates.at(0).token;
  }

  HashEngine engine_{kModel};
  std::vector<std::uint32_t> tokens_ = std::vector<std::uint32_t>(kTokens);
  std::vector<std::byte> memory_ = std::vector<std::byte>(3 * kModel.page_bytes);
  std::vector<std::byte*> pages_;
};

TEST_F(HashEngineTest, ChunksGiveTheSameBytesAndTokens) {
  const std::uint32_t whole = next(0, kTokens);
  const std::vector<std::byte> bytes = memory_;
  for (const std::uint64_t chunk : {1U, 3U, 16U, 39U}) {
    memory_.assign(memory_.size(), std::byte{0xEE});
    std::uint32_t last = 0;
    for (std::uint64_t at = 0; at < kTokens; at += chunk)
      last = next(at, std::min<std::uint64_t>(kTokens, at + chunk));
    EXPECT_EQ(last, whole) << chunk;
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + kTokens * 16, memory_.begin())) << chunk;
  }
}

TEST_F(HashEngineTest, AnyWrongByteOfThePagesChangesTheText) {
  const std::uint32_t right = next(0, kTokens);
  for (std::size_t at = 0; at < (kTokens - 1) * 16; at += 7) {
    memory_[at] ^= std::byte{1};
    EXPECT_NE(next(kTokens - 1, kTokens), right) << "byte " << at;
    memory_[at] ^= std::byte{1};
  }
  EXPECT_EQ(next(kTokens - 1, kTokens), right);
  std::swap(pages_[0], pages_[1]);
  EXPECT_NE(next(kTokens - 1, kTokens), right) << "pages in the wrong order";
}

TEST_F(HashEngineTest, ATokenChangesAllKvBehindIt) {
  (void)next(0, kTokens);
  const std::vector<std::byte> bytes = memory_;
  ++tokens_[17];
  (void)next(0, kTokens);
  EXPECT_TRUE(std::equal(bytes.begin(), bytes.begin() + 17 * 16, memory_.begin()));
  for (std::size_t token = 17; token < kTokens; ++token)
    EXPECT_FALSE(std::equal(bytes.begin() + static_cast<std::ptrdiff_t>(token * 16),
                            bytes.begin() + static_cast<std::ptrdiff_t>(token * 16 + 16),
                            memory_.begin() + static_cast<std::ptrdiff_t>(token * 16)))
        << token;
}

TEST(BeamSearchTest, TheCheapestTextsGoOnWhoeverTheyContinue) {
  const std::vector<std::uint64_t> costs = {10, 0};
  const std::vector<std::vector<Candidate>> candidates = {{{1, 0}, {2, 9}}, {{3, 4}, {4, 10}}};
  const std::vector<NextBeam> chosen = choose_beams(costs, candidates, 3);
  ASSERT_EQ(chosen.size(), 3U);
  EXPECT_EQ(chosen[0].token, 3U);
  EXPECT_EQ(chosen[0].cost, 4U);
  EXPECT_EQ(chosen[1].token, 1U) << "of equal cost, the first beam's";
  EXPECT_EQ(chosen[2].token, 4U);
  EXPECT_EQ(chosen[2].parent, 1U);
}

TEST(WorkloadTest, RequestsShareBeginningsAndAreTheSameEverywhere) {
  const Workload mixed{.seed = 3, .same_tokens = 0, .workers = 4};
  std::set<std::vector<std::uint32_t>> prompts, beginnings;
  std::uint32_t beams = 0;
  for (std::uint32_t i = 0; i < 500; ++i) {
    const RequestSpec spec = make_request(mixed, i);
    EXPECT_EQ(spec.prompt, make_request(mixed, i).prompt);
    ASSERT_GE(spec.prompt.size(), 1U);
    ASSERT_LE(spec.prompt.size(), kMixedPromptMax);
    ASSERT_TRUE(spec.output >= 1 && spec.output <= kOutputMax && spec.beams >= 1 && spec.beams <= kBeamsMax);
    prompts.insert(spec.prompt);
    beginnings.insert(
        {spec.prompt.begin(), spec.prompt.begin() + std::min<std::ptrdiff_t>(16, std::ssize(spec.prompt))});
    beams += spec.beams > 1 ? 1 : 0;
  }
  EXPECT_LT(prompts.size(), 490U) << "some come twice";
  EXPECT_GT(prompts.size(), 400U);
  EXPECT_LT(beginnings.size(), 150U);
  EXPECT_GT(beams, 10U);
  const Workload same{.seed = 3, .same_tokens = 100, .workers = 4};
  EXPECT_EQ(make_request(same, 4).prompt, make_request(same, 7).prompt);
  EXPECT_NE(make_request(same, 3).prompt, make_request(same, 4).prompt);
}

TEST(ReferenceTest, AnswersAllBeamsAndDependsOnThePrompt) {
  HashEngine engine(kModel);
  const PageShape shape{kModel.tokens_per_page, kModel.page_bytes};
  RequestSpec spec{.prompt = {1, 2, 3}, .output = 5, .beams = 3};
  const std::vector<std::uint32_t> answer = reference_answer(engine, shape, spec);
  EXPECT_EQ(answer.size(), 15U);
  EXPECT_EQ(answer, reference_answer(engine, shape, spec));
  spec.prompt[0] = 9;
  EXPECT_NE(answer, reference_answer(engine, shape, spec));
}

}  // namespace
}  // namespace kvtrie::engine
