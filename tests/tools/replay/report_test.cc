// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace kvtrie::replay {
namespace {

class ReportTest : public testing::Test {
 protected:
  ReportTest() {
    set(Tally::kPagesHit, 50);
    set(Tally::kPagesAsked, 200);
    set(Tally::kBlocksHit, 1);
    set(Tally::kBlocksAsked, 4);
    set(Tally::kRuns, 5);
    result_.counted[static_cast<std::size_t>(Counter::kPagesHit)] = 50;
    result_.requests = 2;
    result_.census.pages[static_cast<std::size_t>(PageState::kFree)] = 60;
    result_.census.pages[static_cast<std::size_t>(PageState::kLive)] = 4;
    result_.census.free_bits = 60;
  }
  void set(Tally tally, std::uint64_t value) {
    result_.sums[static_cast<std::size_t>(tally)] = value;
  }
  ExitCode verdict() {
    why_.clear();
    return judge(result_, why_);
  }

  ReplayResult result_;
  std::string why_;
};

TEST_F(ReportTest, AllIsWell) {
  EXPECT_EQ(verdict(), kExitOk);
  EXPECT_EQ(why_, "");
}

TEST_F(ReportTest, WrongPagesAreWorseThanEverythingElse) {
  set(Tally::kWrongPages, 1);
  result_.failure = "a worker died";
  result_.counted[static_cast<std::size_t>(Counter::kPagesHit)] = 0;
  EXPECT_EQ(verdict(), kExitWrongPages);
}

TEST_F(ReportTest, TheCacheMustHaveCountedTheSameHits) {
  for (const std::uint64_t counted : {49U, 51U}) {
    result_.counted[static_cast<std::size_t>(Counter::kPagesHit)] = counted;
    EXPECT_EQ(verdict(), kExitCountersDiffer) << counted;
  }
}

TEST_F(ReportTest, HitsOfTheDeadMayBeMissingButNoOthers) {
  result_.deaths = 1;
  result_.uncertain_hits = 10;
  for (const auto& [counted, code] :
       {std::pair(50U, kExitOk), std::pair(60U, kExitOk), std::pair(61U, kExitCountersDiffer),
        std::pair(49U, kExitCountersDiffer)}) {
    result_.counted[static_cast<std::size_t>(Counter::kPagesHit)] = counted;
    EXPECT_EQ(verdict(), code) << counted;
  }
}

TEST_F(ReportTest, LostPagesOfAnOwnCacheAreAFailure) {
  result_.census.free_bits = 59;
  EXPECT_EQ(result_.census.lost(), 1U);
  EXPECT_EQ(verdict(), kExitFailure);
  result_.own_cache = false;  // others may hold pages of theirs
  EXPECT_EQ(verdict(), kExitOk);
}

TEST_F(ReportTest, JsonHasTheKeysThatOtherToolsRead) {
  result_.timings[static_cast<std::size_t>(Timing::kLookup)].record(2000);
  const nlohmann::json json = nlohmann::json::parse(to_json(result_, ReplayOptions{}));
  for (const char* key : {"requests", "pages_total", "pages_hit", "hit_ratio_blocks", "wrong_pages",
                          "failed_allocations", "evictions", "lookup_us_p50", "lookup_us_p99",
                          "allocate_us_p99", "publish_us_p99", "seconds", "run_length_mean"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_EQ(json["pages_total"], 200);
  EXPECT_EQ(json["hit_ratio_blocks"], .25);
  EXPECT_EQ(json["run_length_mean"], 10.0);
  EXPECT_NEAR(json["lookup_us_p50"].get<double>(), 2.0, .02);
}

TEST_F(ReportTest, TextGroupsDigits) {
  set(Tally::kTokensHit, 1234567);
  set(Tally::kTokensAsked, 999);
  const std::string text = to_text(result_, ReplayOptions{});
  EXPECT_NE(text.find("1,234,567 of 999 tokens"), std::string::npos) << text;
}

}  // namespace
}  // namespace kvtrie::replay
