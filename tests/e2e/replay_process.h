// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A real kvtrie-replay (or kvtrie-engine, which takes --json too), started by fork and exec, with its
// output and results caught. Ended at the end of the test.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

class ReplayProcess {
 public:
  // --json is added. Files go below `folder`.
  ReplayProcess(const std::string& folder, std::vector<std::string> words,
                const std::string& program = "kvtrie-replay")
      : base_(folder + "/" + unique_name("replay")) {
    words.insert(words.begin(), std::string(KVTRIE_TEST_BIN_DIR) + "/" + program);
    words.insert(words.end(), {"--json", base_ + ".json"});
    std::vector<char*> argv;
    for (std::string& word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::dup2(::open((base_ + ".out").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
    ::dup2(::open((base_ + ".err").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~ReplayProcess() {
    if (running()) send(SIGTERM);  // so that it ends its children
    (void)wait();
  }
  ReplayProcess(const ReplayProcess&) = delete;
  ReplayProcess& operator=(const ReplayProcess&) = delete;

  // As long as it lives, and of one that has ended.
  pid_t pid() const { return pid_; }
  void send(int signal_number) const { ::kill(pid_, signal_number); }
  bool running() {
    int status = 0;
    if (!ended_ && ::waitpid(pid_, &status, WNOHANG) == pid_) remember(status);
    return !ended_;
  }
  // Exit status, or -signal.
  int wait() {
    int status = 0;
    while (!ended_) {
      if (::waitpid(pid_, &status, 0) == pid_) remember(status);
    }
    return status_;
  }
  std::string out() const { return text_of(base_ + ".out"); }
  std::string err() const { return text_of(base_ + ".err"); }
  // Null when it wrote none.
  nlohmann::json json() const {
    const std::string text = text_of(base_ + ".json");
    return text.empty() ? nlohmann::json{} : nlohmann::json::parse(text);
  }

 private:
  static std::string text_of(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void remember(int status) {
    ended_ = true;
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  std::string base_;
  pid_t pid_ = -1;
  bool ended_ = false;
  int status_ = -1000;
};

// Objects of the caches that a replay of this pid has made for itself.
inline std::vector<std::string> left_behind_by(pid_t pid) {
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename();
    if (name.starts_with("kvtrie.replay-" + std::to_string(pid) + "-")) left.push_back(name);
  }
  return left;
}

}  // namespace kvtrie::test
