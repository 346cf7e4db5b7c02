// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-engine: four engine processes with continuous batching on a pool that is too small for them give the answers
// of one request at a time; and a fault of an engine would be seen.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/e2e/replay_process.h"

namespace kvtrie {
namespace {

using test::left_behind_by;
using test::ReplayProcess;

using Words = std::vector<std::string>;

struct Ended {
  int code;
  nlohmann::json json;
  std::string said;
};

// What a run that fails leaves behind stays: in KVTRIE_ARTIFACTS, else in the build tree.
Ended run_engine(Words words) {
  if (std::getenv("KVTRIE_ARTIFACTS") == nullptr) words.insert(words.end(), {"--artifacts", KVTRIE_TEST_ARTIFACTS});
  ReplayProcess engine(testing::TempDir(), words, "kvtrie-engine");
  const int code = engine.wait();
  EXPECT_TRUE(left_behind_by(engine.pid()).empty());
  return {code, engine.json(), engine.out() + engine.err()};
}

void expect_right(const Ended& run) {
  ASSERT_EQ(run.code, 0) << run.said;
  EXPECT_EQ(run.json["finished"], run.json["requests"]);
  EXPECT_EQ(run.json["wrong_outputs"], 0);
  EXPECT_EQ(run.json["lost_pages"], 0);
  EXPECT_EQ(run.json["pages_free"].get<int>() + run.json["pages_cached"].get<int>(), run.json["pages"]);
  EXPECT_EQ(run.json["verify"], "");
}

TEST(EngineTest, TenThousandRequestsWithFailuresAndDeathsAtEachStage) {
  const Ended run = run_engine({"--requests", "10000", "--fail", "10", "--kill", "60", "--wait-policy", "wait"});
  expect_right(run);
  const nlohmann::json& counts = run.json["counts"];
  for (const char* count : {"preempted", "resumed", "resumed_cached", "forks", "beams_dropped", "shared", "waited"})
    EXPECT_GT(counts[count], 10) << count;
  EXPECT_GT(counts["cached"], 100'000);
  EXPECT_GT(run.json["evictions"], 1'000);
  for (const char* stage : {"begin", "allocate", "compute", "publish", "release"}) {
    EXPECT_GT(run.json["failures"][stage], 50) << stage;
    EXPECT_GT(run.json["kills"][stage], 0) << stage;
  }
}

TEST(EngineTest, AsSmallAPoolAsTheLongestRequestNeeds) {
  const Ended run = run_engine({"--requests", "600", "--pages", "124", "--in-flight", "16", "--batch", "8", "--chunk",
                                "24", "--seed", "5", "--wait-policy", "wait"});
  expect_right(run);
  EXPECT_GT(run.json["counts"]["preempted"], 0);
}

// It should have failed, and left this behind.
std::vector<std::string> take_away(const Ended& run) {
  std::vector<std::string> names;
  const std::string kept = run.json.is_object() ? run.json["kept"] : "";
  EXPECT_TRUE(std::filesystem::is_directory(kept)) << run.said;
  if (kept.empty()) return names;
  EXPECT_NE(run.said.find("left behind        " + kept + "\n"), std::string::npos) << run.said;
  for (const auto& entry : std::filesystem::directory_iterator(kept)) names.push_back(entry.path().filename());
  std::filesystem::remove_all(kept);
  EXPECT_TRUE(std::ranges::any_of(names, [](const std::string& name) { return name.ends_with(".seg"); }));
  EXPECT_TRUE(std::ranges::any_of(names, [](const std::string& name) { return name.ends_with(".pool0"); }));
  return names;
}

class SabotagedEngineTest : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Faults, SabotagedEngineTest, testing::Values("publish-early", "half-write", "foreign-page"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST_P(SabotagedEngineTest, IsFound) {
  const Ended run = run_engine({"--requests", "1000", "--prefill-us", "5", "--sabotage", GetParam()});
  EXPECT_EQ(run.code, 1) << run.said;
  EXPECT_GT(run.json["wrong_outputs"], 0);
  EXPECT_NE(run.said.find("differs from token"), std::string::npos) << run.said;
  EXPECT_EQ(run.json["lost_pages"], 0);
  EXPECT_NE(run.json["first_wrong_page"], "");
  (void)take_away(run);
}

// A pool that holds all, so that the wrong pages are still there at the end.
TEST(EngineTest, AWrongRunLeavesDumpsThatNameThePage) {
  const Ended run = run_engine({"--requests", "100", "--pages", "4096", "--fail", "0", "--sabotage", "foreign-page"});
  EXPECT_EQ(run.code, 1) << run.said;
  const std::string found = run.json["first_wrong_page"];
  unsigned request = 0;
  unsigned page = 0;
  unsigned position = 0;
  unsigned item = 0;
  ASSERT_EQ(std::sscanf(found.c_str(), "request %u: page %u at position %u: part page [%u]", &request, &page, &position,
                        &item),
            4)
      << found;
  EXPECT_EQ(position % 16, 0U);
  // The command that it says.
  const std::string command = std::string(KVTRIE_TEST_BIN_DIR) + "/" + found.substr(found.find("kvtrie diff-dumps "));
  std::FILE* const pipe = ::popen((command + " --json").c_str(), "re");
  ASSERT_NE(pipe, nullptr);
  const nlohmann::json diff = nlohmann::json::parse(pipe);
  EXPECT_EQ(WEXITSTATUS(::pclose(pipe)), 1);
  EXPECT_EQ(diff["tokens"], nullptr);
  EXPECT_EQ(diff["pages"]["page_b"], page);
  EXPECT_EQ(diff["pages"]["position"], position / 16);
  EXPECT_EQ(diff["pages"]["item"], item);
  const std::vector<std::string> left = take_away(run);
  EXPECT_TRUE(std::ranges::find(left, "shared") != left.end() && std::ranges::find(left, "alone") != left.end());
}

TEST(EngineTest, ItsStepsAreDumped) {
  const std::string folder = testing::TempDir() + test::unique_name("steps");
  const Ended run = run_engine({"--requests", "8", "--workers", "1", "--fail", "0", "--dump", folder + ",after,tag=3"});
  expect_right(run);
  std::size_t before = 0;
  std::size_t after = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path() / "info.json");
    const nlohmann::json info = nlohmann::json::parse(file);
    const bool with_it = std::ranges::any_of(info["requests"], [](const auto& one) { return one["request_tag"] == 3; });
    EXPECT_TRUE(with_it) << entry.path();
    (info["moment"] == "after" ? after : before) += 1;
    for (const nlohmann::json& page : info["pages"])
      EXPECT_TRUE(page["state"] == "read" || info["moment"] == "after") << entry.path();
    EXPECT_TRUE(info["moment"] == "before" || info["pages"].size() > 0) << entry.path();
  }
  std::filesystem::remove_all(folder);
  EXPECT_GT(before, 1U);
  EXPECT_EQ(before, after);
}

TEST(EngineTest, NothingGoingOnIsAFailure) {
  const Ended run = run_engine({"--requests", "4", "--prefill-us", "1000000", "--stall-s", "1"});
  EXPECT_EQ(run.code, 1);
  EXPECT_NE(run.said.find("no progress"), std::string::npos) << run.said;
  EXPECT_EQ(run.json["first_wrong_page"], "");
  (void)take_away(run);
}

TEST(EngineTest, SaysWhatIsWrongWithItsArguments) {
  for (const Words& words : {Words{"--pages", "100"}, Words{"--page-bytes", "100"}, Words{"--kill-owner"},
                             Words{"--same-prompt", "100", "--requests", "7"}, Words{"--wait-policy", "never"}}) {
    const Ended run = run_engine(words);
    EXPECT_EQ(run.code, 2) << words[0];
    EXPECT_NE(run.said.find("--"), std::string::npos);
  }
}

// Prompts of 2,049 tokens, each given to four engines at once: 128 whole pages, and the last token is everybody's
// own.
Words same_prompt(const char* policy, const Words& more = {}) {
  Words words = {"--same-prompt", "2049", "--pages", "1024", "--prefill-us", "10", "--wait-policy", policy};
  words.insert(words.end(), more.begin(), more.end());
  if (std::ranges::find(more, "--requests") == more.end()) words.insert(words.end(), {"--requests", "20"});
  return words;
}

TEST(InFlightSharingTest, WhoWaitsDoesNotComputeAgain) {
  const Ended waiting = run_engine(same_prompt("wait"));
  expect_right(waiting);
  EXPECT_EQ(waiting.json["tokens_per_prompt"], 2052);
  EXPECT_EQ(waiting.json["counts"]["waited"], 15);
  const Ended computing = run_engine(same_prompt("compute"));
  expect_right(computing);
  EXPECT_GT(computing.json["tokens_per_prompt"], 2 * 2052) << "4 times, but for engines that come late";
  EXPECT_EQ(computing.json["counts"]["waited"], 0);
  // As the default, unless the host holds up an owner for longer than computing takes.
  const Ended automatic = run_engine(same_prompt("auto"));
  expect_right(automatic);
  EXPECT_LT(automatic.json["tokens_per_prompt"], computing.json["tokens_per_prompt"]);
}

TEST(InFlightSharingTest, AnOwnerThatIsKilledHalfWayIsFollowedByOne) {
  const Ended run = run_engine(same_prompt("wait", {"--kill-owner"}));
  expect_right(run);
  EXPECT_EQ(run.json["kills"]["compute"], 5);
  EXPECT_EQ(run.json["takeovers_max"], 1);
  EXPECT_GT(run.json["takeover_us"]["count"], 0) << "it may also be one that came late";
  EXPECT_EQ(run.json["tokens_per_prompt"], 2052) << "but for the last chunk of the dead, which it had not published";
}

TEST(InFlightSharingTest, ShortPartsAreNotWaitedFor) {
  const Ended run = run_engine({"--requests", "200", "--same-prompt", "33", "--pages", "512"});
  expect_right(run);
  EXPECT_EQ(run.json["counts"]["waited"], 0);
}

TEST(InFlightSharingTest, ASlowOwnerIsNotWaitedForLong) {
  // A prompt takes it 0.2 s, and the others 20 ms.
  const Ended run = run_engine(same_prompt("auto", {"--slow-worker", "10", "--chunk", "64", "--requests", "12"}));
  expect_right(run);
  EXPECT_GT(run.json["counts"]["waited"], 0);
  EXPECT_GT(run.json["counts"]["ignored"], 0);
  EXPECT_GT(run.json["tokens_per_prompt"], 3000) << "they computed it instead";
}

}  // namespace
}  // namespace kvtrie
