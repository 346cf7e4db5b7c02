// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/peers/radix_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tools/replay/random.h"

namespace kvtrie::bench {
namespace {

// Pages named by a letter: they differ in the last token, so that all of a page must be compared.
std::vector<std::uint32_t> tokens_of(const std::string& letters) {
  std::vector<std::uint32_t> tokens;
  for (const char letter : letters) {
    tokens.insert(tokens.end(), RadixTree::kPageTokens - 1, 7);
    tokens.push_back(static_cast<std::uint32_t>(letter));
  }
  return tokens;
}

TEST(RadixTreeTest, FindsWhatAMapOfAllPrefixesFinds) {
  replay::Random random(1);
  const auto path = [&random] {
    std::string letters;
    for (std::uint64_t left = random.between(1, 12); left > 0; --left) letters += random.percent(70) ? 'a' : 'b';
    return letters;
  };
  RadixTree tree;
  std::map<std::string, std::uint32_t> prefixes;
  std::uint32_t next_page = 100;
  std::uint32_t partial = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::string asked = path();
    std::vector<std::uint32_t> expected;
    for (std::size_t length = 1; length <= asked.size(); ++length) {
      const auto prefix = prefixes.find(asked.substr(0, length));
      if (prefix == prefixes.end()) break;
      expected.push_back(prefix->second);
    }
    if (!expected.empty() && expected.size() < asked.size()) ++partial;
    std::vector<std::uint32_t> pages(asked.size());
    pages.resize(tree.find(tokens_of(asked), pages.data()));
    ASSERT_EQ(pages, expected) << asked;
    if (i % 3 != 0) continue;
    std::vector<std::uint32_t> inserted;
    for (std::size_t length = 1; length <= asked.size(); ++length) {
      inserted.push_back(next_page);
      prefixes.emplace(asked.substr(0, length), next_page++);
    }
    tree.insert(tokens_of(asked), inserted);
  }
  EXPECT_GT(partial, 100U);
}

}  // namespace
}  // namespace kvtrie::bench
