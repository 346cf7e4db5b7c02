// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Programs that a replay starts (fork and exec), and the signals that it waits for meanwhile. The
// children die with their parent; Ctrl-C reaches the parent alone, which then ends them in order.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "shm/shared_object.h"

namespace kvtrie::replay {

// SIGINT, SIGTERM, SIGHUP and SIGCHLD as a descriptor, from construction on. One a process.
class Signals {
 public:
  Signals();
  [[nodiscard]] int fd() const { return fd_.get(); }
  // Sleeps until a signal or the end of `limit`; `extra` (-1: none) wakes it too when readable.
  void wait(std::chrono::milliseconds limit, int extra = -1);
  [[nodiscard]] bool asked_to_end() const { return asked_to_end_; }

 private:
  FileDescriptor fd_;
  bool asked_to_end_ = false;
};

struct ChildOptions {
  std::string program;
  std::vector<std::string> arguments;  // without the program
  int inherited = -1;                  // stays open in the child, under its number
  int standard_output = -1;            // -1: as the parent's
  int standard_error = -1;
  int death_signal = 9;  // when the parent dies
};

// Throws std::system_error. A program that cannot be executed exits with 127.
pid_t start_child(const ChildOptions& options);

// How a child ended: "exited with 4", "was killed by signal 11 (Segmentation fault)".
std::string describe_end(int wait_status);

// This program's own path.
std::string own_path();

// What a program that starts itself again has put into its arguments; 0 where that is no number.
std::uint32_t number_of(std::string_view argument);

}  // namespace kvtrie::replay
