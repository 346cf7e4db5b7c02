// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A real kvtried, started by fork and exec, with its output caught. Killed at the end of the test.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "shm/process_identity.h"
#include "tests/support/eventually.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

class KvtriedProcess {
 public:
  // `more` follows --cache and --dir, which counts where it is not in `more`.
  KvtriedProcess(const TemporaryCache& cache, std::vector<std::string> more,
                 const std::string& program = std::string(KVTRIE_TEST_BIN_DIR) + "/kvtried")
      : out_path_(cache.directory() + "/" + unique_name("out")), err_path_(out_path_ + ".err") {
    std::vector<std::string> words = {program, "--cache", cache.name()};
    if (std::ranges::find(more, "--dir") == more.end()) words.insert(words.end(), {"--dir", cache.directory()});
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words)
      argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    const int out = ::open(out_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    const int err = ::open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(out, 1);
    ::dup2(err, 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~KvtriedProcess() {
    if (pid_ > 0) {
      send(SIGKILL);
      (void)wait();
    }
  }
  KvtriedProcess(const KvtriedProcess&) = delete;
  KvtriedProcess& operator=(const KvtriedProcess&) = delete;

  pid_t pid() const { return pid_; }
  std::string out() const { return text_of(out_path_); }
  std::string err() const { return text_of(err_path_); }
  // Waits until it serves; false when it ended instead.
  bool ready() {
    const bool there =
        eventually([this] { return out().find('\n') != std::string::npos || ended(); });
    return there && out().starts_with("event=ready ");
  }
  bool logs(const std::string& part) const {
    return eventually([&] { return err().find(part) != std::string::npos; });
  }
  // A value of the ready line.
  std::string value(const std::string& key) const {
    std::istringstream line(out());
    for (std::string word; line >> word;) {
      if (word.starts_with(key + "=")) return word.substr(key.size() + 1);
    }
    return {};
  }
  // Nothing once it ended: -1 would be everybody.
  void send(int signal_number) const {
    if (pid_ > 0) ::kill(pid_, signal_number);
  }
  // Exit status, or -signal.
  int wait() {
    if (pid_ <= 0) return status_;
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    return remember(status);
  }
  int stop() {
    send(SIGTERM);
    return wait();
  }
  std::size_t open_descriptors() const {
    const std::filesystem::directory_iterator list("/proc/" + std::to_string(pid_) + "/fd");
    return static_cast<std::size_t>(std::distance(begin(list), end(list)));
  }

 private:
  static std::string text_of(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  int remember(int status) {
    pid_ = -1;
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return status_;
  }
  bool ended() {
    int status = 0;
    if (pid_ > 0 && ::waitpid(pid_, &status, WNOHANG) == pid_) remember(status);
    return pid_ <= 0;
  }

  std::string out_path_;
  std::string err_path_;
  pid_t pid_ = -1;
  int status_ = -1000;
};

}  // namespace kvtrie::test
