// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The documented cycle (example.c) as real processes: a C program that loads the plugin with
// dlopen, served by a kvtried that this test starts.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "tests/shm/test_support.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie::test {
namespace {

constexpr int kWaitMs = 60'000;

// A program with its output, killed at the end.
class Program {
 public:
  explicit Program(std::vector<std::string> words,
                   const std::vector<std::string>& environment = {}) {
    int out[2] = {-1, -1};
    if (::pipe2(out, O_CLOEXEC) != 0) return;
    std::vector<char*> argv, env;
    for (std::string& word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<std::string> variables = environment;
    for (std::string& variable : variables)
      env.push_back(variable.data());
    for (char** inherited = environ; *inherited != nullptr; ++inherited)
      env.push_back(*inherited);
    env.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], STDERR_FILENO);
    if (::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), env.data()) != 0) pid_ = -1;
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(out[1]);
    output_fd_ = FileDescriptor(out[0]);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (pid_ > 0) ::kill(pid_, SIGKILL);
    wait();
  }

  // Reads on until `text` was there, or the output's end.
  bool says(const std::string& text) {
    while (output_.find(text) == std::string::npos) {
      pollfd waited{output_fd_.get(), POLLIN, 0};
      char more[4096];
      if (::poll(&waited, 1, kWaitMs) != 1) return false;
      const ssize_t got = ::read(output_fd_.get(), more, sizeof more);
      if (got <= 0) return false;
      output_.append(more, static_cast<std::size_t>(got));
    }
    return true;
  }
  void send(int signal_number) const {
    if (pid_ > 0) ::kill(pid_, signal_number);
  }
  // Exit status; -signal.
  int wait() {
    if (pid_ <= 0) return status_;
    (void)says("\1");  // no program says that: up to the end
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  const std::string& output() const { return output_; }

 private:
  pid_t pid_ = -1;
  int status_ = -1000;
  FileDescriptor output_fd_;
  std::string output_;
};

class DlopenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/kvtrie-dlopen-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    coordinator_ = std::make_unique<Program>(std::vector<std::string>{
        KVTRIE_TEST_BIN_DIR "/kvtried", "--cache", cache_, "--dir", directory_, "--pages", "256",
        "--tokens-per-page", "16", "--page-bytes", "256", "--planes", "2", "--workers", "4",
        "--metrics", "off"});
    ASSERT_TRUE(coordinator_->says("event=ready")) << coordinator_->output();
  }
  void TearDown() override {
    coordinator_->send(SIGTERM);
    coordinator_->wait();
    remove_object(segment_object_name(cache_));
    for (std::uint32_t plane = 0; plane < 2; ++plane)
      remove_object(pool_object_name(cache_, plane));
    std::error_code gone;
    std::filesystem::remove_all(directory_, gone);
  }
  std::vector<std::string> example(const std::string& hits = "0") const {
    return {KVTRIE_TEST_EXAMPLE, plugin_, directory_, cache_, hits};
  }

  const std::string plugin_ = KVTRIE_TEST_LIB_DIR "/libkvtrie_worker.so";
  const std::string cache_ = unique_name("dlopen");
  std::string directory_;
  std::unique_ptr<Program> coordinator_;
};

TEST_F(DlopenTest, SecondProcessReadsWhatTheFirstComputed) {
  Program first(example());
  EXPECT_EQ(first.wait(), 0) << first.output();
  EXPECT_NE(first.output().find("cached_tokens=0 published_tokens=96 wrong_bytes=0"),
            std::string::npos)
      << first.output();
  Program second(example());
  EXPECT_EQ(second.wait(), 0) << second.output();
  EXPECT_NE(second.output().find("cached_tokens=96 published_tokens=96 wrong_bytes=0"),
            std::string::npos)
      << second.output();
}

#ifndef KVTRIE_SANITIZED
TEST_F(DlopenTest, LibraryLeavesTheProcessAtDlclose) {
  Program program(example());
  EXPECT_EQ(program.wait(), 0) << program.output();
  EXPECT_NE(program.output().find("unloaded=1"), std::string::npos) << program.output();
}

// System calls that strace counted in all; 0: it says none.
long calls_in(const std::string& summary) {
  const std::size_t line = summary.rfind(" total");
  if (line == std::string::npos) return 0;
  return std::strtol(summary.c_str() + summary.rfind('\n', line) + 1, nullptr, 10);
}

TEST_F(DlopenTest, HitsMakeNoSystemCall) {
  if (Program strace({"strace", "-V"}); strace.wait() != 0)
    GTEST_SKIP() << "strace is not installed";
  Program warm(example());
  ASSERT_EQ(warm.wait(), 0) << warm.output();
  long calls[2] = {};
  for (int i = 0; i < 2; ++i) {
    std::vector<std::string> words = {"strace", "-f", "-c", "-U", "calls,name"};
    for (const std::string& word : example(i == 0 ? "10" : "20000"))
      words.push_back(word);
    Program traced(words);
    if (traced.wait() != 0) GTEST_SKIP() << "strace does not work here: " << traced.output();
    calls[i] = calls_in(traced.output());
    ASSERT_GT(calls[i], 0) << traced.output();
  }
  // Attaching polls its socket once more or less; 19,990 hits more make no difference.
  EXPECT_LT(std::abs(calls[1] - calls[0]), 100);
}
#endif

