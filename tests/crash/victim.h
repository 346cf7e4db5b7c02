// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The process that dies: forked, with a mapping of its own. It prepares, stops itself, does the
// operation when it is let go on, and then stops itself again (traced) or exits with 0.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "tests/crash/scenario.h"

namespace kvtrie::test {

struct VictimOptions {
  bool traced = false;  // by its parent, with ptrace
  std::uint64_t die_at_point =
      0;  // SIGKILL at this crash point of the operation, counted from 1; 0: at none
  void (*on_start)() = nullptr;  // in the victim, before anything else
};

enum class Ending : std::uint8_t { kKilled, kReturned, kFailed };

// Resets the world, sets it up, and returns with a victim that is stopped before its operation.
pid_t start_victim(CrashWorld& world, const Scenario& scenario, const VictimOptions& options);
// The same in the world as it is.
pid_t fork_victim(CrashWorld& world, const Scenario& scenario, const VictimOptions& options);

// Lets an untraced victim go on and waits for its end.
Ending finish_victim(pid_t pid);

// A death that can be had again without another victim: the bytes that it left are kept, and the
// survivors of this process are made anew. So what comes after one death can be tried many times
// for the price of one.
class Death {
 public:
  // The operation dies at its n-th crash point, if it has that many.
  Death(CrashWorld& world, const Scenario& scenario, std::uint64_t die_at_point);
  Ending ending() const { return ending_; }
  // The world as it was after the victim's end.
  void happen_again();

 private:
  CrashWorld& world_;
  const Scenario& scenario_;
  // Before `meanwhile`, which is done again for what the survivors keep in their own memory.
  WorldBytes prepared_;
  WorldBytes left_;
  Ending ending_ = Ending::kFailed;
};

// A forked process that does `work` and dies by SIGKILL at the n-th crash point in it, if there are
// that many.
Ending run_and_die(std::uint64_t die_at_point, const std::function<void()>& work);

}  // namespace kvtrie::test
