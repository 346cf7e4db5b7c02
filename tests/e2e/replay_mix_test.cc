// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie-replay --mix: every call of the plugin by four processes at once, without and with deaths; that it sees bytes
// which somebody spoils meanwhile, and calls that a long run did not use.
#include <sys/mman.h>
#include <sys/wait.h>

#include <fstream>
#include <memory>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "shm/verify.h"
#include "tests/e2e/replay_process.h"
#include "tests/support/eventually.h"
#include "tests/support/kvtried_process.h"
#include "tools/replay/mix_report.h"

namespace kvtrie {
namespace {

using replay::Census;
using replay::MixCall;
using replay::MixEvent;
using replay::MixTally;
using replay::Observer;
using test::eventually;
using test::KvtriedProcess;
using test::ReplayProcess;

using Words = std::vector<std::string>;

constexpr std::size_t kPages = 4000;
constexpr std::size_t kPageBytes = 512;

// The names in the table of calls, as the header has it.
std::set<std::string> calls_of_the_table() {
  std::ifstream file(std::string(KVTRIE_TEST_SOURCE_DIR) + "/worker_plugin/kvtrie.h");
  const std::string header{std::istreambuf_iterator<char>(file), {}};
  const std::size_t begin = header.find("typedef struct kvtrie_api {");
  const std::size_t end = header.find("} kvtrie_api;");
  if (begin == std::string::npos || end == std::string::npos) return {};
  const std::string table = header.substr(begin, end - begin);
  static const std::regex pointer(R"(\(\*(\w+)\)\()");
  std::set<std::string> names;
  for (std::sregex_iterator it(table.begin(), table.end(), pointer); it != std::sregex_iterator(); ++it)
    names.insert((*it)[1]);
  return names;
}

class ReplayMixTest : public testing::Test {
 protected:
  ReplayMixTest() { EXPECT_TRUE(daemon_.ready()) << daemon_.err(); }
  Words mix_of(std::uint32_t requests, const Words& more = {}) const {
    Words words = {"--mix", "--cache",     cache_.name(), "--dir",      cache_.directory(),      "--workers",
                   "4",     "--in-flight", "4",           "--generate", std::to_string(requests)};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  std::string folder() const { return cache_.directory(); }

  // Nothing is held or lost any more, as `kvtrie verify` of an operator sees it, too.
  void expect_clean_at_the_end() const {
    const Observer observer(cache_.name());
    const Census census = observer.census_at_rest(std::chrono::seconds(20));
    EXPECT_EQ(census.free_bits + census.in(PageState::kLive), kPages);
    VerifyReport report;
    const bool clean = eventually([&] {
      report = verify(observer.segment(), {.at_rest = true});
      return report.clean();
    });
    EXPECT_TRUE(clean) << (report.findings.empty() ? "" : to_string(report.findings.front()));
    const std::string command = std::string(KVTRIE_TEST_BIN_DIR) + "/kvtrie --cache " + cache_.name() + " --dir " +
                                cache_.directory() + " verify >" + cache_.directory() + "/verify 2>&1";
    const int status = std::system(command.c_str());
    std::ifstream said(cache_.directory() + "/verify");
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << std::string{std::istreambuf_iterator<char>(said), {}};
  }

  test::TemporaryCache cache_{"replay-mix"};
  KvtriedProcess daemon_{cache_, {"--pages",      std::to_string(kPages),
                                  "--page-bytes", std::to_string(kPageBytes),
                                  "--planes",     "2",
                                  "--workers",    "60",
                                  "--metrics",    "off",
                                  "--clock",      "driven",
                                  "--tick-ns",    "1000000",
                                  "--low",        "2",
                                  "--high",       "5",
                                  "--namespaces", "16"}};
};

TEST_F(ReplayMixTest, UsesEveryCallAndReadsNoWrongPage) {
  ReplayProcess replay(folder(), mix_of(250));
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_EQ(json["requests_served"].get<int>() + json["failed_allocations"].get<int>(), 250);
  EXPECT_GT(json["mix"]["events"]["operations"], replay::kMixLongEnough);
  const std::set<std::string> names = calls_of_the_table();
  ASSERT_GE(names.size(), 30U);
  const std::string text = replay.out();
  for (const std::string& name : names) {
    EXPECT_NE(text.find("\n  " + name + " "), std::string::npos) << name << " is not in the table:\n" << text;
    EXPECT_GT(json["mix"]["calls"][name].value("ok", 0), 0) << name;
  }
  // Whether the calls met what they are for.
  for (const char* event :
       {"begins that matched pages", "matches inside a page", "... copied by the plugin",
        "pages copied by the caller (KVTRIE_NO_COPY)", "incomplete pages published", "... continued in a copy",
        "pages shared inside a batch", "pages that forks shared", "pages that forks copied", "waits that ran out",
        "pages given back", "own pages beside another's page", "flushes", "publishes and waits refused after a flush",
        "pages evicted by request", "requests preempted", "prefixes under a lease that were looked for"}) {
    EXPECT_GT(json["mix"]["events"][event], 0) << event;
  }
  expect_clean_at_the_end();
}

TEST_F(ReplayMixTest, WorkersAreKilledInTheMidstOfIt) {
  ReplayProcess replay(folder(), mix_of(250, {"--kill-workers", "30", "--mix-seed", "7"}));
  ASSERT_EQ(replay.wait(), 0) << replay.err();
  const nlohmann::json json = replay.json();
  EXPECT_EQ(json["wrong_pages"], 0);
  EXPECT_GT(json["deaths"], 10);
  EXPECT_EQ(json["requests_served"].get<int>() + json["failed_allocations"].get<int>(), 250);
  expect_clean_at_the_end();
}

TEST_F(ReplayMixTest, SeesBytesThatSomebodySpoilsMeanwhile) {
  const Result<FileDescriptor> pool = open_object(pool_object_name(cache_.name(), 1), Access::kReadWrite);
  ASSERT_TRUE(pool);
  void* address = ::mmap(nullptr, kPages * kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, pool->get(), 0);
  ASSERT_NE(address, MAP_FAILED);
  ReplayProcess replay(folder(), mix_of(2000));
  const Observer observer(cache_.name());
  ASSERT_TRUE(eventually([&] { return observer.segment().total(Counter::kPagesHit) >= 1000 || !replay.running(); }));
  ASSERT_TRUE(replay.running()) << replay.err();
  // The last bit of each page: the last head of its last token, in the last layer.
  for (std::size_t end = kPageBytes; end <= kPages * kPageBytes; end += kPageBytes) {
    static_cast<unsigned char*>(address)[end - 1] ^= 0x80;
  }
  ::munmap(address, kPages * kPageBytes);
  EXPECT_EQ(replay.wait(), 1);
  EXPECT_NE(replay.err().find("plane 1, first wrong token 15"), std::string::npos) << replay.err();
}

TEST(MixReportTest, ALongRunThatNeverUsedACallHasFailed) {
  auto tally = std::make_unique<MixTally>();
  for (std::size_t call = 0; call < replay::kMixCalls; ++call) {
    if (static_cast<MixCall>(call) != MixCall::give_back) tally->add(static_cast<MixCall>(call), KVTRIE_E_INVALID);
  }
  tally->add(MixEvent::kOperations, replay::kMixLongEnough - 1);
  EXPECT_EQ(replay::mix_problem(*tally), "");
  tally->add(MixEvent::kOperations);
  EXPECT_NE(replay::mix_problem(*tally).find("never used: give_back"), std::string::npos)
      << replay::mix_problem(*tally);
  EXPECT_NE(replay::mix_to_text(*tally).find("\n  give_back "), std::string::npos);
  tally->add(MixCall::give_back, KVTRIE_OK);
  EXPECT_EQ(replay::mix_problem(*tally), "");
}

}  // namespace
}  // namespace kvtrie
