// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-replay with several processes under eviction, with deaths, with a spoilt pool, and what it
// says when it is used wrongly.
#include <sys/mman.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "shm/verify.h"
#include "tests/e2e/replay_process.h"
#include "tests/support/eventually.h"
#include "tests/support/kvtried_process.h"
#include "tools/replay/observer.h"

namespace kvtrie {
namespace {

using replay::Census;
using replay::Observer;
using test::eventually;
using test::KvtriedProcess;
using test::left_behind_by;
using test::ReplayProcess;

using Words = std::vector<std::string>;

Words operator+(Words words, const Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

std::string findings_of(const VerifyReport& report) {
  std::string text;
  for (const Finding& finding : report.findings)
    text += to_string(finding) + "\n";
  return text;
}

class ReplayTest : public testing::Test {
 protected:
  // A daemon that the test has in hand, and a replay that uses its cache.
  Words daemon_words() const {
    return {"--pages",   "4000",    "--page-bytes", "256", "--planes", "2",
            "--workers", "40",      "--metrics",    "off", "--clock",  "driven",
            "--tick-ns", "1000000", "--low",        "2",   "--high",   "5"};
  }
  Words on_cache(std::uint32_t requests) const {
    return {"--cache",      cache_.name(), "--dir",       cache_.directory(),
            "--workers",    "4",           "--in-flight", "4",
            "--namespaces", "2",           "--generate",  std::to_string(requests)};
  }
  std::string folder() const { return cache_.directory(); }

  // All that was held has been given back, and nothing was lost.
  void expect_all_pages_free_or_cached() const {
    const Observer observer(cache_.name());
    const Census census = observer.census_at_rest(std::chrono::seconds(20));
    EXPECT_EQ(census.free_bits + census.in(PageState::kLive), observer.segment().page_count());
    EXPECT_EQ(census.free_bits, census.in(PageState::kFree));
  }
  void expect_clean_at_rest() const {
    expect_all_pages_free_or_cached();
    const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
    ASSERT_TRUE(segment);
    // The slots of those who have left are cleared a little later.
    VerifyReport report;
    EXPECT_TRUE(eventually([&] {
      report = verify(*segment, {.at_rest = true});
      return report.clean();
    })) << findings_of(report);
  }

  test::TemporaryCache cache_{"replay"};
};

TEST_F(ReplayTest, FourWorkersUnderEvictionReadNoWrongPage) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ReplayProcess replay(folder(), on_cache(3000));
  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  do {
    const VerifyReport report = verify(*segment);
    EXPECT_TRUE(report.clean()) << findings_of(report);
  } while (replay.running());
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["requests"], 3000);
  EXPECT_EQ(json["planes"], 2);
  EXPECT_GT(json["pages_hit"], 0);
  EXPECT_EQ(json["pages_hit"], json["pages_hit_by_coordinator"]);
  EXPECT_GT(json["evictions"], 4000);
  EXPECT_GE(json["pages_checked"], json["pages_written"]);
  expect_clean_at_rest();
}

TEST_F(ReplayTest, KilledWorkersCostNothingButTheirWork) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ReplayProcess replay(folder(), on_cache(3000) + Words{"--kill-workers", "30"});
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["requests_served"].get<int>() + json["failed_allocations"].get<int>(), 3000);
  EXPECT_GT(json["deaths"], 0);
  expect_clean_at_rest();
  const Observer observer(cache_.name());
  // A worker that was killed before it attached had nothing to be reaped; four left by themselves at the end.
  const std::uint64_t attached = observer.segment().total(Counter::kAttaches);
  EXPECT_GT(attached, 4U);
  EXPECT_GE(observer.segment().total(Counter::kReapedWorkers) + 4, attached);
}

TEST_F(ReplayTest, CoordinatorIsKilledAndStartedAgainMeanwhile) {
  auto daemon = std::make_unique<KvtriedProcess>(cache_, daemon_words());
  ASSERT_TRUE(daemon->ready()) << daemon->err();
  const Observer observer(cache_.name());
  ReplayProcess replay(folder(), on_cache(1500));
  for (const std::uint64_t lookups : {200U, 500U, 900U}) {
    ASSERT_TRUE(eventually([&] {
      return observer.segment().total(Counter::kLookups) >= lookups || !replay.running();
    }));
    ASSERT_TRUE(replay.running()) << replay.err();
    daemon->send(SIGKILL);
    EXPECT_EQ(daemon->wait(), -SIGKILL);
    daemon = std::make_unique<KvtriedProcess>(cache_, Words{"--metrics", "off"});
    ASSERT_TRUE(daemon->ready()) << daemon->err();
  }
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["requests_served"], 1500);
  EXPECT_EQ(json["adoptions"], 3);
  expect_clean_at_rest();
}

