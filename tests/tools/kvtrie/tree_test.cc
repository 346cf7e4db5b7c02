// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class TreeTest : public ::testing::Test {
 protected:
  std::string text(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cache", cache_.name()});
    const auto outcome = run_kvtrie(arguments);
    EXPECT_EQ(outcome.code, Exit::kOk) << outcome.err;
    return outcome.out;
  }
  Json json(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--cache", cache_.name()});
    return run_json(arguments);
  }
  std::atomic<std::uint64_t>& parent(std::uint32_t page) {
    return cache_.segment().descriptor({page}).parent;
  }

  SmallCache cache_;
  PathEnd root_ = cache_.open_namespace("m");
  WorkerId me_ = cache_.attach("one");
};

TEST_F(TreeTest, ShowsAChainInOneLine) {
  PathEnd end = root_;
  cache_.set_tick(1000);
  const auto pages = cache_.publish(me_, end, 20, 0);
  cache_.lease(me_, 0, cache_.handle_of(pages[4]), 1);
  cache_.lease(me_, 1, end.handle, 1);
  cache_.set_tick(13000);
  EXPECT_THAT(text({"tree"}),
              HasSubstr("namespace 0 \"m\", root generation 1: 20 pages, 1 branch below the root\n"
                        "  { model=m }\n"
                        "  pages 0..19 (20 pages, 80 tokens) live, touched 12 s ago, "
                        "leased by slot 1 at 4, slot 1\n"));
}

TEST_F(TreeTest, ShowsBranchesLargestFirst) {
  PathEnd stem = root_;
  cache_.publish(me_, stem, 4, 0);
  PathEnd small = stem;
  PathEnd large = stem;
  cache_.publish(me_, small, 1, 100);
  cache_.publish(me_, large, 6, 200);
  cache_.publish(me_, large, 2, 300, PageState::kPending);
  const Json chains = json({"tree"})["namespaces"][0]["chains"];
  ASSERT_EQ(chains.size(), 3U);
  EXPECT_EQ(chains[0]["subtree_pages"], 13);
  EXPECT_EQ(chains[0]["branches"], 2);
  EXPECT_EQ(chains[1]["level"], 2);
  EXPECT_EQ(chains[1]["above"], 0);
  EXPECT_EQ(chains[1]["pages"], 8);
  EXPECT_EQ(chains[1]["pending"], 2);
  EXPECT_EQ(chains[1]["pending_of_slots"], Json::array({1}));
  EXPECT_EQ(chains[2]["pages"], 1);
  EXPECT_THAT(text({"tree"}),
              HasSubstr("    pages 5..12 (8 pages, 32 tokens) 6 live, 2 pending by slot 1"));
}

TEST_F(TreeTest, SaysWhatItLeftOut) {
  PathEnd stem = root_;
  cache_.publish(me_, stem, 2, 0);
  for (std::uint32_t i = 0; i < 10; ++i) {
    PathEnd branch = stem;
    cache_.publish(me_, branch, i + 1, 1000 * (i + 1));
  }
  EXPECT_THAT(text({"tree", "--limit", "3"}),
              AllOf(HasSubstr("10 branches below, 8 branches (36 pages) left out"),
                    HasSubstr("36 pages left out in all; --depth, --limit")));
  EXPECT_THAT(text({"tree", "--depth", "1"}), HasSubstr("10 branches (55 pages) left out"));
  EXPECT_THAT(text({"tree", "--depth", "0"}),
              AllOf(HasSubstr("1 branch (57 pages) left out"), Not(HasSubstr("pages 0.."))));
  EXPECT_EQ(json({"tree"})["pages_left_out"], 0);
}

TEST_F(TreeTest, ShowsOneNamespaceByIdOrLabel) {
  PathEnd other = cache_.open_namespace("other");
  PathEnd end = root_;
  cache_.publish(me_, end, 3, 0);
  cache_.publish(me_, other, 5, 0);
  EXPECT_EQ(json({"tree"})["namespaces"].size(), 2U);
  for (const char* name : {"other", "1"}) {
    const Json trees = json({"tree", "--namespace", name})["namespaces"];
    ASSERT_EQ(trees.size(), 1U) << name;
    EXPECT_EQ(trees[0]["pages"], 5);
  }
  EXPECT_EQ(run_kvtrie({"tree", "--cache", cache_.name(), "--namespace", "nobody"}).code,
            Exit::kNotFound);
  EXPECT_EQ(run_kvtrie({"tree", "--cache", cache_.name(), "--namespace", "3"}).code,
            Exit::kNotFound);
}

TEST_F(TreeTest, CountsPagesThatAreNotInTheTrie) {
  cache_.take(me_, 7);
  EXPECT_THAT(text({"tree"}), HasSubstr("pages outside the trie: 7 written by slot 1\n"));
  EXPECT_EQ(json({"tree"})["private"][0]["pages"], 7);
}

