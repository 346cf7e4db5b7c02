// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
#include "tools/replay/options.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvtrie::replay {
namespace {

struct Parsed {
  std::optional<ReplayOptions> options;
  int exit_code = -1;
};

Parsed parse(std::vector<const char*> words) {
  words.insert(words.begin(), "kvtrie-replay");
  Parsed parsed;
  parsed.options =
      parse_options(static_cast<int>(words.size()), words.data(), "/run/kvtrie", parsed.exit_code);
  return parsed;
}

TEST(OptionsTest, TakesTheDocumentedCommand) {
  const Parsed parsed = parse({"--trace",
                               "t.jsonl",
                               "--workers",
                               "1",
                               "--in-flight",
                               "1",
                               "--speed",
                               "max",
                               "--policy",
                               "lru",
                               "--pages",
                               "96000",
                               "--tokens-per-page",
                               "16",
                               "--page-bytes",
                               "512",
                               "--check-bytes",
                               "100",
                               "--low",
                               "1",
                               "--high",
                               "2"});
  ASSERT_TRUE(parsed.options);
  EXPECT_TRUE(parsed.options->sequential());
  EXPECT_EQ(parsed.options->geometry.pages, 96000U);
  EXPECT_EQ(parsed.options->geometry.page_bytes, 512U);
  EXPECT_TRUE(parsed.options->pages_given);
  EXPECT_FALSE(parsed.options->planes_given);
}

TEST(OptionsTest, IsSequentialOnlyWithOneRequestAtATimeAndADrivenClock) {
  for (const std::vector<const char*>& words :
       {std::vector<const char*>{"--workers", "2", "--in-flight", "1"},
        {"--workers", "1", "--in-flight", "2"},
        {"--workers", "1", "--in-flight", "1", "--speed", "2.5"}}) {
    std::vector<const char*> all = {"--generate", "10"};
    all.insert(all.end(), words.begin(), words.end());
    const Parsed parsed = parse(all);
    ASSERT_TRUE(parsed.options);
    EXPECT_FALSE(parsed.options->sequential());
  }
}

TEST(OptionsTest, OwnCacheHasRoomForAllWorkersAndThoseThatReplaceTheKilled) {
  const Parsed parsed =
      parse({"--generate", "10", "--workers", "6", "--kill-workers", "5", "--namespaces", "3"});
  ASSERT_TRUE(parsed.options);
  EXPECT_GE(parsed.options->geometry.workers, 11U);
  EXPECT_GE(parsed.options->geometry.namespaces, 3U);
}

TEST(OptionsTest, MixHasNamespacesToFlushAndRoomForItsForks) {
  const Parsed parsed = parse({"--generate", "10", "--mix", "--seed", "5", "--workers", "6", "--in-flight", "40"});
  ASSERT_TRUE(parsed.options);
  EXPECT_TRUE(parsed.options->mix);
  EXPECT_EQ(parsed.options->mix_seed, 5U);
  EXPECT_GT(parsed.options->namespaces, 1U);
  EXPECT_GE(parsed.options->geometry.leases_per_worker, 160U);  // two a sequence, twice as many sequences
  EXPECT_GE(parsed.options->geometry.workers, 12U);
  EXPECT_EQ(parse({"--generate", "10", "--mix", "--namespaces", "1"}).options->namespaces, 1U);
  EXPECT_EQ(parse({"--generate", "10", "--mix", "--mix-seed", "9"}).options->mix_seed, 9U);
}

TEST(OptionsTest, RefusesWhatCannotBe) {
  const std::vector<std::vector<const char*>> wrong = {
      {},
      {"--trace", "x", "--generate", "5"},
      {"--generate", "0"},
      {"--generate", "5", "--workers", "0"},
      {"--generate", "5", "--in-flight", "257"},
      {"--generate", "5", "--speed", "fast"},
      {"--generate", "5", "--speed", "-1"},
      {"--generate", "5", "--speed", "inf"},
      {"--generate", "5", "--check-bytes", "101"},
      {"--generate", "5", "--low", "3", "--high", "2"},
      {"--generate", "5", "--page-bytes", "12"},
      {"--generate", "5", "--pages", "63"},
      {"--generate", "5", "--tokens-per-page", "1025"},
      {"--generate", "5", "--limit", "0"},
      {"--generate", "5", "--what", "1"},
      {"--generate", "5", "--mix", "--page-bytes", "64"},  // 16 tokens of 8 bytes are more
      {"--generate", "5", "--mix", "--speed", "2"},
      {"--generate", "5", "--mix", "--mix-seed", "-1"},
      {"--generate", "5", "--lap", "1"},
  };
  for (const std::vector<const char*>& words : wrong) {
    testing::internal::CaptureStderr();
    const Parsed parsed = parse(words);
    const std::string message = testing::internal::GetCapturedStderr();
    EXPECT_FALSE(parsed.options) << message;
    EXPECT_EQ(parsed.exit_code, kExitUsage);
    EXPECT_NE(message, "");
  }
}

TEST(OptionsTest, HelpIsNoError) {
  testing::internal::CaptureStdout();
  const Parsed parsed = parse({"--help"});
  const std::string help = testing::internal::GetCapturedStdout();
  EXPECT_FALSE(parsed.options);
  EXPECT_EQ(parsed.exit_code, kExitOk);
  for (const char* flag :
       {"--trace", "--generate", "--workers", "--in-flight", "--pages", "--tokens-per-page",
        "--page-bytes", "--planes", "--namespaces", "--policy", "--low", "--high", "--speed",
        "--check-bytes", "--limit", "--seed", "--cache", "--plugin", "--json"}) {
    EXPECT_NE(help.find(flag), std::string::npos) << flag;
  }
}

}  // namespace
}  // namespace kvtrie::replay