TEST_F(DlopenTest, CoordinatorThatWentAwayStopsNothingButNewAttachments) {
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = cache_.c_str();
  options.directory = directory_.c_str();
  kvtrie_worker worker{0};
  ASSERT_EQ(kvtrie_attach(&options, &worker), KVTRIE_OK) << kvtrie_last_error();
  const kvtrie_field field = {"model", "a"};
  kvtrie_namespace space{0};
  ASSERT_EQ(kvtrie_open_namespace(worker, &field, 1, "label", &space), KVTRIE_OK)
      << kvtrie_last_error();
  coordinator_->send(SIGKILL);
  coordinator_->wait();
  kvtrie_namespace again{0};
  EXPECT_EQ(kvtrie_open_namespace(worker, &field, 1, nullptr, &again), KVTRIE_OK)
      << kvtrie_last_error();
  EXPECT_EQ(again.id, space.id);
  const kvtrie_field other = {"model", "b"};
  EXPECT_EQ(kvtrie_open_namespace(worker, &other, 1, nullptr, &again), KVTRIE_E_NO_COORDINATOR);
  std::vector<std::uint32_t> tokens(64, 5);
  kvtrie_begin_result result{};
  result.size = sizeof result;
  kvtrie_sequence sequence{0};
  ASSERT_EQ(kvtrie_begin(worker, space, tokens.data(), tokens.size(), nullptr, &result, &sequence),
            KVTRIE_OK);
  EXPECT_EQ(kvtrie_allocate(sequence, tokens.size(), nullptr), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_publish(sequence, tokens.size(), nullptr), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
  kvtrie_worker second{0};
  EXPECT_EQ(kvtrie_attach(&options, &second), KVTRIE_E_NO_COORDINATOR);
  EXPECT_NE(std::string(kvtrie_last_error()).find("kvtried --cache"), std::string::npos);
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST_F(DlopenTest, ForkedChildIsAWorkerOfItsOwnAndItsDeathIsNotTheParents) {
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = cache_.c_str();
  options.directory = directory_.c_str();
  kvtrie_worker worker{0};
  ASSERT_EQ(kvtrie_attach(&options, &worker), KVTRIE_OK) << kvtrie_last_error();
  const kvtrie_field field = {"model", "a"};
  kvtrie_namespace space{0};
  ASSERT_EQ(kvtrie_open_namespace(worker, &field, 1, nullptr, &space), KVTRIE_OK);
  const std::vector<std::uint32_t> tokens(64, 5);
  kvtrie_begin_result result{};
  result.size = sizeof result;
  kvtrie_sequence sequence{0};
  ASSERT_EQ(kvtrie_begin(worker, space, tokens.data(), tokens.size(), nullptr, &result, &sequence),
            KVTRIE_OK);
  ASSERT_EQ(kvtrie_allocate(sequence, 64, nullptr), KVTRIE_OK);
  // More children than there are slots: each death gives its slot back.
  for (int i = 0; i < 8; ++i) {
    Child child([&](const Line&) {
      if (kvtrie_detach(worker) != KVTRIE_E_STALE) return 1;
      kvtrie_worker mine{0};
      kvtrie_code code = KVTRIE_E_FULL;
      for (int tries = 0; tries < 10'000 && code == KVTRIE_E_FULL; ++tries) {
        code = kvtrie_attach(&options, &mine);
      }
      if (code != KVTRIE_OK) return 2;
      kvtrie_namespace own{0};
      if (kvtrie_open_namespace(mine, &field, 1, nullptr, &own) != KVTRIE_OK) return 3;
      kvtrie_sequence begun{0};
      code = kvtrie_begin(mine, own, tokens.data(), tokens.size(), nullptr, &result, &begun);
      if (code != KVTRIE_OK || result.pending_pages != 4) return 4;
      return kvtrie_allocate(begun, 64, nullptr) == KVTRIE_OK ? 0 : 5;  // and dies with its pages
    });
    EXPECT_EQ(child.wait(), 0);
  }
  kvtrie_publish_result published{};
  published.size = sizeof published;
  EXPECT_EQ(kvtrie_publish(sequence, 64, &published), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(published.published_tokens, 64U);
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST_F(DlopenTest, MoreWorkersThanSlotsAnswerFullAndADetachMakesRoom) {
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = cache_.c_str();
  options.directory = directory_.c_str();
  std::vector<kvtrie_worker> workers;
  kvtrie_code code = KVTRIE_OK;
  while (code == KVTRIE_OK && workers.size() < 10) {
    kvtrie_worker worker{0};
    code = kvtrie_attach(&options, &worker);
    if (code == KVTRIE_OK) workers.push_back(worker);
  }
  EXPECT_EQ(workers.size(), 4U);
  EXPECT_EQ(code, KVTRIE_E_FULL) << kvtrie_last_error();
  EXPECT_NE(std::string(kvtrie_last_error()).find("--workers"), std::string::npos)
      << kvtrie_last_error();
  ASSERT_EQ(kvtrie_detach(workers.back()), KVTRIE_OK);
  // The slot is free as soon as the coordinator has looked.
  for (int i = 0; i < 10'000 && code != KVTRIE_OK; ++i)
    code = kvtrie_attach(&options, &workers.back());
  EXPECT_EQ(code, KVTRIE_OK) << kvtrie_last_error();
  for (const kvtrie_worker worker : workers)
    EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

}  // namespace
}  // namespace kvtrie::test
