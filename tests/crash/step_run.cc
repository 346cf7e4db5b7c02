// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/step_run.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <set>

#include "tests/crash/aftermath.h"
#include "tests/crash/victim.h"

namespace kvtrie::test {
namespace {

constexpr std::size_t kInstructionsMax = 2'000'000;
constexpr int kRecordings = 3;
constexpr int kTriesMax = 8;  // the kernel's clock code takes another way now and then

// A victim that has done k instructions, or one more than there are: the operation has returned.
struct Stopped {
  std::unique_ptr<Stepper> stepper;
  Route::Arrival arrival;
};

Stopped bring_to(CrashWorld& world, const Scenario& scenario, const StepPlan& plan,
                 const Route& route, std::size_t k, std::size_t last) {
  Stopped stopped;
  for (int i = 0; i < kTriesMax; ++i) {
    stopped.stepper = std::make_unique<Stepper>(
        start_victim(world, scenario, {.traced = true, .die_at_point = 0, .on_start = plan.on_start}), scenario.serve);
    stopped.arrival = route.go(*stopped.stepper, std::min(k, last));
    if (stopped.arrival.as_recorded || stopped.arrival.result == StepResult::kFailed) break;
  }
  while (k > last && stopped.arrival.result == StepResult::kStepped) {
    stopped.arrival.result = stopped.stepper->step();
  }
  return stopped;
}

bool differs(const CrashWorld& world, const WorldBytes& from) {
  const auto now = world.bytes();
  for (std::size_t i = 0; i < from.size(); ++i) {
    if (std::memcmp(now[i].data(), from[i].data(), from[i].size()) != 0) return true;
  }
  return false;
}

// The victim's code is this process's: it was forked.
bool is_system_call(Address at) {
  constexpr std::array<unsigned char, 2> kSyscall{0x0F, 0x05};
  return std::memcmp(reinterpret_cast<const void*>(at), kSyscall.data(), kSyscall.size()) == 0;
}

// What a death left. Who comes after it has nothing but the shared bytes to go by, and so has its judge, beside whether
// the operation had returned: of several deaths that left the same, one is judged.
struct Remains {
  std::uint64_t bytes = 0;
  StepResult result{};
  auto operator<=>(const Remains&) const = default;
};

}  // namespace

Recording record(CrashWorld& world, const Scenario& scenario, const StepPlan& plan,
                 StepOutcome& outcome) {
  Recording recording;
  Stepper stepper(start_victim(world, scenario,
                               {.traced = true, .die_at_point = 0, .on_start = plan.on_start}),
                  scenario.serve);
  std::set<std::uint64_t> states;
  WorldBytes last = world.copy_bytes();
  states.insert(world.hash_of_bytes());
  recording.addresses.push_back(stepper.at());
  for (;;) {
    if (is_system_call(recording.addresses.back())) recording.system_calls.push_back(recording.addresses.size() - 1);
    const StepResult result = stepper.step();
    if (result == StepResult::kEnd) break;
    if (result == StepResult::kFailed || recording.addresses.size() > kInstructionsMax) {
      throw Violation("the operation failed without being killed");
    }
    recording.addresses.push_back(stepper.at());
    if (stepper.serve()) recording.served.push_back(recording.addresses.size() - 1);
    if (differs(world, last)) {
      last = world.copy_bytes();
      states.insert(world.hash_of_bytes());
      recording.changes.push_back(recording.addresses.size() - 1);
    }
  }
  outcome.instructions = recording.instructions();
  outcome.states = states.size();
  return recording;
}

std::vector<std::size_t> places_to_kill(const Recording& recording, const Scenario& scenario, const StepPlan& plan) {
  const std::size_t last = recording.instructions() + 1;  // the operation has returned
  std::set<std::size_t> chosen{0, last};
  for (std::size_t k = 0; k <= last; k += plan.all ? 1 : plan.stride * scenario.sparse)
    chosen.insert(k);
  if (!plan.all) {
    for (const std::size_t k : recording.changes)
      chosen.insert({k - 1, k, k + 1});
    for (const std::size_t k : recording.system_calls)
      chosen.insert({k, k + 1});
  }
  std::vector<std::size_t> places;
  for (const std::size_t k : chosen) {
    if (k % plan.shard_count == plan.shard) places.push_back(k);
  }
  return places;
}

StepOutcome step_and_kill(CrashWorld& world, const Scenario& scenario, const StepPlan& plan,
                          const std::function<void(std::size_t k)>& before_kill) {
  StepOutcome outcome;
  // The shortest of some: a clock that is set while it is read is read again, which few victims do.
  Recording recording = record(world, scenario, plan, outcome);
  for (int i = 1; i < kRecordings && Route(recording).reads_clock(); ++i) {
    StepOutcome other;
    Recording again = record(world, scenario, plan, other);
    if (again.instructions() >= recording.instructions()) continue;
    recording = std::move(again);
    outcome = other;
  }
  const Route route(recording);
  const std::size_t last = recording.instructions();
  std::set<Remains> judged;
  for (const std::size_t k : places_to_kill(recording, scenario, plan)) {
    before_kill(k);
    std::string violation;
    try {
      const Stopped victim = bring_to(world, scenario, plan, route, k, last);
      victim.stepper->kill();
      ++outcome.kills;
      if (!victim.arrival.as_recorded) ++outcome.off_route;
      if (victim.arrival.result == StepResult::kFailed) throw Violation("the victim failed before it was killed");
      if (!judged.insert({world.hash_of_bytes(), victim.arrival.result}).second) continue;
      violation = judge(world, scenario, victim.arrival.result == StepResult::kEnd);
    } catch (const Violation& caught) {
      violation = caught.what();
    }
    if (!violation.empty()) {
      outcome.violations.push_back({k, recording.addresses[std::min(k, last)], violation});
    }
  }
  outcome.images = judged.size();
  return outcome;
}

}  // namespace kvtrie::test
