// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <csignal>
#include <cstring>
#include <system_error>

namespace kvtrie::replay {
namespace {

[[noreturn]] void become(const ChildOptions& options, char* const* arguments, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, options.death_signal);
  if (::getppid() != parent) ::_exit(127);  // it died before that
  // A group of its own: a terminal's Ctrl-C is for the parent.
  ::setpgid(0, 0);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (options.standard_output >= 0) ::dup2(options.standard_output, STDOUT_FILENO);
  if (options.standard_error >= 0) ::dup2(options.standard_error, STDERR_FILENO);
  if (options.inherited >= 0) ::fcntl(options.inherited, F_SETFD, 0);
  ::execv(options.program.c_str(), arguments);
  ::_exit(127);
}

}  // namespace

Signals::Signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD})
    ::sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  fd_ = FileDescriptor(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd_.open()) throw std::system_error(errno, std::generic_category(), "signalfd");
}

void Signals::wait(std::chrono::milliseconds limit, int extra) {
  std::array<pollfd, 2> wanted{{{fd_.get(), POLLIN, 0}, {extra, POLLIN, 0}}};
  (void)::poll(wanted.data(), wanted.size(), static_cast<int>(limit.count()));
  signalfd_siginfo info{};
  while (::read(fd_.get(), &info, sizeof info) == sizeof info) {
    if (info.ssi_signo != SIGCHLD) asked_to_end_ = true;
  }
}

pid_t start_child(const ChildOptions& options) {
  // All memory that the child needs, before the fork.
  std::vector<std::string> texts = options.arguments;
  texts.insert(texts.begin(), options.program);
  std::vector<char*> arguments;
  for (std::string& text : texts)
    arguments.push_back(text.data());
  arguments.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (child == 0) become(options, arguments.data(), parent);
  return child;
}

std::string describe_end(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int signal = WTERMSIG(wait_status);
    return fmt::format("was killed by signal {} ({})", signal, ::strsignal(signal));
  }
  return fmt::format("exited with {}", WEXITSTATUS(wait_status));
}

std::string own_path() {
  std::array<char, PATH_MAX> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size() - 1);
  if (length < 0) throw std::system_error(errno, std::generic_category(), "/proc/self/exe");
  return {path.data(), static_cast<std::size_t>(length)};
}

std::uint32_t number_of(std::string_view argument) {
  std::uint32_t value = 0;
  (void)std::from_chars(argument.data(), argument.data() + argument.size(), value);
  return value;
}

}  // namespace kvtrie::replay
