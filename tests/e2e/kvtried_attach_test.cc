// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Attaching to a real kvtried, by clients that behave and by clients that do not.

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <random>

#include "shm/runtime_directory.h"
#include "shm/wire_client.h"
#include "tests/support/served_cache.h"
#include "worker_plugin/attach_client.h"

namespace kvtrie {
namespace {

using test::Child;
using test::eventually;
using test::Line;

class KvtriedAttachTest : public test::ServedCacheTest {
 protected:
  KvtriedAttachTest() : ServedCacheTest(256, 4) {}

  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  AttachOptions options() const { return {address(), "e2e", WorkerRole::kWorker, 0}; }
  std::uint32_t slots(SlotState state) const {
    return WorkerTable(*segment_).stats().slots[static_cast<int>(state)];
  }
  bool answers() const {
    std::string message;
    const bool ok = ping(address(), message).ok();
    EXPECT_TRUE(ok) << message;
    return ok;
  }
  // A connected socket without any manners; closed when nobody listens.
  FileDescriptor connect(int type = SOCK_SEQPACKET) const {
    FileDescriptor fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strcpy(name.sun_path, socket_path(cache_.directory(), cache_.name()).c_str());
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0) return {};
    return fd;
  }
};

TEST_F(KvtriedAttachTest, ThousandCyclesLeakNothing) {
  const auto cycle = [this] {
    std::string message;
    Result<Attachment> got = attach(options(), message);
    ASSERT_TRUE(got) << message;
    const WorkerTable table(*segment_);
    ASSERT_TRUE(table.confirm(got->grant));
    got->connection = {};
    ASSERT_TRUE(table.leave(got->grant));
  };
  cycle();
  ASSERT_TRUE(eventually([&] { return slots(SlotState::kFree) == 4; }));
  ASSERT_TRUE(answers());
  const std::size_t before = daemon_->open_descriptors();
  for (int i = 0; i < 1000; ++i)
    cycle();
  ASSERT_TRUE(eventually([&] { return slots(SlotState::kFree) == 4; }));
  EXPECT_TRUE(eventually([&] { return daemon_->open_descriptors() <= before; }))
      << daemon_->open_descriptors();
  EXPECT_EQ(segment_->total(Counter::kAttaches), 1001U);
}

TEST_F(KvtriedAttachTest, WorkersThatDieInAttachCostNothing) {
  const std::size_t before = daemon_->open_descriptors();
  for (int i = 0; i < 40; ++i) {
    Child child([this, i](Line line) {
      std::string message;
      const Result<Attachment> got = attach(options(), message);
      if (i % 2 == 0 && got)
        (void)WorkerTable(*open_segment(cache_.name(), Access::kReadWrite)).confirm(got->grant);
      line.say();
      return line.hear() == '+' ? 0 : 1;
    });
    ASSERT_EQ(child.line().hear(), '+');
    child.kill();
  }
  EXPECT_TRUE(eventually([&] { return slots(SlotState::kFree) == 4; }));
  EXPECT_TRUE(eventually([&] { return daemon_->open_descriptors() <= before; }));
}

TEST_F(KvtriedAttachTest, AnotherPidNamespaceIsRefused) {
  Child outside([this](Line line) {
    if (::unshare(CLONE_NEWPID) != 0) {
      line.say('s');
      return 0;
    }
    const pid_t inside = ::fork();
    if (inside == 0) {
      std::string message;
      const Result<Attachment> got = attach(options(), message);
      const bool right = !got && got.error().code() == Code::kRefused &&
                         message.find("another PID namespace") != std::string::npos &&
                         message.find("shareProcessNamespace") != std::string::npos;
      ::_exit(right ? 0 : 1);
    }
    int status = 0;
    ::waitpid(inside, &status, 0);
    line.say(status == 0 ? '+' : '-');
    return 0;
  });
  const char said = outside.line().hear();
  if (said == 's') GTEST_SKIP() << "not allowed to make a PID namespace";
  EXPECT_EQ(said, '+');
  EXPECT_TRUE(daemon_->logs("reason=pid_namespace"));
  EXPECT_EQ(slots(SlotState::kFree), 4U);
}

TEST_F(KvtriedAttachTest, GarbageIsAnsweredOrDroppedAndHurtsNobody) {
  std::mt19937 random(7);  // NOLINT: the same garbage each time
  for (int i = 0; i < 2000; ++i) {
    const FileDescriptor fd = connect();
    if (!fd.open()) continue;
    std::vector<char> bytes(random() % 6000);
    for (char& byte : bytes)
      byte = static_cast<char>(random());
    if (i % 3 == 0 && bytes.size() >= sizeof(WireHeader)) {  // as far as a header goes, all is well
      const WireHeader header = wire_header(static_cast<WireKind>(random() % 6), bytes.size());
      std::memcpy(bytes.data(), &header, sizeof header);
    }
    if (i % 3 == 1) {  // of the right size, too
      auto request = make_message<AttachRequest>(static_cast<WireKind>(1 + random() % 4));
      bytes.resize(sizeof request);
      std::memcpy(bytes.data(), &request, sizeof request.header);
    }
    (void)::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  EXPECT_TRUE(answers());
  EXPECT_TRUE(eventually([&] { return slots(SlotState::kFree) == 4; }));
  EXPECT_FALSE(connect(SOCK_STREAM).open());
}

TEST_F(KvtriedAttachTest, ThousandsOfSilentConnectionsShutNobodyOut) {
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, 5000);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  const std::size_t many = std::min<std::size_t>(limit.rlim_cur - 100, 3000);
  std::vector<FileDescriptor> silent;
  for (std::size_t i = 0; i < many; ++i)
    silent.push_back(connect());
  EXPECT_TRUE(answers());
  std::string message;
  const Result<Attachment> got = attach(options(), message);
  EXPECT_TRUE(got) << message;
  EXPECT_LE(daemon_->open_descriptors(), 256U + 60);
  silent.clear();
  EXPECT_TRUE(eventually([&] { return daemon_->open_descriptors() < 60; }));
}

TEST_F(KvtriedAttachTest, SilentConnectionIsClosedAfterItsTime) {
  const FileDescriptor fd = connect();
  ASSERT_TRUE(fd.open());
  const auto start = std::chrono::steady_clock::now();
  pollfd closed{fd.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&closed, 1, test::kChildWaitMs), 1);
  char byte = 0;
  EXPECT_EQ(::recv(fd.get(), &byte, 1, 0), 0);
  const auto took = std::chrono::steady_clock::now() - start;
  EXPECT_GT(took, std::chrono::milliseconds(kWireTimeoutMs - 500));
}

