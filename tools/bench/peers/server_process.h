// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A server that a measurement has started: it ends with it.
#pragma once

#include <sys/types.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <utility>

namespace kvtrie::bench {

class ServerProcess {
 public:
  explicit ServerProcess(pid_t pid) : pid_(pid) {}
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  ~ServerProcess() {
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
  pid_t pid() const { return pid_; }
  bool ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid != 0;
  }

 private:
  pid_t pid_;
};

}  // namespace kvtrie::bench
