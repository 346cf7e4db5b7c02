// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie save` and `kvtried --load` through real processes: a cache that was saved, thrown away
// and loaded serves what the kept one would have served.

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "shm/page_table.h"
#include "shm/verify.h"
#include "tests/e2e/replay_process.h"
#include "tests/support/kvtried_process.h"

namespace kvtrie {
namespace {

using test::eventually;
using test::KvtriedProcess;
using test::ReplayProcess;

using Words = std::vector<std::string>;

Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

class WarmStartE2eTest : public testing::Test {
 protected:
  static Words daemon_words() {
    return {"--pages",   "3000", "--page-bytes", "128",    "--planes", "2", "--workers", "8",
            "--metrics", "off",  "--clock",      "driven", "--low",    "2", "--high",    "5"};
  }
  static nlohmann::json replayed(const test::TemporaryCache& cache, const Words& more) {
    ReplayProcess replay(cache.directory(), on(cache) + more);
    EXPECT_EQ(replay.wait(), 0) << replay.err();
    return replay.json();
  }
  static Words on(const test::TemporaryCache& cache) {
    return {"--cache", cache.name(), "--dir", cache.directory(), "--namespaces", "2"};
  }
  // Exit code of kvtrie save.
  static int save(const test::TemporaryCache& cache, const std::string& file) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      const std::string program = std::string(KVTRIE_TEST_BIN_DIR) + "/kvtrie";
      ::dup2(::open("/dev/null", O_WRONLY), 1);
      ::execl(program.c_str(), "kvtrie", "save", file.c_str(), "--cache", cache.name().c_str(),
              static_cast<char*>(nullptr));
      ::_exit(127);
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  static std::uint64_t live_pages(const test::TemporaryCache& cache) {
    const Result<Segment> segment = open_segment(cache.name(), Access::kReadOnly);
    return segment ? PageTable(*segment).stats().of(PageState::kLive) : 0;
  }
  static void expect_clean(const test::TemporaryCache& cache) {
    const Result<Segment> segment = open_segment(cache.name(), Access::kReadOnly);
    ASSERT_TRUE(segment);
    const VerifyReport report = verify(*segment);
    EXPECT_TRUE(report.clean()) << to_string(report.findings.front());
  }

  test::TemporaryCache kept_{"kept"};
  test::TemporaryCache loaded_{"loaded"};
  const std::string file_ = kept_.directory() + "/cache.save";
};

// One worker, one request at a time: hits and evictions are exact.
TEST_F(WarmStartE2eTest, ALoadedCacheHasTheHitsOfTheKeptOne) {
  const Words sequential = {"--workers", "1", "--in-flight", "1", "--generate", "400"};
  KvtriedProcess kept(kept_, daemon_words());
  ASSERT_TRUE(kept.ready()) << kept.err();
  const nlohmann::json first = replayed(kept_, sequential + Words{"--seed", "1"});
  EXPECT_GT(first["evictions"], 0);
  ASSERT_EQ(save(kept_, file_), 0);

  KvtriedProcess loaded(loaded_, daemon_words() + Words{"--load", file_});
  ASSERT_TRUE(loaded.ready()) << loaded.err();
  EXPECT_EQ(live_pages(loaded_), live_pages(kept_));
  expect_clean(loaded_);

  const nlohmann::json on_kept = replayed(kept_, sequential + Words{"--seed", "1"});
  const nlohmann::json on_loaded = replayed(loaded_, sequential + Words{"--seed", "1"});
  for (const char* key : {"pages_hit", "blocks_hit", "pages_total", "evictions", "wrong_pages"}) {
    EXPECT_EQ(on_loaded[key], on_kept[key]) << key;
  }
  EXPECT_EQ(on_loaded["wrong_pages"], 0);
  EXPECT_GT(on_loaded["pages_hit"], first["pages_hit"]) << "a warm start is worth something here";
}

TEST_F(WarmStartE2eTest, ADeadCacheCanBeSaved) {
  auto daemon = std::make_unique<KvtriedProcess>(kept_, daemon_words());
  ASSERT_TRUE(daemon->ready()) << daemon->err();
  (void)replayed(kept_, {"--workers", "2", "--generate", "100"});
  daemon->send(SIGKILL);
  EXPECT_EQ(daemon->wait(), -SIGKILL);
  ASSERT_EQ(save(kept_, file_), 0);
  KvtriedProcess loaded(loaded_, daemon_words() + Words{"--load", file_});
  ASSERT_TRUE(loaded.ready()) << loaded.err();
  EXPECT_EQ(live_pages(loaded_), live_pages(kept_));
}

// Pages are evicted and written anew all the time while it is
// saved; the replay compares every byte that it reuses.
TEST_F(WarmStartE2eTest, SavedWhileFourWorkersEvictItHasNoWrongPage) {
  KvtriedProcess kept(kept_, daemon_words());
  ASSERT_TRUE(kept.ready()) << kept.err();
  ReplayProcess replay(kept_.directory(), on(kept_) + Words{"--workers", "4", "--generate", "600"});
  unsigned saves = 0;
  do {
    ASSERT_EQ(save(kept_, file_), 0);
    ++saves;
  } while (replay.running());
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  EXPECT_GT(saves, 1U);
  KvtriedProcess loaded(loaded_, daemon_words() + Words{"--load", file_});
  ASSERT_TRUE(loaded.ready()) << loaded.err();
  expect_clean(loaded_);
  const nlohmann::json json =
      replayed(loaded_, {"--workers", "4", "--generate", "300", "--check-bytes", "100"});
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_GT(json["pages_hit"], 0);
}

TEST_F(WarmStartE2eTest, KilledWhileItLoadsItLoadsAgain) {
  {
    KvtriedProcess kept(kept_, daemon_words());
    ASSERT_TRUE(kept.ready()) << kept.err();
    (void)replayed(kept_, {"--workers", "2", "--generate", "200"});
    ASSERT_EQ(save(kept_, file_), 0);
  }
  for (int round = 0; round < 5; ++round) {
    KvtriedProcess victim(loaded_, daemon_words() + Words{"--load", file_});
    // Its objects are under construction, or whole already.
    ASSERT_TRUE(eventually([&] {
      return std::filesystem::exists(loaded_.segment_path() + ".tmp") ||
             std::filesystem::exists(loaded_.segment_path());
    }));
    victim.send(SIGKILL);
    EXPECT_EQ(victim.wait(), -SIGKILL);
  }
  KvtriedProcess loaded(loaded_, daemon_words() + Words{"--load", file_});
  ASSERT_TRUE(loaded.ready()) << loaded.err();
  EXPECT_EQ(live_pages(loaded_), live_pages(kept_));
  expect_clean(loaded_);
}

TEST_F(WarmStartE2eTest, AFileOfAnotherShapeRefusesTheStart) {
  {
    KvtriedProcess kept(kept_, daemon_words());
    ASSERT_TRUE(kept.ready()) << kept.err();
    ASSERT_EQ(save(kept_, file_), 0);
  }
  KvtriedProcess refused(
      loaded_, {"--pages", "3000", "--page-bytes", "256", "--metrics", "off", "--load", file_});
  EXPECT_EQ(refused.wait(), 1);
  EXPECT_NE(refused.err().find("it has page-bytes 128, the cache 256"), std::string::npos)
      << refused.err();
  EXPECT_FALSE(std::filesystem::exists(loaded_.segment_path()));
}

}  // namespace
}  // namespace kvtrie
