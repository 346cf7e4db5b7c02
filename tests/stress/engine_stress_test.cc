// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-engine for longer: 10,000 requests each on pools, page sizes and batches of many shapes, with failures and
// deaths.
//   KVTRIE_ENGINE_SEEDS   seeds of each shape (1)

#include <cstdlib>
#include <string>
#include <vector>

#include "tests/e2e/replay_process.h"

namespace kvtrie {
namespace {

using test::ReplayProcess;
using Words = std::vector<std::string>;

TEST(EngineStressTest, AnswersAreRightInEveryShape) {
  const char* text = std::getenv("KVTRIE_ENGINE_SEEDS");
  const int seeds = text == nullptr ? 1 : std::atoi(text);
  const std::vector<Words> shapes = {
      {"--pages", "128", "--in-flight", "16", "--batch", "16"},
      {"--pages", "160", "--workers", "8", "--in-flight", "4", "--wait-policy", "wait"},
      {"--pages", "512", "--tokens-per-page", "4", "--page-bytes", "64", "--chunk", "32"},
      {"--pages", "80", "--tokens-per-page", "64", "--page-bytes", "1024", "--chunk", "1000"},
      {"--pages", "300", "--workers", "2", "--in-flight", "40", "--batch", "40", "--wait-policy", "compute"},
  };
  for (int seed = 1; seed <= seeds; ++seed) {
    for (const Words& shape : shapes) {
      Words words = {"--requests", "10000", "--fail", "20", "--kill", "200", "--seed", std::to_string(seed)};
      words.insert(words.end(), shape.begin(), shape.end());
      ReplayProcess engine(testing::TempDir(), words, "kvtrie-engine");
      ASSERT_EQ(engine.wait(), 0) << "seed " << seed << ", shape " << shape[1] << ": " << engine.out()
                                  << engine.err();
      EXPECT_EQ(engine.json()["wrong_outputs"], 0);
    }
  }
}

}  // namespace
}  // namespace kvtrie