TEST_F(KvtriedAttachTest, StoppedCoordinatorTimesTheClientOut) {
  daemon_->send(SIGSTOP);
  CoordinatorAddress hasty = address();
  hasty.timeout_ms = 100;
  std::string message;
  EXPECT_EQ(ping(hasty, message).code(), Code::kTimeout);
  EXPECT_NE(message.find("did not answer within 100 ms"), std::string::npos) << message;
  daemon_->send(SIGCONT);
  EXPECT_TRUE(answers());
}

TEST_F(KvtriedAttachTest, ManyProcessesAttachAndDieAtOnce) {
  std::vector<std::unique_ptr<Child>> children;
  for (int i = 0; i < 8; ++i) {
    children.push_back(std::make_unique<Child>([this](Line) {
      const Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
      if (!segment) return 1;
      const WorkerTable table(*segment);
      for (int round = 0; round < 100; ++round) {
        std::string message;
        Result<Attachment> got = attach(options(), message);
        if (!got && got.error().code() == Code::kFull) continue;  // 8 processes, 4 slots
        if (!got) return 2;
        if (!table.confirm(got->grant)) return 3;
        got->connection = {};
        if (round % 2 == 0 && !table.leave(got->grant)) return 4;
        // The other slots stay until this process ends.
      }
      return 0;
    }));
  }
  for (const auto& child : children)
    EXPECT_EQ(child->wait(), 0);
  EXPECT_TRUE(eventually([&] { return slots(SlotState::kFree) == 4; }));
}

}  // namespace
}  // namespace kvtrie
