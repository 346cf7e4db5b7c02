// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Deaths of a child that runs one operation: at a system call, at a crash point.
#pragma once

#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>

#include "shm/crash_point.h"
#include "tests/shm/test_support.h"

namespace kvtrie::test {

// Runs `work` in a child from system call to system call, telling `at_call` their number, until that is false: then the
// child dies by SIGKILL. Returns how many there were.
inline unsigned run_by_calls(const std::function<void()>& work, const std::function<bool(unsigned)>& at_call) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    work();
    ::_exit(0);
  }
  int status = 0;
  unsigned calls = 0;
  for (unsigned stops = 0; ::waitpid(pid, &status, 0) == pid && WIFSTOPPED(status); ++stops) {
    if (stops == 0) ::ptrace(PTRACE_SETOPTIONS, pid, nullptr, PTRACE_O_EXITKILL);
    if (stops % 2 == 1 && !at_call(++calls)) ::kill(pid, SIGKILL);  // before the call; what was before it is done
    if (::ptrace(PTRACE_SYSCALL, pid, nullptr, nullptr) != 0 && errno != ESRCH) break;
  }
  return calls;
}

#ifdef KVTRIE_DEV
inline unsigned passages_left = 0;

// SIGKILL at the n-th passage of any crash point; false when there are not that many.
inline bool dies_at_passage(unsigned n, const std::function<void()>& work) {
  Child child([&](const Line&) {
    passages_left = n;
    crash_hook.store([](const char*) {
      if (--passages_left == 0) ::raise(SIGKILL);
    });
    work();
    return 0;
  });
  return child.wait() == -SIGKILL;
}

#endif

}  // namespace kvtrie::test