TEST_F(ReplayTest, BytesThatSomebodySpoiltAreSeen) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ReplayProcess first(folder(), on_cache(60));
  ASSERT_EQ(first.wait(), 0) << first.err();
  // One bit of each page, in the second plane.
  const Result<FileDescriptor> pool =
      open_object(pool_object_name(cache_.name(), 1), Access::kReadWrite);
  ASSERT_TRUE(pool);
  constexpr std::size_t kPageBytes = 256;
  constexpr std::size_t kPoolBytes = 4000 * kPageBytes;
  void* address = ::mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_SHARED, pool->get(), 0);
  ASSERT_NE(address, MAP_FAILED);
  for (std::size_t at = 100; at < kPoolBytes; at += kPageBytes) {
    static_cast<unsigned char*>(address)[at] ^= 0x10;
  }
  ::munmap(address, kPoolBytes);

  ReplayProcess second(folder(), on_cache(60));
  EXPECT_EQ(second.wait(), 1);
  EXPECT_GT(second.json()["wrong_pages"], 0);
  EXPECT_NE(second.err().find("plane 1"), std::string::npos) << second.err();
  ReplayProcess unchecked(folder(), on_cache(60) + Words{"--check-bytes", "0"});
  EXPECT_EQ(unchecked.wait(), 0) << unchecked.err();
}

TEST_F(ReplayTest, ChecksThatAnExistingCacheIsWhatWasAskedFor) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ReplayProcess same(folder(), on_cache(20) + Words{"--pages", "4000", "--planes", "2"});
  EXPECT_EQ(same.wait(), 0) << same.err();
  ReplayProcess other(folder(), on_cache(20) + Words{"--pages", "4096"});
  EXPECT_EQ(other.wait(), 2);
  EXPECT_NE(other.err().find("4000"), std::string::npos) << other.err();
  ReplayProcess many(folder(), on_cache(20) + Words{"--namespaces", "60000"});
  EXPECT_EQ(many.wait(), 2);
  EXPECT_NE(many.err().find("--namespaces"), std::string::npos) << many.err();
}

TEST_F(ReplayTest, SecondReplayOnTheSameCacheFindsWhatTheFirstLeft) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ReplayProcess first(folder(), on_cache(20));
  ASSERT_EQ(first.wait(), 0) << first.err();
  ReplayProcess second(folder(), on_cache(20));
  ASSERT_EQ(second.wait(), 0) << second.err();
  EXPECT_GT(second.json()["pages_hit"], first.json()["pages_hit"]);
}

TEST_F(ReplayTest, LapsOfATraceAreOfOtherPrompts) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const std::string trace = folder() + "/trace.json";
  std::ofstream(trace) << R"({"timestamp": 7000, "input_length": 1024, "output_length": 10, "hash_ids": [1, 2]})" "\n"
                       << R"({"timestamp": 7900, "input_length": 1024, "output_length": 10, "hash_ids": [3, 4]})" "\n";
  const auto hits_of_lap = [&](const char* lap) {
    ReplayProcess replay(folder(), {"--cache", cache_.name(), "--dir", cache_.directory(), "--workers", "1", "--trace",
                                    trace, "--lap", lap});
    EXPECT_EQ(replay.wait(), 0) << replay.err();
    return replay.json()["pages_hit"].get<int>();
  };
  EXPECT_EQ(hits_of_lap("0"), 0);
  EXPECT_EQ(hits_of_lap("1"), 0);
  EXPECT_EQ(hits_of_lap("1"), 128) << "of two prompts of 64 pages";
}

TEST_F(ReplayTest, FollowsTheTracesTimeWhenAskedTo) {
  // A minute or so of trace time, on the system's clock.
  ReplayProcess replay(folder(), {"--generate", "60", "--speed", "100", "--page-bytes", "64"});
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["requests_served"], 60);
  EXPECT_GT(json["seconds"], .1);
}

