// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtried under an operator's hands: signals, pins over restarts, health pages, prefault, real-time
// priority.

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/socket.h>

#include <fstream>

#include "shm/admin_client.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "tests/support/attached_worker.h"
#include "tests/support/kvtried_process.h"

namespace kvtrie {
namespace {

using test::AttachedWorker;
using test::eventually;
using test::KvtriedProcess;

class KvtriedAdminTest : public testing::Test {
 protected:
  static std::vector<std::string> small(std::vector<std::string> more = {}) {
    std::vector<std::string> words = {"--pages",   "256", "--page-bytes", "1K",
                                      "--workers", "4",   "--stripes",    "8"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  std::string write_config(const std::string& text) const {
    const std::string path = cache_.directory() + "/kvtried.toml";
    std::ofstream(path) << text;
    return path;
  }
  // The answer to a GET, head and body; empty: nobody answers.
  static std::string get(const std::string& host_and_port, const std::string& page) {
    const std::size_t colon = host_and_port.rfind(':');
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(host_and_port.substr(colon + 1))));
    ::inet_pton(AF_INET, host_and_port.substr(0, colon).c_str(), &to.sin_addr);
    const FileDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) return {};
    const std::string request = "GET " + page + " HTTP/1.0\r\n\r\n";
    if (::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return {};
    std::string answer;
    char part[4096];
    for (ssize_t got; (got = ::recv(socket.get(), part, sizeof part, 0)) > 0;)
      answer.append(part, static_cast<std::size_t>(got));
    return answer;
  }
  static bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }

  test::TemporaryCache cache_{"kvtried-admin"};
  std::string message_;
};

TEST_F(KvtriedAdminTest, HangupRereadsTheFileAndSaysWhatCannotChange) {
  const std::string path = write_config("low = 1\nhigh = 2\npages = 256\n");
  KvtriedProcess daemon(cache_, {"--config", path, "--page-bytes", "1K", "--metrics", "off"});
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  (void)write_config("low = 10\nhigh = 20\npages = 512\nallow-uid = 12345\n");
  daemon.send(SIGHUP);
  EXPECT_TRUE(daemon.logs("event=reload changed=low,high,allow-uid")) << daemon.err();
  EXPECT_TRUE(
      daemon.logs("event=reload_ignored setting=pages needs=\"a new cache (kvtried --fresh)\""))
      << daemon.err();
  EXPECT_TRUE(eventually([&] { return segment->superblock().low_pages.load() == 26; }));
  (void)write_config("low = \"many\"\n");
  daemon.send(SIGHUP);
  EXPECT_TRUE(daemon.logs("event=reload_failed")) << daemon.err();
  EXPECT_TRUE(daemon.logs("everything stays as it was"));
  EXPECT_EQ(segment->superblock().low_pages.load(), 26U);
  EXPECT_EQ(daemon.stop(), 0);
}

TEST_F(KvtriedAdminTest, PinsOutliveTheCoordinator) {
  KvtriedProcess first(cache_, small({"--metrics", "off"}));
  ASSERT_TRUE(first.ready()) << first.err();
  Handle page;
  {
    AttachedWorker worker(address());
    ASSERT_TRUE(worker.attached()) << kvtrie_last_error();
    worker.cache(worker.open("m"), AttachedWorker::prompt(0, 2));
  }
  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  for (std::uint32_t i = 0; i < segment->page_count(); ++i) {
    const StateWord word = PageTable(*segment).state({i});
    if (word.readable() && depth_in(segment->descriptor({i}).depth_class.load()) == 2)
      page = Handle::page({i}, word);
  }
  ASSERT_TRUE(request_pin(address(), {page, 3600, "kept"}, message_)) << message_;
  first.send(SIGKILL);
  (void)first.wait();
  KvtriedProcess second(cache_, {"--metrics", "off"});
  ASSERT_TRUE(second.ready()) << second.err();
  const Result<EvictedPages> evicted = request_eviction(address(), 0, {}, message_);
  ASSERT_TRUE(evicted) << message_;
  EXPECT_EQ(evicted->evicted, 0U);
  EXPECT_EQ(evicted->pinned, 1U);
  const std::vector<Pin> pins = PinTable(*segment).list();
  ASSERT_EQ(pins.size(), 1U);
  EXPECT_EQ(pins[0].reason, "kept");
  EXPECT_TRUE(request_unpin(address(), pins[0].number, pins[0].page, message_)) << message_;
  EXPECT_EQ(second.stop(), 0);
}

TEST_F(KvtriedAdminTest, FlushedPagesOfADeadCoordinatorGoAtTheNextStart) {
  auto first = std::make_unique<KvtriedProcess>(cache_, small({"--metrics", "off"}));
  ASSERT_TRUE(first->ready()) << first->err();
  AttachedWorker worker(address());
  ASSERT_TRUE(worker.attached()) << kvtrie_last_error();
  const kvtrie_namespace space = worker.open("m");
  worker.cache(space, AttachedWorker::prompt(0, 2));
  kvtrie_sequence held{};
  ASSERT_EQ(worker.begin(space, AttachedWorker::prompt(0, 2), held), 32U);
  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  ASSERT_TRUE(
      request_flush(address(), {{0}, segment->name_space({0}).fields_hash.load()}, message_))
      << message_;
  first->send(SIGKILL);
  (void)first->wait();
  (void)kvtrie_release(held);
  EXPECT_EQ(PageTable(*segment).stats().of(PageState::kLive), 2U);
  KvtriedProcess second(cache_, {"--metrics", "off"});
  ASSERT_TRUE(second.ready()) << second.err();
  EXPECT_TRUE(eventually([&] { return PageTable(*segment).stats().of(PageState::kLive) == 0; }));
}

TEST_F(KvtriedAdminTest, HealthPagesSayWhatIsWrong) {
  KvtriedProcess daemon(cache_, small({"--metrics", "127.0.0.1:0"}));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const std::string where = daemon.value("metrics");
  EXPECT_TRUE(has(get(where, "/healthz"), " 200 ")) << get(where, "/healthz");
  EXPECT_TRUE(has(get(where, "/readyz"), "\r\n\r\nok\n")) << get(where, "/readyz");
  ASSERT_TRUE(request_drain(address(), false, message_)) << message_;
  const std::string drained = get(where, "/readyz");
  EXPECT_TRUE(has(drained, " 503 ") && has(drained, "draining")) << drained;
  EXPECT_TRUE(has(get(where, "/healthz"), " 200 "));
  EXPECT_TRUE(has(get(where, "/metrics"), "\nkvtrie_draining 1\n"));
  ASSERT_TRUE(request_drain(address(), true, message_)) << message_;
  EXPECT_TRUE(has(get(where, "/readyz"), " 200 "));
  EXPECT_EQ(daemon.stop(), 0);
}

TEST_F(KvtriedAdminTest, StopEndsItAsATermSignalDoes) {
  KvtriedProcess daemon(cache_, small({"--metrics", "off"}));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  ASSERT_TRUE(request_stop(address(), message_)) << message_;
  EXPECT_EQ(daemon.wait(), 0);
  EXPECT_TRUE(has(daemon.err(), "event=stopped"));
  EXPECT_TRUE(open_segment(cache_.name(), Access::kReadOnly)) << "the cache stays";
}

TEST_F(KvtriedAdminTest, PrefaultsInTheBackgroundAndSaysWhenItIsDone) {
  KvtriedProcess daemon(cache_, small({"--metrics", "127.0.0.1:0", "--prefault"}));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  EXPECT_TRUE(daemon.logs("event=prefault")) << daemon.err();
  if (has(daemon.err(), "no MADV_POPULATE_WRITE")) GTEST_SKIP() << "the kernel cannot do it";
  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  const std::string bytes = std::to_string(segment->size_bytes() + 256 * 1024);
  EXPECT_TRUE(has(daemon.err(), "event=prefault bytes=" + bytes)) << daemon.err();
  const std::string metrics = get(daemon.value("metrics"), "/metrics");
  EXPECT_TRUE(has(metrics, "kvtrie_prefault_goal_bytes") && has(metrics, "kvtrie_prefaulted_bytes"))
      << metrics;
  EXPECT_EQ(daemon.stop(), 0);
}

TEST_F(KvtriedAdminTest, WaitsAtRealTimePriorityWhereThatIsPermitted) {
  KvtriedProcess daemon(cache_, small({"--metrics", "off", "--realtime", "1"}));
  if (!daemon.ready()) {
    EXPECT_TRUE(has(daemon.err(), "LimitRTPRIO=1")) << daemon.err();
    EXPECT_EQ(daemon.wait(), 1);
    GTEST_SKIP() << "real-time priority is not permitted here";
  }
  EXPECT_TRUE(eventually(
      [&] { return (::sched_getscheduler(daemon.pid()) & ~SCHED_RESET_ON_FORK) == SCHED_RR; }));
  EXPECT_EQ(daemon.stop(), 0);
}

}  // namespace
}  // namespace kvtrie
