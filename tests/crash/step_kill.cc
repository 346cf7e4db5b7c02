// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// step_kill: kills a process at every machine instruction of each operation of the protocol. See
// --help. The table that it prints is the one in docs/crash-model.md.

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <string>
#include <string_view>

#include "shm/mutant.h"
#include "tests/crash/arena.h"
#include "tests/crash/plugin_scenarios.h"
#include "tests/crash/step_run.h"
#include "tests/crash/step_table.h"

namespace {

using kvtrie::test::Scenario;
using kvtrie::test::StepOutcome;
using kvtrie::test::StepPlan;
using kvtrie::test::StepTable;

constexpr char kHelp[] =
    "step_kill [--all | --stride N] [--operation PREFIX]... [--shard I/N] [--resume FILE]\n"
    "step_kill --merge FILE...\n"
    "step_kill --list\n"
    "  --all            kill at every instruction\n"
    "  --stride N       kill where the segment changes, with the instruction before and after, and "
    "at every N-th (64)\n"
    "  --operation P    only operations whose name begins with P\n"
    "  --shard I/N      only the I-th of N equal parts (I from 0), so that a long run can be done "
    "in pieces\n"
    "  --resume FILE    write each operation's row to FILE when it is done, and leave out those that "
    "are there\n"
    "  --merge FILE...  print the table of all shards from the files of --resume; 1 when one is "
    "missing\n"
    "  --mutant NAME    with a protection taken out, in builds that have them\n"
    "Prints a table in Markdown. Exit code: 0 no violation, 1 some, 2 usage.\n";
constexpr unsigned kSecondsAKill = 20;  // a survivor that needs longer hangs
constexpr std::size_t kViolationsShown = 5;

struct Settings {
  StepPlan plan;
  std::vector<std::string> operations;
  std::string resume;
  std::vector<std::string> merge;
  bool list = false;
};

// What the alarm's handler says; it may only write.
char doing[160];
std::size_t doing_bytes = 0;

void on_alarm(int) {
  (void)!::write(STDERR_FILENO, doing, doing_bytes);
  ::_exit(1);
}

std::size_t number(std::string_view text) {
  std::size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) {
    fmt::print(stderr, "step_kill: '{}' is not a number\n", text);
    std::exit(2);
  }
  return value;
}

void choose_mutant([[maybe_unused]] std::string_view name) {
#ifdef KVTRIE_DEV
  for (std::size_t i = 0; i < std::size(kvtrie::kMutantNames); ++i) {
    if (kvtrie::kMutantNames[i] == name) {
      kvtrie::active_mutant.store(static_cast<kvtrie::Mutant>(i));
      return;
    }
  }
#endif
  fmt::print(stderr, "step_kill: no mutant '{}' in this build\n", name);
  std::exit(2);
}

Settings parse(int argc, char** argv) {
  Settings settings;
  settings.plan.on_start = kvtrie::test::use_arena;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--all") {
      settings.plan.all = true;
    } else if (option == "--list") {
      settings.list = true;
    } else if (option == "--stride" && number(value) > 0) {
      settings.plan.stride = number(value);
      ++i;
    } else if (option == "--operation" && !value.empty()) {
      settings.operations.emplace_back(value);
      ++i;
    } else if (option == "--resume" && !value.empty()) {
      settings.resume = value;
      ++i;
    } else if (option == "--merge" && !value.empty()) {
      settings.merge.assign(argv + i + 1, argv + argc);
      return settings;
    } else if (option == "--mutant") {
      choose_mutant(value);
      ++i;
    } else if (option == "--shard" && value.find('/') != std::string_view::npos) {
      settings.plan.shard = number(value.substr(0, value.find('/')));
      settings.plan.shard_count = number(value.substr(value.find('/') + 1));
      ++i;
    } else {
      fmt::print("{}", kHelp);
      std::exit(option == "--help" ? 0 : 2);
    }
  }
  if (settings.plan.shard_count == 0 || settings.plan.shard >= settings.plan.shard_count) {
    fmt::print(stderr, "step_kill: --shard I/N: I is from 0 to N - 1\n");
    std::exit(2);
  }
  return settings;
}

