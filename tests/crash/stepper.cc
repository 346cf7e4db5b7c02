// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/stepper.h"

#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <unordered_map>

namespace kvtrie::test {
namespace {

constexpr long kBreakpoint = 0xCC;
constexpr std::size_t kStepsMax = 400;  // more are not cheaper than any anchor

struct Range {
  Address begin = 0;
  Address end = 0;
  bool has(Address a) const { return a >= begin && a < end; }
};

// The kernel's own code in the process cannot be written to, so no anchor is there.
Range vdso_range() {
  Range range;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> maps(std::fopen("/proc/self/maps", "r"),
                                                             std::fclose);
  char line[512];
  while (maps && std::fgets(line, sizeof line, maps.get()) != nullptr) {
    if (std::strstr(line, "[vdso]") != nullptr) {
      std::sscanf(line, "%" SCNx64 "-%" SCNx64, &range.begin, &range.end);
    }
  }
  return range;
}

}  // namespace

Stepper::Stepper(pid_t stopped_child) : pid_(stopped_child) {
  ::ptrace(PTRACE_SETOPTIONS, pid_, nullptr, PTRACE_O_EXITKILL);
}

Stepper::~Stepper() {
  if (alive_) kill();
}

void Stepper::kill() {
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) == pid_ && WIFSTOPPED(status)) {
  }
  alive_ = false;
}

StepResult Stepper::wait_for_trap() {
  int status = 0;
  if (::waitpid(pid_, &status, 0) != pid_) throw std::runtime_error("waitpid of a traced child");
  if (!WIFSTOPPED(status)) {
    alive_ = false;
    return StepResult::kFailed;
  }
  if (WSTOPSIG(status) == SIGTRAP) return StepResult::kStepped;
  return WSTOPSIG(status) == SIGSTOP ? StepResult::kEnd : StepResult::kFailed;
}

StepResult Stepper::step() {
  if (::ptrace(PTRACE_SINGLESTEP, pid_, nullptr, nullptr) != 0) return StepResult::kFailed;
  return wait_for_trap();
}

Address Stepper::at() const {
  return static_cast<Address>(::ptrace(PTRACE_PEEKUSER, pid_, offsetof(user, regs.rip), nullptr));
}

long Stepper::peek(Address address) const {
  return ::ptrace(PTRACE_PEEKTEXT, pid_, address, nullptr);
}

void Stepper::poke(Address address, long word) const {
  if (::ptrace(PTRACE_POKETEXT, pid_, address, word) != 0) {
    throw std::runtime_error("PTRACE_POKETEXT");
  }
}

StepResult Stepper::run_to(Address address, std::uint32_t arrival) {
  const long word = peek(address);
  const long trapped = (word & ~0xFFL) | kBreakpoint;
  std::uint32_t seen = 0;
  for (;;) {
    if (at() == address) {
      if (++seen == arrival) return StepResult::kStepped;
      if (const StepResult result = step(); result != StepResult::kStepped) return result;
      // A repeated string instruction arrives once.
      while (at() == address) {
        if (const StepResult result = step(); result != StepResult::kStepped) return result;
      }
    }
    poke(address, trapped);
    if (::ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) return StepResult::kFailed;
    const StepResult result = wait_for_trap();
    if (!alive_) return result;
    poke(address, word);
    if (result != StepResult::kStepped) return result;
    ::ptrace(PTRACE_POKEUSER, pid_, offsetof(user, regs.rip), at() - 1);
  }
}

Route::Route(const Recording& recording) : recording_(recording) {
  const Range vdso = vdso_range();
  std::unordered_map<Address, std::uint32_t> counts;
  arrivals_.reserve(recording.addresses.size());
  for (std::size_t k = 0; k < recording.addresses.size(); ++k) {
    const Address address = recording.addresses[k];
    const bool repeated = k > 0 && recording.addresses[k - 1] == address;
    arrivals_.push_back(repeated || vdso.has(address) ? 0 : ++counts[address]);
  }
}

std::size_t Route::anchor_for(std::size_t k) const {
  std::size_t best = 0;
  std::size_t best_cost = k;  // all by steps
  for (std::size_t j = k; j > 0 && k - j < best_cost && k - j < kStepsMax; --j) {
    if (arrivals_[j] == 0) continue;
    const std::size_t cost = (k - j) + 2 * arrivals_[j] + 1;
    if (cost < best_cost) {
      best_cost = cost;
      best = j;
    }
  }
  return best;
}

Route::Arrival Route::go(Stepper& stepper, std::size_t k) const {
  Arrival arrival;
  const std::size_t anchor = anchor_for(k);
  if (anchor > 0) {
    arrival.result = stepper.run_to(recording_.addresses[anchor], arrivals_[anchor]);
  }
  for (std::size_t i = anchor; i < k && arrival.result == StepResult::kStepped; ++i) {
    arrival.result = stepper.step();
  }
  arrival.as_recorded =
      arrival.result == StepResult::kStepped && stepper.at() == recording_.addresses[k];
  return arrival;
}

}  // namespace kvtrie::test