TEST_F(TreeTest, MarksPagesOfAFlushedRoot) {
  PathEnd end = root_;
  cache_.publish(me_, end, 3, 0);
  cache_.segment().name_space(root_.name_space).root_generation.fetch_add(1);
  EXPECT_THAT(text({"tree"}),
              HasSubstr("root generation 1 (flushed or closed: no longer matched): 3 pages"));
}

TEST_F(TreeTest, NamesPagesOfACycleAndEnds) {
  PathEnd end = root_;
  const auto pages = cache_.publish(me_, end, 6, 0);
  parent(pages[2].value).store(cache_.handle_of(pages[4]).raw);
  const Json json = this->json({"tree"});
  EXPECT_EQ(json["namespaces"][0]["pages"], 2);
  ASSERT_EQ(json["detached"].size(), 1U);
  EXPECT_EQ(json["detached"][0]["kind"], "in_cycle");
  EXPECT_EQ(json["detached"][0]["pages"], 4);
  EXPECT_THAT(text({"tree"}),
              HasSubstr("! 4 pages are in or below a cycle of parents (such as 2, 3, 4, 5)"));
  EXPECT_THAT(text({"page", "5"}), HasSubstr("BROKEN, cycle: page 4 is its own ancestor"));
}

TEST_F(TreeTest, NamesPagesThatHangNowhere) {
  PathEnd end = root_;
  cache_.publish(me_, end, 10, 0);
  parent(1).store(0);
  parent(3).store(Handle::page({999}, 0).raw);
  parent(5).store(Handle::page({4}, 77).raw);
  parent(7).store(Handle::page({200}, 0).raw);
  parent(9).store(Handle::root({60000}, 1).raw);
  const Json detached = json({"tree"})["detached"];
  std::map<std::string, std::uint64_t> pages;
  for (const Json& entry : detached)
    pages[entry["kind"]] = entry["pages"];
  EXPECT_EQ(pages, (std::map<std::string, std::uint64_t>{{"no_parent", 1},
                                                         {"parent_out_of_range", 2},
                                                         {"parent_other_life", 1},
                                                         {"parent_not_in_trie", 1},
                                                         {"below_detached", 4}}));
}

TEST_F(TreeTest, PageShowsAllOfADescriptor) {
  PathEnd end = root_;
  const auto pages = cache_.publish(me_, end, 5, 40);
  PathEnd branch{cache_.handle_of(pages[3]),
                 cache_.segment().descriptor(pages[3]).prefix_hash.load(), 4, root_.name_space,
                 root_.root_generation};
  cache_.publish(me_, branch, 1, 900);
  cache_.lease(me_, 2, cache_.handle_of(pages[3]), 0xbeef);
  const std::string text = this->text({"page", "3"});
  EXPECT_THAT(text, AllOf(HasSubstr("live, generation 0"), HasSubstr("page 2 generation 0 (live)"),
                          HasSubstr("root of namespace 0 > 4 pages: 0..3"),
                          HasSubstr("4: 52 53 54 55"), HasSubstr("2: 4 5")));
  EXPECT_THAT(text,
              AllOf(HasSubstr("request tag 0xbeef"), HasSubstr("slot 1 (one, pid "),
                    HasSubstr("(fits parent and tokens)"), HasSubstr("1 entry, bucket "),
                    HasSubstr("2 children below it, ever"), HasSubstr("4 (priority 0, tier 0)")));
  const Json json = this->json({"page", "3"});
  EXPECT_EQ(json["tokens"], Json::array({52, 53, 54, 55}));
  EXPECT_EQ(json["children"], Json::array({4, 5}));
  EXPECT_EQ(json["hash_fits"], true);
  EXPECT_EQ(json["index"]["entries"].size(), 1U);
  EXPECT_EQ(json["leases"][0]["lease"], 2);
  EXPECT_EQ(json["path"]["pages"], 4);
  EXPECT_TRUE(json["path"]["broken"].is_null());
}

TEST_F(TreeTest, PageSaysWhatDoesNotFit) {
  PathEnd end = root_;
  cache_.publish(me_, end, 3, 40);
  cache_.segment().descriptor({1}).prefix_hash.fetch_add(1);
  EXPECT_THAT(text({"page", "1"}), AllOf(HasSubstr("DOES NOT FIT"), HasSubstr("0 entries")));
  cache_.segment().descriptor({1}).state.store(0xF);
  EXPECT_THAT(text({"page", "1"}), HasSubstr("IMPOSSIBLE word"));
  EXPECT_THAT(text({"page", "200"}), HasSubstr("free, generation 0\n"));
  EXPECT_EQ(run_kvtrie({"page", "256", "--cache", cache_.name()}).code, Exit::kNotFound);
}

}  // namespace
}  // namespace kvtrie::test
