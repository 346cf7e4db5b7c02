// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What kvtrie tree shows when it is asked for a part, and what kvtrie page says about eviction.

#include "tools/kvtrie/tree_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using inspect::parse_tokens;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;

// Pages of 4 tokens: a stem 0..3 (tokens 0 to 15), then 4..6 (100 and up) by worker 1, and 7..8 (200 and up) by worker 2
// of which 8 is Pending.
class TreeFilterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    PathEnd stem = root_;
    cache_.publish(one_, stem, 4, 0);
    PathEnd left = stem;
    cache_.publish(one_, left, 3, 100);
    PathEnd right = stem;
    cache_.publish(two_, right, 1, 200);
    cache_.publish(two_, right, 1, 204, PageState::kPending);
  }
  Json tree(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"tree", "--cache", cache_.name()});
    return run_json(arguments);
  }
  std::uint64_t pages(const Json& tree) {
    return tree["namespaces"].empty() ? 0 : tree["namespaces"][0]["pages"].get<std::uint64_t>();
  }
  std::string text(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cache", cache_.name()});
    const auto outcome = run_kvtrie(arguments);
    EXPECT_EQ(outcome.code, Exit::kOk) << outcome.err;
    return outcome.out;
  }
  Exit code(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"tree", "--cache", cache_.name()});
    return run_kvtrie(arguments).code;
  }

  SmallCache cache_;
  PathEnd root_ = cache_.open_namespace("m");
  WorkerId one_ = cache_.attach("one");
  WorkerId two_ = cache_.attach("two");
};

TEST_F(TreeFilterTest, ByStateWithTheWayToIt) {
  const Json pending = tree({"--state", "pending"});
  EXPECT_EQ(pending["matching_pages"], 1);
  EXPECT_EQ(pages(pending), 6U);  // the stem, page 7, page 8
  ASSERT_EQ(pending["namespaces"][0]["chains"].size(), 1U);
  EXPECT_EQ(pending["namespaces"][0]["chains"][0]["matching"], 1);
  EXPECT_THAT(text({"tree", "--state", "pending"}), AllOf(HasSubstr("1 page matches"), HasSubstr("24 tokens, 1 matching)")));
  EXPECT_EQ(tree({"--state", "condemned"})["matching_pages"], 0);
  EXPECT_THAT(text({"tree", "--state", "condemned"}), HasSubstr("no page matches\n"));
}

TEST_F(TreeFilterTest, ByWhoWroteIt) {
  EXPECT_EQ(tree({"--worker", "2"})["matching_pages"], 2);
  EXPECT_EQ(pages(tree({"--worker", "1"})), 7U);
  EXPECT_EQ(tree({"--worker", "3"})["matching_pages"], 0);
}

TEST_F(TreeFilterTest, ByPrefixOfTokens) {
  const Json whole = tree({"--prefix", "0,1,2,3,4,5,6,7"});
  EXPECT_EQ(whole["prefix"]["tokens_cached"], 8);
  EXPECT_EQ(whole["matching_pages"], 8);  // all but the first page
  EXPECT_EQ(pages(whole), 9U);
  std::string branch;
  for (int token = 0; token < 16; ++token) branch += std::to_string(token) + ",";
  const Json part = tree({"--prefix", branch + "100,101"});  // ends inside page 4
  EXPECT_EQ(part["matching_pages"], 3);
  EXPECT_EQ(pages(part), 7U);
  const Json beyond = tree({"--prefix", branch + "100,101,7"});
  EXPECT_EQ(beyond["matching_pages"], 0);
  EXPECT_EQ(beyond["prefix"]["tokens_given"], 19);
  EXPECT_EQ(beyond["prefix"]["tokens_cached"], 18);
  EXPECT_THAT(text({"tree", "--prefix", "9"}), HasSubstr("prefix of 1 token: 0 of them cached\nno page matches"));
}

TEST_F(TreeFilterTest, PathTokensOfAPageAreAPrefix) {
  const Json page = run_json({"page", "6", "--tokens", "--cache", cache_.name()});
  std::string tokens;
  for (const Json& token : page["path_tokens"]) tokens += token.dump() + "\n";
  const TemporaryDirectory directory;
  std::ofstream(directory.path() + "/tokens") << tokens;
  EXPECT_EQ(tree({"--prefix-file", directory.path() + "/tokens"})["matching_pages"], 1);
}

