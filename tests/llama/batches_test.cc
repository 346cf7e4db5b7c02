// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-engine with llama.cpp: engines with batches of prefill and decode, beam search, failures
// and deaths on a small pool choose the tokens that the same batches choose without a cache; and a
// wrong page would be seen, and named.

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/e2e/replay_process.h"
#include "tests/llama/llama_process.h"

namespace kvtrie {
namespace {

using test::left_behind_by;
using test::ReplayProcess;

class LlamaBatchesTest : public test::LlamaTest {
 protected:
  struct Ended {
    int code;
    Json json;
    std::string said;
  };

  // x64 has no kernels of its own for single tokens, so that a token's KV is the same in all
  // batches.
  Ended run_engines(const std::vector<std::string>& more) {
    std::vector<std::string> words = {"--engine", "llama", "--model", model(), "--back-end", "x64", "--seed", "4"};
    words.insert(words.end(), more.begin(), more.end());
    if (std::getenv("KVTRIE_ARTIFACTS") == nullptr) words.insert(words.end(), {"--artifacts", KVTRIE_TEST_ARTIFACTS});
    ReplayProcess engine(cache_.directory(), words, "kvtrie-engine");
    const int code = engine.wait();
    EXPECT_TRUE(left_behind_by(engine.pid()).empty());
    return {code, engine.json(), engine.out() + engine.err()};
  }
  // What a run that is wrong leaves behind.
  static void take_away(const Ended& run) {
    const std::string kept = run.json["kept"];
    EXPECT_NE(run.said.find("left behind        " + kept + "\n"), std::string::npos) << run.said;
    bool schedule = false;
    bool segment = false;
    const bool dumps = std::filesystem::exists(kept + "/alone") && std::filesystem::exists(kept + "/shared");
    for (const auto& entry : std::filesystem::directory_iterator(kept)) {
      schedule = schedule || entry.path().extension() == ".schedule";
      segment = segment || entry.path().filename().string().starts_with("kvtrie.");
    }
    EXPECT_TRUE(schedule && segment && dumps) << kept;
    std::filesystem::remove_all(kept);
  }
};

TEST_F(LlamaBatchesTest, TheSameBatchesWithoutTheCacheChooseTheSameTokens) {
  const Ended run = run_engines({"--requests", "20", "--workers", "3", "--in-flight", "5", "--pages", "124", "--chunk",
                                 "48", "--fail", "20", "--kill", "2", "--alone", "2", "--wait-policy", "wait"});
  ASSERT_EQ(run.code, 0) << run.said;
  EXPECT_EQ(run.json["finished"], 20);
  EXPECT_EQ(run.json["lost_pages"], 0);
  EXPECT_EQ(run.json["verify"], "");
  for (const char* count : {"cached", "forks", "published"})
    EXPECT_GT(run.json["counts"][count], 0) << count;
  const Json& llama = run.json["llama"];
  EXPECT_GT(llama["pages"], 30);
  EXPECT_GT(llama["choices"], 100);
  EXPECT_EQ(llama["unexplained"], 0);
  EXPECT_EQ(llama["wrong_pages"].size(), 0U);
  EXPECT_EQ(llama["first_wrong"], "");
  EXPECT_EQ(run.json["kept"], "");
}

TEST_F(LlamaBatchesTest, AWrongPageIsFoundAndNamed) {
  const Ended run = run_engines({"--requests", "12", "--workers", "2", "--alone", "0", "--sabotage", "wrong-page"});
  EXPECT_EQ(run.code, 1) << run.said;
  const Json& wrong = run.json["llama"]["wrong_pages"];
  ASSERT_GT(wrong.size(), 0U) << run.said;
  EXPECT_GT(wrong[0]["off"], 0.5);
  EXPECT_EQ(wrong[0]["position"].get<int>() % 16, 0);
  const std::string name = "request " + wrong[0]["request"].dump() + ": page " + wrong[0]["page"].dump() +
                           " at position " + wrong[0]["position"].dump();
  EXPECT_NE(run.said.find("first wrong        " + name), std::string::npos) << name << "\n" << run.said;
  EXPECT_GT(run.json["llama"]["logit_off_max"], 0.05) << run.said;
  // What was computed with it was published: layer 0 looks at nothing before it, so the next layer's K is the first.
  const std::string in_cache = run.json["first_wrong_page"];
  EXPECT_NE(in_cache.find(": part k.1 ["), std::string::npos) << in_cache;
  take_away(run);
}

TEST_F(LlamaBatchesTest, SaysWhatIsWrongWithItsModel) {
  EXPECT_EQ(run_engines({"--model", model() + ".not"}).code, 2);
  EXPECT_EQ(run_engines({"--same-prompt", "64"}).code, 2);
}

}  // namespace
}  // namespace kvtrie
