// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Memory that a virtual machine leaves alone for a fraction of a second is taken from it by some hosts, and given back
// at its next use, for 3 us a 4 KiB page or some 100 us a 2 MiB one: then a figure tells of the host and not of what is
// measured.
#pragma once

#include <chrono>
#include <thread>

namespace kvtrie {

// Reads a byte of each page that this process has in memory, so that the host has it there, too. What is in no page
// stays so. About a millisecond for 100 MiB. While no other thread ends mappings.
void warm_memory();

// Does so again and again in a thread, until it is destroyed, beside threads that do anything: large files, which are
// weights, are left out. Some 10 ms of another processor for 100 MiB each time.
class KeepWarm {
 public:
  explicit KeepWarm(std::chrono::milliseconds pause);

 private:
  std::jthread thread_;
};

}  // namespace kvtrie
