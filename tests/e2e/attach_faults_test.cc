// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker dies before each system call of attaching; ten thousand connections are open at once; kvtried runs out of
// descriptors. The slot comes back, nothing stays open, and workers that are there, new ones and requests are served.

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <vector>

#include "shm/runtime_directory.h"
#include "shm/wire_client.h"
#include "tests/e2e/stopped_fixture.h"
#include "tests/support/death_in_child.h"
#include "tests/support/plugin_worker.h"
#include "tests/support/survivors.h"

namespace kvtrie {
namespace {

using test::eventually;
using test::PluginWorker;
using test::Survivors;

constexpr std::size_t kConnections = 10'000;
constexpr std::size_t kConnectionsLeast = 3'000;  // with fewer it would show nothing

class AttachFaultsTest : public test::StoppedFixture {
 protected:
  void TearDown() override {
    connections_.clear();
    test::StoppedFixture::TearDown();
  }
  std::uint32_t free_slots() const {
    return WorkerTable(*segment_).stats().slots[static_cast<std::size_t>(SlotState::kFree)];
  }
  void connect(std::size_t count) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strcpy(name.sun_path, socket_path(cache_.directory(), cache_.name()).c_str());
    for (std::size_t i = 0; i < count; ++i) {
      FileDescriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
      ASSERT_TRUE(fd.open());
      ASSERT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name), 0) << std::strerror(errno);
      connections_.push_back(std::move(fd));
    }
  }
  void expect_serves() const {
    std::string message;
    EXPECT_TRUE(ping({cache_.directory(), cache_.name()}, message)) << message;
    try {
      const PluginWorker worker(cache_);
      PluginWorker::release(worker.cache(PluginWorker::prompt(10, 2)));
      std::uint64_t evicted = 0;
      PluginWorker::must(kvtrie_evict(worker.worker, worker.space, 1, &evicted), "evict");
      worker.detach();
    } catch (const test::Wrong& wrong) {
      ADD_FAILURE() << wrong.what();
    }
  }

  std::vector<FileDescriptor> connections_;
};

// Killed before its n-th system call; false: it has fewer and ended.
bool dies_before_call(unsigned n, const std::function<void()>& work) {
  return test::run_by_calls(work, [n](unsigned at) { return at != n; }) == n;
}

TEST_F(AttachFaultsTest, DiesBeforeEachSystemCallOfAttach) {
  const auto cycle = [this] {
    const PluginWorker worker(cache_);  // attaches, opens a namespace
    worker.detach();
  };
  ASSERT_FALSE(dies_before_call(0, cycle));
  ASSERT_TRUE(eventually([&] { return free_slots() == kWorkers; }));
  const std::size_t before = daemon_->open_descriptors();
  unsigned calls = 0;
  while (dies_before_call(calls + 1, cycle)) {
    ++calls;
    ASSERT_TRUE(eventually([&] { return free_slots() == kWorkers; })) << "call " << calls;
    ASSERT_TRUE(eventually([&] { return daemon_->open_descriptors() <= before; })) << "call " << calls;
    ASSERT_LT(calls, 1'000U);
  }
  EXPECT_GT(calls, 20U);
  EXPECT_GT(segment_->total(Counter::kReapedWorkers), 5U) << "some died with a slot";
  expect_serves();
}

TEST_F(AttachFaultsTest, TenThousandConnectionsAtOnceShutNobodyOut) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  const std::size_t count = std::min<std::size_t>(limit.rlim_cur - 200, kConnections);
  if (count < kConnectionsLeast) GTEST_SKIP() << "RLIMIT_NOFILE is " << limit.rlim_cur;
  Survivors survivors(cache_, 2, 30);
  ASSERT_TRUE(survivors.go_on(20, std::chrono::milliseconds(0)));
  const std::size_t before = daemon_->open_descriptors();
  survivors.clear_times();
  connect(count);
  EXPECT_TRUE(survivors.go_on(20, std::chrono::milliseconds(0)));
  survivors.expect_nobody_waited("connections", test::kLongest);
  EXPECT_LE(daemon_->open_descriptors(), before + 256);
  expect_serves();
  connections_.clear();
  EXPECT_TRUE(eventually([&] { return daemon_->open_descriptors() <= before; }));
  survivors.end();
}

// Silent connections at its limit: the oldest of them go, a few descriptors stay for the workers' lives.
TEST_F(AttachFaultsTest, SilentConnectionsLeaveDescriptorsForWorkers) {
  Survivors survivors(cache_, 2, 30);
  ASSERT_TRUE(survivors.go_on(20, std::chrono::milliseconds(0)));
  const std::size_t before = daemon_->open_descriptors();
  const rlimit small{before + 40, before + 40};
  ASSERT_EQ(::prlimit(daemon_->pid(), RLIMIT_NOFILE, &small, nullptr), 0);
  connect(300);
  for (int i = 0; i < 5; ++i) expect_serves();
  EXPECT_LE(daemon_->open_descriptors(), before + 40);
  EXPECT_TRUE(survivors.go_on(20, std::chrono::milliseconds(0)));
  connections_.clear();
  EXPECT_TRUE(eventually([&] { return daemon_->open_descriptors() <= before; }));
  survivors.end();
}

}  // namespace
}  // namespace kvtrie
