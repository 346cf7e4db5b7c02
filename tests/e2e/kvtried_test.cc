// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtried as an operator meets it: start, second start, death, adoption, options, files, signals.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>

#include "shm/free_pages.h"
#include "shm/futex.h"
#include "shm/verify.h"
#include "shm/wire_client.h"
#include "tests/support/kvtried_process.h"
#include "worker_plugin/attach_client.h"

namespace kvtrie {
namespace {

using test::Child;
using test::KvtriedProcess;
using test::Line;

class KvtriedTest : public testing::Test {
 protected:
  static std::vector<std::string> small(std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"--pages",   "256", "--page-bytes", "1K",  "--planes",  "2",
                                      "--workers", "4",   "--metrics",    "off", "--stripes", "8"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  Result<Segment> open() const { return open_segment(cache_.name(), Access::kReadWrite); }

  test::TemporaryCache cache_{"kvtried"};
};

// A worker in a process of its own that takes pages and holds them until it is told to go.
int hold_pages(const CoordinatorAddress& address, std::uint32_t count, const Line& line,
               bool leaves) {
  std::string message;
  Result<Attachment> got = attach({address, "holder", WorkerRole::kWorker, 0}, message);
  if (!got) return 10;
  Result<Mapping> mapping =
      Mapping::map(got->segment.get(), got->segment_bytes, Access::kReadWrite);
  if (!mapping) return 11;
  Result<Segment> segment = Segment::open(std::move(*mapping));
  if (!segment || !WorkerTable(*segment).confirm(got->grant)) return 12;
  got->connection = {};
  std::uint32_t cursor = 0;
  std::vector<PageIndex> pages;
  if (FreePages(*segment).take(got->grant.slot, count, {0}, cursor, pages) != count) return 13;
  line.say();
  if (line.hear() != '+') return 14;
  return leaves && !WorkerTable(*segment).leave(got->grant) ? 15 : 0;
}

TEST_F(KvtriedTest, PrintsOneLineWhenItServes) {
  KvtriedProcess daemon(cache_, small());
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const std::string socket = cache_.directory() + "/" + cache_.name() + "/socket";
  const Result<Segment> segment = open();
  ASSERT_TRUE(segment);
  EXPECT_EQ(daemon.out(), "event=ready cache=" + cache_.name() +
                              " pages=256 page_bytes=1024 segment_bytes=" +
                              std::to_string(segment->size_bytes()) + " socket=" + socket +
                              " metrics=off adopted=0\n");
  std::string message;
  EXPECT_TRUE(ping(address(), message)) << message;
  struct stat info {};
  ASSERT_EQ(::stat(socket.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  ASSERT_EQ(::stat(cache_.segment_path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  EXPECT_EQ(segment->superblock().coordinator_pid.load(), static_cast<std::uint32_t>(daemon.pid()));
}

TEST_F(KvtriedTest, SecondStartIsRefusedWithThePidOfTheFirst) {
  KvtriedProcess first(cache_, small());
  ASSERT_TRUE(first.ready()) << first.err();
  for (const std::vector<std::string>& words : {small(), small({"--fresh"})}) {
    KvtriedProcess second(cache_, words);
    EXPECT_EQ(second.wait(), 3);
    EXPECT_NE(second.err().find("pid " + std::to_string(first.pid())), std::string::npos)
        << second.err();
    EXPECT_EQ(second.out(), "");
  }
  std::string message;
  EXPECT_TRUE(ping(address(), message)) << message;
}

TEST_F(KvtriedTest, CleanStopKeepsTheCacheAndTakesTheSocketAway) {
  for (const int signal_number : {SIGTERM, SIGINT}) {
    KvtriedProcess daemon(cache_, small());
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    daemon.send(signal_number);
    EXPECT_EQ(daemon.wait(), 0);
    EXPECT_NE(daemon.err().find("event=stopped"), std::string::npos);
    struct stat info {};
    EXPECT_NE(::stat((cache_.directory() + "/" + cache_.name() + "/socket").c_str(), &info), 0);
    const Result<Segment> segment = open();
    ASSERT_TRUE(segment);
    EXPECT_EQ(segment->superblock().coordinator_state.load(),
              static_cast<std::uint32_t>(CoordinatorState::kStopped));
  }
}

TEST_F(KvtriedTest, AdoptsAfterSigkillWithWorkersAliveDeadAndLeft) {
  KvtriedProcess first(cache_, small());
  ASSERT_TRUE(first.ready()) << first.err();
  const auto hold = [this](std::uint32_t count, bool leaves) {
    return std::make_unique<Child>(
        [=, this](Line line) { return hold_pages(address(), count, line, leaves); });
  };
  const auto alive = hold(10, false);
  ASSERT_EQ(alive->line().hear(), '+');
  const auto dead = hold(20, false);
  ASSERT_EQ(dead->line().hear(), '+');
  const auto left = hold(30, true);
  ASSERT_EQ(left->line().hear(), '+');
  const Result<Segment> segment = open();
  ASSERT_TRUE(segment);
  EXPECT_EQ(FreePages(*segment).count(), 256U - 60);

  first.send(SIGKILL);
  EXPECT_EQ(first.wait(), -SIGKILL);
  dead->kill();
  ASSERT_TRUE(left->line().say());
  EXPECT_EQ(left->wait(), 0);
  // What an eviction left half done.
  const PageIndex condemned{200};
  segment->descriptor(condemned).state.store(StateWord::make(PageState::kRetiring, 0).raw);

  KvtriedProcess second(cache_, {"--metrics", "off"});
  ASSERT_TRUE(second.ready()) << second.err();
  EXPECT_EQ(second.value("adopted"), "1");
  EXPECT_EQ(second.value("pages"), "256");
  EXPECT_NE(second.err().find("workers=1 reaped=2 condemned=0 retiring=1 orphans=0"),
            std::string::npos)
      << second.err();
  EXPECT_EQ(segment->superblock().coordinator_epoch.load(), 2U);
  EXPECT_EQ(FreePages(*segment).count(), 256U - 10) << "the living keep what they have";
  EXPECT_EQ(WorkerTable(*segment).stats().slots[static_cast<int>(SlotState::kActive)], 1U);

  alive->kill();
  EXPECT_TRUE(second.logs("event=reap worker=1")) << "the pidfd of an adopted worker is watched";
  EXPECT_TRUE(test::eventually([&] { return FreePages(*segment).count() == 256; }));
  EXPECT_EQ(second.stop(), 0);
  EXPECT_EQ(verify(*segment, {.at_rest = true}).findings.size(), 0U);
}

TEST_F(KvtriedTest, DeadPidThatIsAnothersNowIsNotTakenForTheWorker) {
  KvtriedProcess first(cache_, small());
  ASSERT_TRUE(first.ready());
  Child worker([this](Line line) { return hold_pages(address(), 10, line, false); });
  ASSERT_EQ(worker.line().hear(), '+');
  first.send(SIGKILL);
  (void)first.wait();
  const Result<Segment> segment = open();
  ASSERT_TRUE(segment);
  // The pid lives, but it is a process that started at another time.
  segment->worker({1}).start_time.fetch_sub(1);
  KvtriedProcess second(cache_, small());
  ASSERT_TRUE(second.ready()) << second.err();
  EXPECT_EQ(FreePages(*segment).count(), 256U);
}

TEST_F(KvtriedTest, RestartsAgainAndAgainUnderSigkill) {
  for (int round = 0; round < 10; ++round) {
    KvtriedProcess daemon(cache_, small());
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    EXPECT_EQ(daemon.value("adopted"), round == 0 ? "0" : "1");
    daemon.send(SIGKILL);
    (void)daemon.wait();
  }
  const Result<Segment> segment = open();
  ASSERT_TRUE(segment);
  EXPECT_EQ(segment->superblock().coordinator_epoch.load(), 10U);
}

TEST_F(KvtriedTest, OptionsThatDifferAreRefusedAndFreshBuildsAnew) {
  {
    KvtriedProcess daemon(cache_, small());
    ASSERT_TRUE(daemon.ready());
  }
  KvtriedProcess other(cache_, small({"--tokens-per-page", "32"}));
  EXPECT_EQ(other.wait(), 1);
  EXPECT_NE(other.err().find("--tokens-per-page 32 was given, but the cache there has 16"),
            std::string::npos)
      << other.err();
  KvtriedProcess fresh(cache_, small({"--tokens-per-page", "32", "--fresh"}));
  ASSERT_TRUE(fresh.ready()) << fresh.err();
  EXPECT_EQ(fresh.value("adopted"), "0");
}

TEST_F(KvtriedTest, PoisonedCacheGetsASuccessorAtTheNextStart) {
  Result<Segment> old = Status{Code::kNotFound, ""};
  {
    KvtriedProcess daemon(cache_, small());
    ASSERT_TRUE(daemon.ready());
    old = open();
    ASSERT_TRUE(old);
  }
  old->poison(PoisonReason::kLockNotRecoverable);
  KvtriedProcess next(cache_, {"--metrics", "off"});
  ASSERT_TRUE(next.ready()) << next.err();
  EXPECT_EQ(next.value("adopted"), "0");
  EXPECT_EQ(next.value("pages"), "256");
  const Result<Segment> successor = open();
  ASSERT_TRUE(successor);
  EXPECT_EQ(old->superblock().successor_id[0].load(), successor->superblock().cache_id[0]);
}

TEST_F(KvtriedTest, PoisonedCacheGetsASuccessorFromItsRunningCoordinator) {
  KvtriedProcess daemon(cache_, small({"--metrics", "127.0.0.1:0"}));
  ASSERT_TRUE(daemon.ready());
  for (int generation = 1; generation <= 3; ++generation) {
    const Result<Segment> old = open();
    ASSERT_TRUE(old);
    const std::size_t ready_before = daemon.out().size();
    old->poison(PoisonReason::kCorruptStructure);
    ASSERT_TRUE(test::eventually([&] { return daemon.out().size() > ready_before; })) << daemon.err();
    const Result<Segment> successor = open();
    ASSERT_TRUE(successor);
    EXPECT_FALSE(successor->poisoned());
    EXPECT_EQ(old->superblock().successor_id[0].load(), successor->superblock().cache_id[0]);
    EXPECT_EQ(successor->geometry(), old->geometry());
  }
  EXPECT_EQ(daemon.stop(), 0) << "the same process, and it still hears signals";
}

TEST_F(KvtriedTest, CorruptCacheIsRefusedWithWhatToDo) {
  {
    KvtriedProcess daemon(cache_, small());
    ASSERT_TRUE(daemon.ready());
    open()->superblock().tokens_per_page = 7;
  }
  KvtriedProcess next(cache_, small());
  EXPECT_EQ(next.wait(), 1);
  EXPECT_NE(next.err().find("kvtrie destroy"), std::string::npos) << next.err();
}

TEST_F(KvtriedTest, FileAndFlagsAreOne) {
  const std::string file = cache_.directory() + "/kvtried.toml";
  std::ofstream(file) << "pages = 512\npage-bytes = '1K'\nmetrics = 'off'\nworkers = 2\n";
  {
    KvtriedProcess check(cache_, {"--config", file, "--check-config"});
    EXPECT_EQ(check.wait(), 0) << check.err();
    EXPECT_EQ(check.out(), "event=config_ok cache=" + cache_.name() + "\n");
  }
  {
    KvtriedProcess daemon(cache_, {"--config", file, "--pages", "128"});
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    EXPECT_EQ(daemon.value("pages"), "128") << "a flag beats the file";
    EXPECT_EQ(open()->geometry().workers, 2U);
  }
  std::ofstream(file) << "pages = 512\nworker = 2\n";
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"--config", file}, {"--config", file, "--check-config"}}) {
    KvtriedProcess daemon(cache_, words);
    EXPECT_EQ(daemon.wait(), 2);
    EXPECT_NE(daemon.err().find("kvtried.toml:2: worker: unknown key"), std::string::npos)
        << daemon.err();
  }
}

TEST_F(KvtriedTest, UsageErrorsExitWithTwo) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{"--pages", "x"},
                                             {"--nonsense"},
                                             {"--low", "5", "--high", "4"},
                                             {"--policy", "fifo"},
                                             {"--metrics", "x"},
                                             {"--page-bytes", "4KB"},
                                             {"--pages", "8", "--page-bytes", "64"},
                                             {"--planes", "65", "--check-config"},
                                             {"--config", "/tmp", "--check-config"},
                                             {"--config", "", "--check-config"},
                                             {}}) {
    KvtriedProcess daemon(cache_, words);
    EXPECT_EQ(daemon.wait(), 2) << daemon.err();
    EXPECT_NE(daemon.err(), "");
  }
}

TEST_F(KvtriedTest, MetricsPortInUseIsAClearError) {
  KvtriedProcess first(cache_, small({"--metrics", "127.0.0.1:0"}));
  ASSERT_TRUE(first.ready()) << first.err();
  const test::TemporaryCache other("kvtried");
  KvtriedProcess second(other, small({"--metrics", first.value("metrics")}));
  EXPECT_EQ(second.wait(), 1);
  EXPECT_NE(second.err().find("--metrics"), std::string::npos) << second.err();
  EXPECT_EQ(second.out(), "");
  EXPECT_FALSE(open_segment(other.name(), Access::kReadOnly)) << "it was made all the same";
}

TEST_F(KvtriedTest, FreshStartThatCannotServeLeavesTheCacheAsItWas) {
  {
    KvtriedProcess daemon(cache_, small());
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    EXPECT_EQ(daemon.stop(), 0);
  }
  const test::TemporaryCache other("kvtried");
  KvtriedProcess elsewhere(other, small({"--metrics", "127.0.0.1:0"}));
  ASSERT_TRUE(elsewhere.ready()) << elsewhere.err();
  const Result<Segment> before = open();
  ASSERT_TRUE(before);
  KvtriedProcess fresh(cache_, small({"--fresh", "--metrics", elsewhere.value("metrics")}));
  EXPECT_EQ(fresh.wait(), 1) << fresh.err();
  const Result<Segment> after = open();
  ASSERT_TRUE(after);
  EXPECT_EQ(after->superblock().cache_id[0], before->superblock().cache_id[0]);
  EXPECT_FALSE(before->poisoned());
}

TEST_F(KvtriedTest, SecondStartWithAnotherDirectoryIsRefusedWithThePidOfTheFirst) {
  KvtriedProcess first(cache_, small());
  ASSERT_TRUE(first.ready()) << first.err();
  KvtriedProcess second(cache_, small({"--dir", cache_.directory() + "/other"}));
  EXPECT_EQ(second.wait(), 3);
  EXPECT_NE(second.err().find("pid " + std::to_string(first.pid())), std::string::npos) << second.err();
}

TEST_F(KvtriedTest, ServesMetricsAndStopsQuickly) {
  if (std::system("curl --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "curl is not installed";
  KvtriedProcess daemon(cache_, small({"--metrics", "127.0.0.1:0"}));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const std::string scrape = "curl -sf http://" + daemon.value("metrics") +
                             "/metrics | grep -q '^kvtrie_pages{state=\"free\"} 256$'";
  EXPECT_EQ(std::system(scrape.c_str()), 0);
  EXPECT_EQ(daemon.stop(), 0);
}

TEST_F(KvtriedTest, EvictsWhenAWorkerRings) {
  KvtriedProcess daemon(cache_, small({"--low", "10", "--high", "20"}));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const Result<Segment> segment = open();
  ASSERT_TRUE(segment);
  // 250 Live leaves below the root, not in the index: eviction does not mind.
  const Result<OpenNamespace> name_space = [&] {
    std::string message;
    return request_namespace(address(), "a=1\n", "", message);
  }();
  ASSERT_TRUE(name_space);
  std::uint32_t cursor = 0;
  std::vector<PageIndex> pages;
  ASSERT_EQ(FreePages(*segment).take({1}, 250, {0}, cursor, pages), 250U);
  for (const PageIndex page : pages) {
    segment->descriptor(page).parent.store(name_space->root().raw);
    segment->descriptor(page).state.store(StateWord::make(PageState::kLive, 0).raw);
  }
  FreePages(*segment).drop_held({1}, pages);
  ring(segment->superblock().doorbell);
  EXPECT_TRUE(test::eventually([&] { return FreePages(*segment).count() == 52; })) << "20 % of 256";
  EXPECT_EQ(segment->total(Counter::kEvictions), 46U);
}

}  // namespace
}  // namespace kvtrie
