// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie as a program: exit codes and streams that scripts see, a real kvtried, and a segment that
// vanishes.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "shm/runtime_directory.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kPatience = std::chrono::seconds(20);

// A program with its output on a pipe; killed when the test ends before it does.
class Child {
 public:
  Child(const std::string& program, const std::vector<std::string>& arguments) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const std::string path = std::string(KVTRIE_TEST_BIN_DIR) + "/" + program;
    std::vector<char*> argv{const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::dup2(ends[1], STDERR_FILENO);
      ::execv(path.c_str(), argv.data());
      ::_exit(127);
    }
    ::close(ends[1]);
    output_ = FileDescriptor(ends[0]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  pid_t pid() const { return pid_; }
  const std::string& text() const { return text_; }

  // Reads until `what` came or the output ended; false: it did not come.
  bool wait_for(const std::string& what) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (text_.find(what) == std::string::npos) {
      if (std::chrono::steady_clock::now() > deadline || !read_some()) return false;
    }
    return true;
  }

  // Exit code; 128 + signal.
  int finish() {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (read_some()) {
      if (std::chrono::steady_clock::now() > deadline) ::kill(pid_, SIGKILL);
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  bool read_some() {
    pollfd wait{output_.get(), POLLIN, 0};
    if (::poll(&wait, 1, 100) == 0) return true;
    char buffer[4096];
    const ssize_t got = ::read(output_.get(), buffer, sizeof buffer);
    if (got > 0) text_.append(buffer, static_cast<std::size_t>(got));
    return got > 0;
  }

  pid_t pid_ = -1;
  FileDescriptor output_;
  std::string text_;
};

struct Ended {
  int code;
  std::string text;
};

Ended kvtrie(const std::vector<std::string>& arguments) {
  Child child("kvtrie", arguments);
  const int code = child.finish();
  return {code, child.text()};
}

TEST(ProgramTest, ExitCodesAreThoseOfTheTable) {
  const SmallCache cache;
  EXPECT_EQ(kvtrie({"status", "--cache", cache.name()}).code, 0);
  EXPECT_EQ(kvtrie({"--cache", cache.name(), "--json", "workers"}).code, 0);
  EXPECT_EQ(kvtrie({"verify", "--cache", cache.name()}).code, 0);
  EXPECT_EQ(kvtrie({"--help"}).code, 0);
  EXPECT_EQ(kvtrie({"nonsense"}).code, 2);
  EXPECT_EQ(kvtrie({"status", "--cache", "no-such-cache"}).code, 3);
  EXPECT_EQ(kvtrie({"page", "256", "--cache", cache.name()}).code, 3);
  cache.segment().poison(PoisonReason::kOperator);
  EXPECT_EQ(kvtrie({"verify", "--cache", cache.name()}).code, 1);
  cache.segment().superblock().page_count = 1;
  EXPECT_EQ(kvtrie({"status", "--cache", cache.name()}).code, 4);
}

// Cuts the segment off while verify looks at it; kvtrie's exit code and text.
Ended verify_cut_off() {
  const SmallCache cache;
  // Something that looks wrong is looked at again for a while: the object is cut off in that time.
  cache.segment().descriptor({3}).state.store(0xF);
  Child child("kvtrie", {"verify", "--cache", cache.name()});
  const std::string maps = "/proc/" + std::to_string(child.pid()) + "/maps";
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  bool mapped = false;
  while (!mapped && std::chrono::steady_clock::now() < deadline) {
    std::stringstream text;
    text << std::ifstream(maps).rdbuf();
    mapped = text.str().find(segment_object_name(cache.name())) != std::string::npos;
    std::this_thread::yield();
  }
  EXPECT_EQ(::truncate(cache.segment_path().c_str(), 0), 0);
  const int code = child.finish();
  return {code, child.text()};
}

TEST(ProgramTest, ATruncatedSegmentUnderItIsNoCrash) {
  // On a busy machine it may end (1: a finding) before it is cut off, or open what was cut off
  // already.
  bool under_it = false;
  for (int attempt = 0; attempt < 10 && !under_it; ++attempt) {
    const Ended ended = verify_cut_off();
    ASSERT_TRUE(ended.code == 1 || ended.code == 4) << ended.code << ": " << ended.text;
    under_it = ended.text.find("truncated while it was read") != std::string::npos;
    EXPECT_TRUE(!under_it || ended.code == 4);
  }
  EXPECT_TRUE(under_it);
}

class WithCoordinatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::access(KVTRIE_TEST_BIN_DIR "/kvtried", X_OK) != 0) GTEST_SKIP() << "kvtried is not built";
  }
  void TearDown() override {
    if (!cache_.empty()) kvtrie({"destroy", "--cache", cache_, "--dir", directory_.path()});
  }
  void start(Child& coordinator) {
    ASSERT_TRUE(coordinator.wait_for("event=ready")) << coordinator.text();
  }
  std::vector<std::string> flags() {
    cache_ = "inspect-e2e-" + std::to_string(::getpid());
    return {"--cache", cache_,  "--pages",         "1024",      "--page-bytes", "512", "--planes",
            "2",       "--dir", directory_.path(), "--metrics", "off"};
  }
  Ended here(const std::string& command) {
    return kvtrie({command, "--cache", cache_, "--dir", directory_.path()});
  }

  TemporaryDirectory directory_;
  std::string cache_;
};

TEST_F(WithCoordinatorTest, SeesItAliveDeadAndStopped) {
  {
    Child coordinator("kvtried", flags());
    start(coordinator);
    EXPECT_THAT(here("status").text,
                AllOf(HasSubstr("not poisoned, served; well"),
                      HasSubstr("pid " + std::to_string(coordinator.pid()) + " alive")));
    EXPECT_EQ(here("verify").code, 0);
    EXPECT_EQ(here("tree").code, 0);
    EXPECT_EQ(here("workers").code, 0);
  }  // killed
  EXPECT_THAT(here("status").text, AllOf(HasSubstr(" dead, serving"), HasSubstr("start kvtried")));
  EXPECT_EQ(here("verify").code, 0);
  Child next("kvtried", flags());
  start(next);
  EXPECT_THAT(here("status").text, HasSubstr("served; well"));
  ::kill(next.pid(), SIGTERM);
  EXPECT_EQ(next.finish(), 0);
  EXPECT_THAT(here("status").text, HasSubstr("none (stopped cleanly), epoch 2"));
}

TEST_F(WithCoordinatorTest, DestroyWaitsForItsEnd) {
  Child coordinator("kvtried", flags());
  start(coordinator);
  const Ended refused = here("destroy");
  EXPECT_EQ(refused.code, 5);
  EXPECT_THAT(refused.text, HasSubstr("kill " + std::to_string(coordinator.pid())));
  const TemporaryDirectory elsewhere;
  EXPECT_EQ(kvtrie({"destroy", "--cache", cache_, "--dir", elsewhere.path()}).code, 5);
  EXPECT_EQ(here("status").code, 0);
  ::kill(coordinator.pid(), SIGTERM);
  EXPECT_EQ(coordinator.finish(), 0);
  EXPECT_EQ(here("destroy").code, 0);
  EXPECT_EQ(here("status").code, 3);
  EXPECT_NE(::access(cache_directory_path(directory_.path(), cache_).c_str(), F_OK), 0);
}

}  // namespace
}  // namespace kvtrie::test
