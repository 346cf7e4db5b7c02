// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/content.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>
#include <vector>

namespace kvtrie::replay {
namespace {

using Block = std::array<std::uint32_t, kBlockTokens>;

Block block_of(std::uint64_t id) {
  Block tokens{};
  tokens_of_block(id, tokens);
  return tokens;
}

std::vector<std::uint32_t> prompt_of(std::vector<std::uint64_t> ids) {
  Request request;
  request.hash_ids = std::move(ids);
  std::vector<std::uint32_t> tokens;
  tokens_of_prompt(request, tokens);
  return tokens;
}

std::vector<PathDigest> digests_of(std::uint64_t name_space, std::vector<std::uint64_t> ids,
                                   std::uint32_t tokens_per_page) {
  std::vector<PathDigest> digests;
  append_digests(name_space, prompt_of(std::move(ids)), tokens_per_page, digests);
  return digests;
}

TEST(ContentTest, TokensOfABlockNeverChange) {
  // Recorded once: a change makes every existing comparison between machines or versions void.
  const Block tokens = block_of(2353);
  EXPECT_EQ(tokens[0], 0x81508232U);
  EXPECT_EQ(tokens[1], 0x76218743U);
  EXPECT_EQ(tokens[511], 0x4A58BC9EU);
}

TEST(ContentTest, TokensUseAll32Bits) {
  std::uint32_t any = 0;
  std::uint32_t all = 0xFFFFFFFF;
  for (std::uint64_t id = 0; id < 16; ++id) {
    for (const std::uint32_t token : block_of(id)) {
      any |= token;
      all &= token;
    }
  }
  EXPECT_EQ(any, 0xFFFFFFFF);
  EXPECT_EQ(all, 0U);
}

TEST(ContentTest, BlocksOfDifferentIdsShareNothing) {
  // 64-bit ids: the upper half counts.
  const std::vector<std::uint64_t> ids = {0, 1, 2, 3, 1ULL << 32, 1ULL << 63, ~0ULL};
  std::set<std::pair<std::uint32_t, std::uint32_t>> pairs;
  for (const std::uint64_t id : ids) {
    const Block tokens = block_of(id);
    for (std::size_t i = 0; i < tokens.size(); i += 2)
      pairs.emplace(tokens[i], tokens[i + 1]);
  }
  EXPECT_EQ(pairs.size(), ids.size() * kBlockTokens / 2);
}

TEST(ContentTest, OutputIsNotABlockAndAPrefixOfALongerOutput) {
  std::vector<std::uint32_t> longer(600);
  std::vector<std::uint32_t> shorter(33);
  tokens_of_output(7, longer);
  tokens_of_output(7, shorter);
  // Also when the count is odd, so that the last token is half of a pair.
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), longer.begin()));
  EXPECT_NE(longer[0], block_of(7)[0]);
}

TEST(ContentTest, PromptIsItsBlocksInOrder) {
  const std::vector<std::uint32_t> prompt = prompt_of({5, 9});
  ASSERT_EQ(prompt.size(), 2 * kBlockTokens);
  const Block first = block_of(5);
  const Block second = block_of(9);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), prompt.begin()));
  EXPECT_TRUE(std::equal(second.begin(), second.end(), prompt.begin() + kBlockTokens));
}

TEST(ContentTest, DigestsNeverChange) {
  const std::vector<PathDigest> digests = digests_of(3, {5, 9}, 16);
  EXPECT_EQ(digests.back().low, 0x199FFC75101DBC7BULL);
  EXPECT_EQ(digests.back().high, 0xDC3777727A7263DFULL);
  std::vector<std::uint64_t> words(8);
  fill_page(words, digests.back(), 63, 2);
  EXPECT_EQ(words[0], 0x3AD01D663692D7E0ULL);
  EXPECT_EQ(words[7], 0x4A9FDEE53C93C7D7ULL);
}

TEST(ContentTest, DigestStandsForTheWholePath) {
  const auto digests = digests_of(0, {5, 9}, 16);
  const auto other_start = digests_of(0, {6, 9}, 16);
  const auto other_end = digests_of(0, {5, 8}, 16);
  ASSERT_EQ(digests.size(), 64U);
  for (std::size_t page = 0; page < 64; ++page) {
    EXPECT_NE(digests[page], other_start[page]) << page;
    if (page < 32) {
      EXPECT_EQ(digests[page], other_end[page]) << page;
    } else {
      EXPECT_NE(digests[page], other_end[page]) << page;
    }
  }
}

TEST(ContentTest, EveryTokenOfAPageCounts) {
  std::vector<std::uint32_t> tokens = prompt_of({5});
  const PathDigest root = root_digest(0);
  const PathDigest right = next_digest(root, tokens);
  for (std::uint32_t& token : tokens) {
    token ^= 0x80000000;
    EXPECT_NE(next_digest(root, tokens), right);
    token ^= 0x80000000;
  }
  EXPECT_EQ(next_digest(root, tokens), right);
}

