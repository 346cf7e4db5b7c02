// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/victim.h"

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#include <csignal>
#include <stdexcept>

#include "shm/crash_point.h"

namespace kvtrie::test {
namespace {

// Of this process, which does one operation.
std::uint64_t points_left = 0;
Victim* the_victim = nullptr;
const Scenario* the_scenario = nullptr;

void stop_myself() { ::syscall(SYS_tgkill, ::getpid(), ::syscall(SYS_gettid), SIGSTOP); }

void at_crash_point([[maybe_unused]] const char* place) {
  if (the_scenario != nullptr && the_scenario->at_place) the_scenario->at_place(*the_victim, place);
  if (points_left != 0 && --points_left == 0) ::kill(::getpid(), SIGKILL);
}

void arm(std::uint64_t die_at_point) {
  points_left = die_at_point;
#ifdef KVTRIE_DEV
  crash_hook.store(at_crash_point);
#else
  (void)at_crash_point;
#endif
}

void disarm() {
#ifdef KVTRIE_DEV
  crash_hook.store(nullptr);
#endif
}

Ending ending_of(pid_t pid) {
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) throw std::runtime_error("waitpid");
  if (WIFSIGNALED(status)) return WTERMSIG(status) == SIGKILL ? Ending::kKilled : Ending::kFailed;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? Ending::kReturned : Ending::kFailed;
}

// What it throws ends it, and does not go on in the tests of its parent.
[[noreturn]] void be_victim(const CrashWorld& world, const Scenario& scenario,
                            const VictimOptions& options) noexcept {
  disarm();
  if (options.on_start != nullptr) options.on_start();
  if (options.traced) ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
  Victim victim(world);
  if (scenario.prepare) scenario.prepare(victim);
  the_victim = &victim;
  the_scenario = &scenario;
  if (!options.traced) arm(0);
  stop_myself();
  if (!options.traced) arm(options.die_at_point);
  scenario.operate(victim);
  if (options.traced) stop_myself();
  ::_exit(0);
}

// waitpid, during which the coordinator answers what the child asks it.
pid_t wait_and_serve(pid_t pid, int& status, int options, const std::function<bool()>& serve) {
  if (!serve) return ::waitpid(pid, &status, options);
  for (;;) {
    const pid_t got = ::waitpid(pid, &status, options | WNOHANG);
    if (got != 0) return got;
    if (!serve()) ::sched_yield();
  }
}

void set_up(CrashWorld& world, const Scenario& scenario) {
  world.reset();
  if (scenario.setup) scenario.setup(world);
}

// Forked, and stopped before its operation.
pid_t prepared_victim(const CrashWorld& world, const Scenario& scenario,
                      const VictimOptions& options) {
  const pid_t pid = ::fork();
  if (pid < 0) throw std::runtime_error("fork");
  if (pid == 0) be_victim(world, scenario, options);
  int status = 0;
  if (wait_and_serve(pid, status, WUNTRACED, scenario.serve) != pid || !WIFSTOPPED(status) ||
      WSTOPSIG(status) != SIGSTOP) {
    throw Violation("the victim did not come to its operation");
  }
  return pid;
}

}  // namespace

pid_t start_victim(CrashWorld& world, const Scenario& scenario, const VictimOptions& options) {
  set_up(world, scenario);
  return fork_victim(world, scenario, options);
}

pid_t fork_victim(CrashWorld& world, const Scenario& scenario, const VictimOptions& options) {
  const pid_t pid = prepared_victim(world, scenario, options);
  try {
    if (scenario.meanwhile) scenario.meanwhile(world);
  } catch (...) {
    ::kill(pid, SIGKILL);
    (void)ending_of(pid);
    throw;
  }
  return pid;
}

Ending finish_victim(pid_t pid) {
  ::kill(pid, SIGCONT);
  return ending_of(pid);
}

Death::Death(CrashWorld& world, const Scenario& scenario, std::uint64_t die_at_point)
    : world_(world), scenario_(scenario) {
  set_up(world, scenario);
  const pid_t pid =
      prepared_victim(world, scenario, {.traced = false, .die_at_point = die_at_point});
  prepared_ = world.copy_bytes();
  if (scenario.meanwhile) scenario.meanwhile(world);
  ending_ = finish_victim(pid);
  left_ = world.copy_bytes();
}

void Death::happen_again() {
  set_up(world_, scenario_);
  if (scenario_.meanwhile) {
    world_.put_bytes(prepared_);
    scenario_.meanwhile(world_);
  }
  world_.put_bytes(left_);
}

Ending run_and_die(std::uint64_t die_at_point, const std::function<void()>& work) {
  const pid_t pid = ::fork();
  if (pid < 0) throw std::runtime_error("fork");
  if (pid == 0) {
    arm(die_at_point);
    work();
    ::_exit(0);
  }
  return ending_of(pid);
}

}  // namespace kvtrie::test