bool chosen(const Settings& settings, const Scenario& scenario) {
  if (settings.operations.empty()) return true;
  for (const std::string& prefix : settings.operations) {
    if (scenario.name.starts_with(prefix)) return true;
  }
  return false;
}

// One core for both, so that a step does not wait for another core to wake.
void stay_on_this_core() {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(::sched_getcpu()), &set);
  ::sched_setaffinity(0, sizeof set, &set);
}

// Program or library and offset, for addr2line.
std::string place_of(kvtrie::test::Address address) {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<void*>(address), &info) == 0) return fmt::format("{:#x}", address);
  const auto base = reinterpret_cast<kvtrie::test::Address>(info.dli_fbase);
  return fmt::format("{}+{:#x}", info.dli_fname, address - base);
}

void show(const Scenario& scenario, const StepOutcome& outcome, double seconds) {
  fmt::print(stderr, "{}: {:.2f} s, {} off the recorded route\n", scenario.name, seconds,
             outcome.off_route);
  for (std::size_t i = 0; i < std::min(outcome.violations.size(), kViolationsShown); ++i) {
    const auto& violation = outcome.violations[i];
    fmt::print(stderr, "  after instruction {}, at {}: {}\n", violation.k,
               place_of(violation.address), violation.text);
  }
}

StepOutcome run(kvtrie::test::CrashWorld& world, const Scenario& scenario, const StepPlan& plan) {
  try {
    return step_and_kill(world, scenario, plan, [&](std::size_t k) {
      const auto end =
          fmt::format_to_n(doing, sizeof doing - 1, "step_kill: hangs after {} at instruction {}\n",
                           scenario.name, k);
      doing_bytes = std::min(end.size, sizeof doing - 1);
      ::alarm(kSecondsAKill);
    });
  } catch (const std::exception& failure) {
    StepOutcome outcome;
    outcome.violations.push_back({0, 0, failure.what()});
    return outcome;
  }
}

// The core's operations, then the plugin's calls.
std::vector<Scenario> known_scenarios() {
  const auto core = kvtrie::test::all_scenarios();
  std::vector<Scenario> known(core.begin(), core.end());
  for (Scenario& served : kvtrie::test::served_scenarios()) known.push_back(std::move(served));
  for (Scenario& call : kvtrie::test::plugin_scenarios(KVTRIE_STEPPED_PLUGIN)) known.push_back(std::move(call));
  return known;
}

int step(const Settings& settings, const std::vector<Scenario>& known) {
  stay_on_this_core();
  std::signal(SIGALRM, on_alarm);
  kvtrie::test::CrashWorld world;
  const std::string plan = settings.plan.all ? "all" : std::to_string(settings.plan.stride);
  StepTable table({plan, settings.plan.shard, settings.plan.shard_count}, settings.resume);
  for (const Scenario& scenario : known) {
    if (!chosen(settings, scenario) || table.has(scenario.name)) continue;
    const auto start = std::chrono::steady_clock::now();
    const StepOutcome outcome = run(world, scenario, settings.plan);
    show(scenario, outcome,
         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    table.add(scenario.name, outcome);
  }
  return table.print() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const Settings settings = parse(argc, argv);
  const std::vector<Scenario> known = known_scenarios();
  std::vector<std::string> names;
  for (const Scenario& scenario : known) names.emplace_back(scenario.name);
  if (settings.list) {
    for (const std::string& name : names) fmt::print("{}\n", name);
    return 0;
  }
  try {
    return settings.merge.empty() ? step(settings, known) : kvtrie::test::print_merged(settings.merge, names) ? 0 : 1;
  } catch (const std::exception& failure) {
    fmt::print(stderr, "step_kill: {}\n", failure.what());
    return 1;
  }
}