TEST(ContentTest, BothHalvesOfTheParentCount) {
  const std::vector<std::uint32_t> tokens = prompt_of({5});
  const PathDigest right = next_digest({1, 2}, tokens);
  for (const PathDigest other : {next_digest({1, 3}, tokens), next_digest({9, 2}, tokens)}) {
    EXPECT_NE(other.low, right.low);
    EXPECT_NE(other.high, right.high);
  }
}

TEST(ContentTest, DigestsGoOverPagesThatDoNotDivideABlock) {
  for (const std::uint32_t tokens_per_page : {1U, 7U, 48U, 512U, 1000U, 1024U}) {
    const std::vector<std::uint32_t> tokens = prompt_of({1, 2, 3});
    const auto digests = digests_of(4, {1, 2, 3}, tokens_per_page);
    ASSERT_EQ(digests.size(), tokens.size() / tokens_per_page);
    PathDigest digest = root_digest(4);
    for (std::size_t page = 0; page < digests.size(); ++page) {
      digest =
          next_digest(digest, std::span(tokens).subspan(page * tokens_per_page, tokens_per_page));
      EXPECT_EQ(digests[page], digest);
    }
  }
}

TEST(ContentTest, DigestsOfAGrownPromptContinue) {
  const std::vector<std::uint32_t> tokens = prompt_of({1, 2, 3});
  std::vector<PathDigest> grown;
  append_digests(0, std::span(tokens).first(700), 48, grown);
  EXPECT_EQ(grown.size(), 700U / 48);
  append_digests(0, tokens, 48, grown);
  EXPECT_EQ(grown, digests_of(0, {1, 2, 3}, 48));
}

// A page as one owner wrote it, read as each other owner would expect it.
class PageContentTest : public ::testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override { fill_page(words_, digest_, 17, 1); }

  // Nothing of it may be taken for right: not even single words of the page.
  void expect_all_wrong(const PathDigest& digest, std::uint64_t position, std::uint32_t plane) {
    std::vector<std::uint64_t> expected(words_.size());
    fill_page(expected, digest, position, plane);
    for (std::size_t word = 0; word < words_.size(); ++word) {
      ASSERT_NE(words_[word], expected[word]) << word;
    }
    EXPECT_EQ(first_wrong_word(words_, digest, position, plane), 0U);
  }

  PathDigest digest_ = digests_of(3, {5, 9}, 16)[17];
  std::vector<std::uint64_t> words_ = std::vector<std::uint64_t>(GetParam());
};

TEST_P(PageContentTest, IsRightAsWritten) {
  EXPECT_EQ(first_wrong_word(words_, digest_, 17, 1), npos);
}

TEST_P(PageContentTest, SwappedPageIsSeen) {
  expect_all_wrong(digests_of(3, {5, 9}, 16)[18], 18, 1);
  expect_all_wrong(digests_of(3, {6, 9}, 16)[17], 17, 1);
}

TEST_P(PageContentTest, OtherPlaneIsSeen) { expect_all_wrong(digest_, 17, 0); }

TEST_P(PageContentTest, OtherPositionIsSeen) { expect_all_wrong(digest_, 18, 1); }

TEST_P(PageContentTest, OtherNamespaceIsSeen) {
  expect_all_wrong(digests_of(2, {5, 9}, 16)[17], 17, 1);
}

TEST_P(PageContentTest, EachWordIsCompared) {
  for (std::size_t word = 0; word < words_.size(); ++word) {
    for (const unsigned bit : {0U, 31U, 63U}) {
      words_[word] ^= 1ULL << bit;
      ASSERT_EQ(first_wrong_word(words_, digest_, 17, 1), word);
      words_[word] ^= 1ULL << bit;
    }
  }
}

TEST_P(PageContentTest, FirstOfSeveralWrongWordsIsNamed) {
  words_[words_.size() / 2] = 0;
  words_.back() = 0;
  EXPECT_EQ(first_wrong_word(words_, digest_, 17, 1), words_.size() / 2);
}

TEST_P(PageContentTest, NoWordOccursTwice) {
  EXPECT_EQ(std::set<std::uint64_t>(words_.begin(), words_.end()).size(), words_.size());
}

INSTANTIATE_TEST_SUITE_P(Words, PageContentTest, ::testing::Values(1, 2, 64, 255, 256, 257, 1000));

TEST(ContentTest, EmptyPageIsRight) { EXPECT_EQ(first_wrong_word({}, root_digest(0), 0, 0), npos); }

}  // namespace
}  // namespace kvtrie::replay
