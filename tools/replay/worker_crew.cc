// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/worker_crew.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <csignal>
#include <thread>
#include <utility>

namespace kvtrie::replay {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kEndLimit = std::chrono::seconds(5);

}  // namespace

WorkerCrew::WorkerCrew(SharedPlan& plan, std::string program)
    : plan_(plan), program_(std::move(program)), members_(plan.worker_count()) {}

WorkerCrew::~WorkerCrew() { end_all(); }

bool WorkerCrew::anybody_runs() const {
  for (const Member& member : members_) {
    if (member.pid != 0) return true;
  }
  return false;
}

void WorkerCrew::start(std::uint32_t worker) {
  Member& member = members_[worker];
  ChildOptions child;
  child.program = program_;
  child.arguments = {"--worker-fd", fmt::format("{}", plan_.fd()), fmt::format("{}", worker),
                     fmt::format("{}", member.lives)};
  child.inherited = plan_.fd();
  member = {.pid = start_child(child), .lives = member.lives + 1, .killed = false};
}

std::string WorkerCrew::run(Signals& signals, std::chrono::milliseconds look,
                            const std::function<std::string()>& watch) {
  for (std::uint32_t worker = 0; worker < members_.size(); ++worker)
    start(worker);
  while (anybody_runs()) {
    signals.wait(look);
    collect_ended();
    if (failure_.empty()) failure_ = watch();
    if (failure_.empty() && signals.asked_to_end()) failure_ = "stopped by a signal";
    if (!failure_.empty()) end_all();
  }
  if (failure_.empty() && plan_.count_unfinished() > 0) {
    failure_ = fmt::format("{} requests were left over", plan_.count_unfinished());
  }
  return failure_;
}

void WorkerCrew::collect_ended() {
  for (std::uint32_t worker = 0; worker < members_.size(); ++worker) {
    int wait_status = 0;
    Member& member = members_[worker];
    if (member.pid == 0 || ::waitpid(member.pid, &wait_status, WNOHANG) != member.pid) continue;
    member.pid = 0;
    judge_end(worker, wait_status);
  }
}

void WorkerCrew::judge_end(std::uint32_t worker, int wait_status) {
  Member& member = members_[worker];
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return;
  WorkerTally& tally = plan_.tally(worker);
  if (WIFSIGNALED(wait_status)) {
    ++deaths_;
    uncertain_hits_ += tally.begin_pages.exchange(0);
    plan_.reopen(worker);
  }
  if (member.killed && WIFSIGNALED(wait_status)) {
    start(worker);
  } else if (failure_.empty()) {
    failure_ = fmt::format("worker {} {}{}{}", worker, describe_end(wait_status),
                           tally.error[0] == '\0' ? "" : ": ", tally.error);
  }
}

std::optional<std::uint32_t> WorkerCrew::choose(Random& chance) const {
  const auto first = static_cast<std::uint32_t>(chance.below(members_.size()));
  for (std::uint32_t step = 0; step < members_.size(); ++step) {
    const auto worker = static_cast<std::uint32_t>((first + step) % members_.size());
    if (members_[worker].pid != 0 && !members_[worker].killed) return worker;
  }
  return {};
}

void WorkerCrew::kill(std::uint32_t worker) {
  members_[worker].killed = true;
  ::kill(members_[worker].pid, SIGKILL);
}

// Asks, waits a while, then kills.
void WorkerCrew::end_all() {
  plan_.ask_to_stop();
  const auto deadline = Clock::now() + kEndLimit;
  bool last_call = false;
  while (anybody_runs()) {
    for (Member& member : members_) {
      int wait_status = 0;
      if (member.pid == 0) continue;
      if (last_call) ::kill(member.pid, SIGKILL);
      ::kill(member.pid, SIGCONT);  // of one that is stopped
      if (::waitpid(member.pid, &wait_status, last_call ? 0 : WNOHANG) != 0) member.pid = 0;
    }
    last_call = Clock::now() > deadline;
    if (anybody_runs()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace kvtrie::replay
