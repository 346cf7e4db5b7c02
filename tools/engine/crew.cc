// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/crew.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <thread>

namespace kvtrie::engine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::milliseconds(20);  // deaths wake it before
constexpr auto kEndLimit = std::chrono::seconds(1);

}  // namespace

bool Crew::anybody_runs() const {
  return std::ranges::any_of(members_, [](const Member& member) { return member.pid != 0; });
}

std::uint64_t Crew::progress() const {
  std::uint64_t sum = board_.finished();
  for (std::uint32_t worker = 0; worker < board_.workers(); ++worker)
    sum += board_.tally(worker).counts[static_cast<std::size_t>(Count::kSteps)].load(std::memory_order_relaxed);
  return sum;
}

void Crew::start(std::uint32_t worker) {
  replay::ChildOptions child;
  child.program = program_;
  child.arguments = {"--worker-fd", fmt::format("{}", board_.fd()), fmt::format("{}", worker)};
  child.inherited = board_.fd();
  members_[worker].pid = replay::start_child(child);
}

std::string Crew::run(replay::Signals& signals, std::chrono::seconds stall,
                      const std::function<std::string()>& watch) {
  for (std::uint32_t worker = 0; worker < members_.size(); ++worker)
    start(worker);
  std::string failure;
  std::uint64_t seen = 0;
  auto since = Clock::now();
  while (anybody_runs()) {
    signals.wait(kLook);
    failure = collect_ended();
    if (failure.empty()) failure = watch();
    if (failure.empty() && signals.asked_to_end()) failure = "stopped by a signal";
    const std::uint64_t now = progress();
    if (std::exchange(seen, now) != now) since = Clock::now();
    if (failure.empty() && Clock::now() - since > stall) {
      failure = fmt::format("no progress for {} s, {} of {} requests finished", stall.count(), board_.finished(),
                            board_.requests());
    }
    if (!failure.empty()) break;
  }
  end_all();
  if (failure.empty() && board_.finished() != board_.requests()) failure = "requests were left over";
  return failure;
}

std::string Crew::collect_ended() {
  for (std::uint32_t worker = 0; worker < members_.size(); ++worker) {
    int wait_status = 0;
    Member& member = members_[worker];
    if (member.pid == 0 || ::waitpid(member.pid, &wait_status, WNOHANG) != member.pid) continue;
    member.pid = 0;
    if (std::string problem = judge_end(worker, wait_status); !problem.empty()) return problem;
  }
  return {};
}

std::string Crew::judge_end(std::uint32_t worker, int wait_status) {
  if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) return {};
  const WorkerTally& tally = board_.tally(worker);
  std::uint64_t planned = 0;
  for (const auto& kills : tally.kills)
    planned += kills.load();
  if (WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGKILL && members_[worker].deaths < planned) {
    ++members_[worker].deaths;
    board_.reopen(worker);
    start(worker);
    return {};
  }
  return fmt::format("worker {} {}{}{}", worker, replay::describe_end(wait_status),
                     tally.error[0] == '\0' ? "" : ": ", tally.error);
}

// Asks, waits a while, then kills.
void Crew::end_all() {
  board_.ask_to_stop();
  for (const auto deadline = Clock::now() + kEndLimit; anybody_runs();) {
    const bool last_call = Clock::now() > deadline;
    for (Member& member : members_) {
      if (member.pid == 0) continue;
      if (last_call) ::kill(member.pid, SIGKILL);
      if (::waitpid(member.pid, nullptr, last_call ? 0 : WNOHANG) != 0) member.pid = 0;
    }
    if (anybody_runs()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace kvtrie::engine