TEST_F(ReplayTest, LeavesNothingBehind) {
  ReplayProcess replay(folder(), {"--generate", "40", "--page-bytes", "64"});
  EXPECT_EQ(replay.wait(), 0) << replay.err();
  EXPECT_EQ(left_behind_by(replay.pid()), Words{});
  EXPECT_NE(replay.out().find("wrong pages      0 of"), std::string::npos) << replay.out();
}

TEST_F(ReplayTest, StopsInOrderWhenItIsInterrupted) {
  ReplayProcess replay(folder(), {"--generate", "100000", "--page-bytes", "64"});
  ASSERT_TRUE(
      eventually([&] { return !left_behind_by(replay.pid()).empty() || !replay.running(); }));
  replay.send(SIGINT);
  EXPECT_EQ(replay.wait(), 4);
  EXPECT_NE(replay.err().find("signal"), std::string::npos) << replay.err();
  EXPECT_EQ(left_behind_by(replay.pid()), Words{});
}

TEST_F(ReplayTest, AWorkerThatDiesUnaskedIsAFailure) {
  KvtriedProcess daemon(cache_, daemon_words());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ReplayProcess replay(folder(), on_cache(20000));
  const Observer observer(cache_.name());
  pid_t victim = 0;
  ASSERT_TRUE(eventually([&] {
    const WorkerRecord& record = observer.segment().worker({1});
    const auto state = static_cast<SlotState>(record.slot_state.load() & 0xFF);
    if (state == SlotState::kActive) victim = static_cast<pid_t>(record.pid.load());
    return victim != 0 || !replay.running();
  }));
  ASSERT_TRUE(replay.running()) << replay.err();
  ::kill(victim, SIGKILL);
  EXPECT_EQ(replay.wait(), 4);
  EXPECT_NE(replay.err().find("was killed by signal 9"), std::string::npos) << replay.err();
  expect_clean_at_rest();
}

TEST_F(ReplayTest, SaysWhatIsWrongWithItsArguments) {
  const std::vector<Words> wrong = {
      {},
      {"--trace", "/does/not/exist"},
      {"--trace", "/dev/null"},
      {"--generate", "10", "--plugin", "/does/not/exist.so"},
      {"--generate", "10", "--policy", "best"},
      {"--generate", "10", "--pages", "1"},
      {"--generate", "10", "--limit", "-1"},
      {"--generate", "10", "--seed", "-1"},
      {"--generate", "10", "--json", "/does/not/exist/result"},
      {"--generate", "10", "--unknown"},
  };
  for (const Words& words : wrong) {
    ReplayProcess replay(folder(), words);
    EXPECT_EQ(replay.wait(), 2) << (words.empty() ? "" : words.back()) << ": " << replay.err();
    EXPECT_NE(replay.err(), "");
    EXPECT_EQ(left_behind_by(replay.pid()), Words{});
  }
}

TEST_F(ReplayTest, RequestsLongerThanThePoolFailAndTakeNoMemory) {
  // 16 GB of tokens, if its answer were held; and its time counts from 1970.
  const std::string trace = folder() + "/trace.json";
  std::ofstream(trace) << R"({"timestamp": 1700000000000, "input_length": 512, "output_length": 4000000000, )"
                       << R"("hash_ids": [1]})" << "\n"
                       << R"({"timestamp": 1700000000009, "input_length": 512, "output_length": 1, "hash_ids": [1]})"
                       << "\n";
  ReplayProcess replay(folder(), {"--trace", trace, "--pages", "128", "--page-bytes", "64", "--workers", "1"});
  EXPECT_EQ(replay.wait(), 0) << replay.err();
  EXPECT_EQ(replay.json()["failed_allocations"], 1);
  EXPECT_EQ(replay.json()["requests_served"], 1);
}

TEST_F(ReplayTest, SaysThatNothingWasServed) {
  ReplayProcess replay(folder(), {"--generate", "5", "--pages", "64", "--page-bytes", "64", "--workers", "1"});
  EXPECT_EQ(replay.wait(), 0) << replay.err();
  EXPECT_NE(replay.err().find("no request was served"), std::string::npos) << replay.err();
}

TEST_F(ReplayTest, NeedsACacheThatIsServed) {
  ReplayProcess replay(folder(), {"--generate", "10", "--cache", "there-is-no-such"});
  EXPECT_EQ(replay.wait(), 4);
  EXPECT_NE(replay.err().find("kvtried"), std::string::npos) << replay.err();
}

}  // namespace
}  // namespace kvtrie
