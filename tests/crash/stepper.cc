// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/stepper.h"

#include <sched.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

#include <algorithm>
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

struct Range {
  Address begin = 0;
  Address end = 0;
  bool has(Address a) const { return a >= begin && a < end; }
};

// The kernel's own code in the process cannot be written to, so no breakpoint is there.
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

Stepper::Stepper(pid_t stopped_child, std::function<bool()> serve) : pid_(stopped_child), serve_(std::move(serve)) {
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
  pid_t got = 0;
  while ((got = ::waitpid(pid_, &status, serve_ ? WNOHANG : 0)) == 0) {
    if (!serve()) ::sched_yield();
  }
  if (got != pid_) throw std::runtime_error("waitpid of a traced child");
  if (!WIFSTOPPED(status)) {
    alive_ = false;
    return StepResult::kFailed;
  }
  if (WSTOPSIG(status) == SIGTRAP) return StepResult::kStepped;
  return WSTOPSIG(status) == SIGSTOP ? StepResult::kEnd : StepResult::kFailed;
}

bool Stepper::serve() {
  bool served = false;
  while (serve_ && serve_()) served = true;
  return served;
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

StepResult Stepper::run_to(Address address) {
  // At a breakpoint that it stands on it would stop at once.
  if (at() == address) {
    if (const StepResult result = step(); result != StepResult::kStepped || at() == address) return result;
  }
  const long word = peek(address);
  poke(address, (word & ~0xFFL) | kBreakpoint);
  if (::ptrace(PTRACE_CONT, pid_, nullptr, nullptr) != 0) return StepResult::kFailed;
  const StepResult result = wait_for_trap();
  if (!alive_) return result;
  poke(address, word);
  if (result == StepResult::kStepped) ::ptrace(PTRACE_POKEUSER, pid_, offsetof(user, regs.rip), at() - 1);
  return result;
}

Route::Route(const Recording& recording) : recording_(recording) {
  const Range vdso = vdso_range();
  std::unordered_map<Address, std::size_t> seen;
  before_.reserve(recording.addresses.size());
  for (std::size_t k = 0; k < recording.addresses.size(); ++k) {
    const Address address = recording.addresses[k];
    const auto last = seen.find(address);
    const bool repeated = k > 0 && recording.addresses[k - 1] == address;  // a string instruction arrives once
    const bool ends = k + 1 == recording.addresses.size();  // the signal that ends it comes before a breakpoint would
    const bool stops = k > 0 && !ends && !repeated && !vdso.has(address);
    reads_clock_ = reads_clock_ || vdso.has(address);
    before_.push_back(!stops ? kNoStop : last == seen.end() ? 0 : last->second);
    seen[address] = k;
  }
}

// Backwards: a run to k may start anywhere behind the last arrival at k's address, so where the run to there may start
// the earliest.
std::vector<std::size_t> Route::stops_to(std::size_t from, std::size_t k) const {
  std::vector<std::size_t> stops;
  while (k > from && before_[k] == kNoStop) --k;
  while (k > from) {
    stops.push_back(k);
    std::size_t best = before_[k];
    for (std::size_t i = best + 1; best > from && i < k; ++i) {
      if (before_[i] != kNoStop && (best == before_[k] || before_[i] < before_[best])) best = i;
    }
    k = best;
  }
  std::ranges::reverse(stops);
  return stops;
}

StepResult Route::advance(Stepper& stepper, std::size_t from, std::size_t k) const {
  for (const std::size_t stop : stops_to(from, k)) {
    if (const StepResult result = stepper.run_to(recording_.addresses[stop]); result != StepResult::kStepped) {
      return result;
    }
    from = stop;
  }
  StepResult result = StepResult::kStepped;
  for (; from < k && result == StepResult::kStepped; ++from) result = stepper.step();
  return result;
}

Route::Arrival Route::go(Stepper& stepper, std::size_t k) const {
  Arrival arrival;
  std::size_t stands = 0;
  for (const std::size_t served : recording_.served) {
    if (served > k) break;
    arrival.result = advance(stepper, stands, served);
    if (arrival.result != StepResult::kStepped) return arrival;
    stepper.serve();
    stands = served;
  }
  arrival.result = advance(stepper, stands, k);
  arrival.as_recorded =
      arrival.result == StepResult::kStepped && stepper.at() == recording_.addresses[k];
  return arrival;
}

}  // namespace kvtrie::test
