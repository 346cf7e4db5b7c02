// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Steps a traced child instruction by instruction (x86-64, PTRACE_SINGLESTEP), and brings it to the
// k-th instruction of a run that was recorded before without stepping all the way: from breakpoint to breakpoint, the
// fewest that lead there, which is one for each round of a loop. (In a virtual machine a single step may cost ten
// times as much as a breakpoint.) Runs must be repeatable, which the arrival is checked for.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace kvtrie::test {

using Address = std::uint64_t;

enum class StepResult : std::uint8_t {
  kStepped,
  kEnd,     // the child stopped itself: its operation returned
  kFailed,  // it died or got another signal
};

// One child. It is stopped whenever no call runs. Killed at the end of the object's life.
class Stepper {
 public:
  // `serve` answers what the child asks another process for; it may be empty, or say false: it was not asked.
  Stepper(pid_t stopped_child, std::function<bool()> serve);
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;
  ~Stepper();

  StepResult step();
  // Where the next instruction is.
  Address at() const;
  // Runs to the next arrival at `address`; being there already does not count.
  StepResult run_to(Address address);
  // Answers what was asked by the steps so far. False: nothing was.
  bool serve();
  // SIGKILL, and waits until the kernel has reported the death.
  void kill();

 private:
  StepResult wait_for_trap();
  long peek(Address address) const;
  void poke(Address address, long word) const;

  pid_t pid_;
  std::function<bool()> serve_;
  bool alive_ = true;
};

// A recorded run: before step k the next instruction was at addresses[k]; addresses.back() is the
// end.
struct Recording {
  std::vector<Address> addresses;
  std::vector<std::size_t> changes;  // k: step k - 1 changed the segment
  std::vector<std::size_t> served;   // k: the child was answered between step k - 1 and step k, and only then
  std::vector<std::size_t> system_calls;  // k: step k is one

  std::size_t instructions() const { return addresses.empty() ? 0 : addresses.size() - 1; }
};

// Cheapest way to each k of a recording.
class Route {
 public:
  explicit Route(const Recording& recording);

  // From the child's stop before its operation; k steps are then done. False: the run was another
  // one; the child stands somewhere all the same, or `end` says that it returned.
  struct Arrival {
    StepResult result = StepResult::kStepped;
    bool as_recorded = false;
  };
  Arrival go(Stepper& stepper, std::size_t k) const;
  // Through the kernel's clock code, which now and then takes another way.
  bool reads_clock() const { return reads_clock_; }

 private:
  static constexpr std::size_t kNoStop = ~std::size_t{0};

  std::vector<std::size_t> stops_to(std::size_t from, std::size_t k) const;
  StepResult advance(Stepper& stepper, std::size_t from, std::size_t k) const;

  const Recording& recording_;
  std::vector<std::size_t> before_;  // the last arrival at addresses[k] before k; 0: none; kNoStop: no breakpoint here
  bool reads_clock_ = false;
};

}  // namespace kvtrie::test
