// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <iterator>

#include "shm/page_table.h"
#include "shm/recovery.h"
#include "shm/worker_table.h"
#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

std::vector<Scenario> make_all() {
  std::vector<Scenario> all;
  for (std::vector<Scenario> part :
       {begin_scenarios(), allocate_scenarios(), publish_scenarios(), release_scenarios(),
        wait_scenarios(), incomplete_scenarios(), fork_scenarios(), batch_scenarios(),
        evict_scenarios(), recovery_scenarios(), admin_scenarios(), flush_scenarios(), look_scenarios(), device_scenarios()}) {
    std::ranges::move(part, std::back_inserter(all));
  }
  for (Scenario& scenario : all) {
    scenario.cached = prefixes_of(scenario.cached);
    scenario.may_come = prefixes_of(scenario.may_come);
    scenario.done_come = prefixes_of(scenario.done_come);
  }
  return all;
}

}  // namespace

std::span<const Scenario> all_scenarios() {
  static const std::vector<Scenario> all = make_all();
  return all;
}

const Scenario& scenario_named(std::string_view name) {
  const auto found = std::ranges::find(all_scenarios(), name, &Scenario::name);
  if (found == all_scenarios().end()) throw std::out_of_range(std::string(name));
  return *found;
}

}  // namespace kvtrie::test