TEST_F(TreeFilterTest, ByPlaceAndSizeAndLease) {
  EXPECT_EQ(pages(tree({"--below", "4"})), 7U);
  EXPECT_EQ(tree({"--below", "4"})["matching_pages"], 3);
  EXPECT_EQ(tree({"--min-pages", "3"})["matching_pages"], 5);  // the stem, and the left branch's first page
  cache_.lease(one_, 0, cache_.handle_of({5}), 1);
  EXPECT_EQ(tree({"--leased"})["matching_pages"], 1);
  EXPECT_EQ(pages(tree({"--leased"})), 6U);
  EXPECT_EQ(tree({"--leased", "--worker", "2"})["matching_pages"], 0);
}

TEST_F(TreeFilterTest, APageInACycleHasNothingBelowIt) {
  cache_.segment().descriptor({4}).parent.store(cache_.handle_of({6}).raw);
  EXPECT_EQ(tree({"--below", "5"})["matching_pages"], 0);
}

TEST_F(TreeFilterTest, RefusesWhatIsNoFilter) {
  EXPECT_EQ(code({"--prefix", "1,x"}), Exit::kUsage);
  EXPECT_EQ(code({"--prefix", "1", "--prefix-file", "/dev/null"}), Exit::kUsage);
  EXPECT_EQ(code({"--prefix-file", "/nonexistent"}), Exit::kUsage);
  EXPECT_EQ(code({"--state", "writing"}), Exit::kUsage);
  EXPECT_EQ(code({"--below", "256"}), Exit::kNotFound);
}

TEST(ParseTokensTest, TakesNumbersWithAnythingUsualBetween) {
  EXPECT_THAT(parse_tokens("1,2, 3\n4"), Optional(ElementsAre(1, 2, 3, 4)));
  EXPECT_THAT(parse_tokens("4294967295"), Optional(ElementsAre(4294967295U)));
  for (const char* bad : {"", " ", "-1", "1;2", "4294967296", "0x10", "1.5"}) EXPECT_FALSE(parse_tokens(bad)) << bad;
}

class EvictableTest : public TreeFilterTest {
 protected:
  std::string verdict(std::uint32_t page) {
    const Json json = run_json({"page", std::to_string(page), "--cache", cache_.name()})["evictable"];
    return std::string(json["possible"] ? "yes: " : "no: ") + json["reasons"][0].get<std::string>();
  }
};

TEST_F(EvictableTest, SaysWhyAndWhyNot) {
  EXPECT_THAT(verdict(3), HasSubstr("no: 2 children stand below it"));
  EXPECT_THAT(verdict(6), HasSubstr("yes: a leaf without lease"));
  EXPECT_THAT(verdict(8), HasSubstr("no: it is its owner's"));
  EXPECT_THAT(verdict(200), HasSubstr("no: it is free already"));
  cache_.lease(one_, 0, cache_.handle_of({6}), 1);
  EXPECT_THAT(verdict(6), HasSubstr("no: leased by slot 1 (one"));
  cache_.lease(one_, 0, Handle{0}, 0);
  cache_.segment().leases(kCoordinatorSlot)[0].handle.store(cache_.handle_of({6}).raw);
  EXPECT_THAT(verdict(6), HasSubstr("no: the operator pinned it"));
  EXPECT_THAT(text({"page", "6"}), HasSubstr("evictable    no: the operator pinned it"));
}

TEST_F(EvictableTest, RetentionHoldsUntilItsTickOrAFlush) {
  cache_.segment().descriptor({6}).retain_until.store(5000);
  EXPECT_THAT(verdict(6), HasSubstr("no: retained for another 5 s"));
  cache_.segment().name_space(root_.name_space).root_generation.fetch_add(1);
  EXPECT_THAT(verdict(6), HasSubstr("yes: a leaf without lease, of a flushed root"));
}

}  // namespace
}  // namespace kvtrie::test
