// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/process_identity.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;

// Fields 3 to 52 of /proc/PID/stat, each its own number, so a field off by one shows.
std::string stat_text(const std::string& name) {
  std::string text = "77 (" + name + ") S";
  for (int field = 4; field <= 52; ++field)
    text += " " + std::to_string(1000 + field);
  return text + "\n";
}

std::uint32_t pid_of(const Child& child) { return static_cast<std::uint32_t>(child.pid()); }

TEST(ProcessIdentityTest, ReadsStartTimeAfterTheLastParenthesis) {
  for (const char* name : {"cat", "a b", "a) R 1 2", "((", ")", ") S 1 2 3 (", ""}) {
    const Result<std::uint64_t> value = parse_start_time(stat_text(name));
    ASSERT_TRUE(value) << name;
    EXPECT_EQ(*value, 1022U) << name;
  }
}

TEST(ProcessIdentityTest, RefusesWhatIsNotAStatText) {
  for (const char* text : {"", "77", "77 (cat)", "77 (cat) ", "77 (cat) S 1 2 3", ")"})
    EXPECT_FALSE(parse_start_time(text)) << text;
  std::string text = stat_text("cat");
  text.replace(text.find("1022"), 4, "10x2");
  EXPECT_FALSE(parse_start_time(text));
}

TEST(ProcessIdentityTest, ReadsItsOwnStartTime) {
  const Result<std::uint64_t> own = own_start_time();
  const Result<std::uint64_t> same = start_time_of(static_cast<std::uint32_t>(::getpid()));
  ASSERT_TRUE(own && same);
  EXPECT_GT(*own, 0U);
  EXPECT_EQ(*own, *same);
}

TEST(ProcessIdentityTest, ReadsBootIds) {
  const Result<BootId> parsed = parse_boot_id("00112233-4455-6677-8899-aAbBcCdDeEfF\n");
  ASSERT_TRUE(parsed);
  EXPECT_EQ((*parsed)[1], 0x11);
  EXPECT_EQ((*parsed)[15], 0xff);
  for (const char* text : {"", "0011", "00112233-4455-6677-8899-aabbccddeeff00",
                           "x0112233-4455-6677-8899-aabbccddeeff"})
    EXPECT_FALSE(parse_boot_id(text)) << text;
  const Result<BootId> own = read_boot_id();
  ASSERT_TRUE(own);
  EXPECT_NE(*own, BootId{});
}

TEST(ProcessIdentityTest, CountsPidNamespaces) {
  EXPECT_EQ(count_nspid("Name:\tx\nNSpid:\t12\nNSpgid:\t1\n"), 1U);
  EXPECT_EQ(count_nspid("Name:\tx\nNSpid:\t12\t7\t1\nNSpgid:\t1\n"), 3U);
  EXPECT_EQ(count_nspid("Name:\tNSpid: 1\n"), 0U);
}

TEST(ProcessIdentityTest, KnowsItsOwnPidNamespace) {
  const Result<bool> own = in_own_pid_namespace(static_cast<std::uint32_t>(::getpid()));
  ASSERT_TRUE(own);
  EXPECT_TRUE(*own);
  const Result<bool> unseen = in_own_pid_namespace(0);
  ASSERT_TRUE(unseen);
  EXPECT_FALSE(*unseen);
}

TEST(ProcessIdentityTest, PidfdReportsDeathOnlyAfterIt) {
  Child child([](Line line) { return line.hear() == '+' ? 0 : 1; });
  Result<FileDescriptor> pidfd = open_pidfd(pid_of(child));
  ASSERT_TRUE(pidfd);
  EXPECT_EQ(::fcntl(pidfd->get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_FALSE(pidfd_reports_death(pidfd->get()));
  ASSERT_TRUE(child.stop());
  EXPECT_FALSE(pidfd_reports_death(pidfd->get()));
  child.kill();
  EXPECT_TRUE(pidfd_reports_death(pidfd->get()));
}

TEST(ProcessIdentityTest, OpensOnlyTheProcessThatIsMeant) {
  Child child([](Line line) { return line.hear() == '+' ? 0 : 1; });
  const std::uint32_t pid = pid_of(child);
  const Result<std::uint64_t> start_time = start_time_of(pid);
  ASSERT_TRUE(start_time);
  EXPECT_TRUE(open_pidfd_of(pid, *start_time));
  EXPECT_EQ(open_pidfd_of(pid, *start_time + 1).error().code(), Code::kNotFound);
  EXPECT_EQ(open_pidfd_of(0, *start_time).error().code(), Code::kNotFound);
  child.kill();
  EXPECT_EQ(open_pidfd_of(pid, *start_time).error().code(), Code::kNotFound);
}

TEST(ProcessIdentityTest, WantOfDescriptorsIsNotADeath) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit none{0, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  const auto self = static_cast<std::uint32_t>(::getpid());
  const Status pidfd = open_pidfd(self).error();
  const Status start_time = start_time_of(self).error();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(pidfd.code(), Code::kSystem);
  EXPECT_EQ(start_time.code(), Code::kSystem);
}

TEST(ProcessIdentityTest, ZombieIsDead) {
  Child child([](Line line) { return line.hear() == '+' ? 0 : 1; });
  const std::uint32_t pid = pid_of(child);
  const Result<std::uint64_t> start_time = start_time_of(pid);
  const Result<FileDescriptor> pidfd = open_pidfd(pid);
  ASSERT_TRUE(start_time && pidfd);
  child.send(SIGKILL);
  pollfd wait{pidfd->get(), POLLIN, 0};
  ASSERT_EQ(::poll(&wait, 1, test::kChildWaitMs), 1);
  // Not waited for: it still has its pid and its entry in /proc.
  EXPECT_EQ(open_pidfd_of(pid, *start_time).error().code(), Code::kNotFound);
}

// A process whose first thread ended looks like a zombie in /proc, and may hold pages all the same.
TEST(ProcessIdentityTest, ProcessWithoutItsFirstThreadIsAlive) {
  Child child([](Line line) {
    static Line* shared = new Line(line);
    std::thread([] {
      while (true) {
        char text[256] = {};
        const FileDescriptor fd(::open("/proc/self/stat", O_RDONLY | O_CLOEXEC));
        if (::read(fd.get(), text, sizeof text - 1) > 0 &&
            std::string(text).find(") Z ") != std::string::npos)
          break;
      }
      shared->say();
      ::_exit(shared->hear() == '+' ? 0 : 1);
    }).detach();
    ::syscall(SYS_exit, 0);  // this thread only
    return 1;
  });
  ASSERT_EQ(child.line().hear(), '+');
  const Result<std::uint64_t> start_time = start_time_of(pid_of(child));
  ASSERT_TRUE(start_time);
  EXPECT_TRUE(open_pidfd_of(pid_of(child), *start_time));
}

}  // namespace
}  // namespace kvtrie
