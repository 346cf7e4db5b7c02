// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Each call with a handle, once, with arguments that are right: what goes wrong is then the handle's, or that of the
// moment.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "tests/worker_plugin/errors/error_world.h"

namespace kvtrie::test {

struct Handles {
  kvtrie_worker worker;
  kvtrie_namespace space;
  kvtrie_sequence sequence;
};

enum class By { kWorker, kSequence };

struct EveryCall {
  const char* name;
  By by;
  std::function<kvtrie_code(const Handles&)> call;
};

const std::vector<EveryCall>& every_call();

// Cases of all calls that `chosen(EveryCall)` says, with handles_of(world).
template <typename Chosen, typename HandlesOf>
ErrorCases cases_of(kvtrie_code code, const char* says, Chosen chosen, HandlesOf handles_of) {
  ErrorCases cases;
  for (const EveryCall& one : every_call()) {
    if (!chosen(one)) continue;
    cases.push_back(
        {one.name, code, says, [&one, handles_of](ErrorWorld& world) { return one.call(handles_of(world)); }});
  }
  return cases;
}

inline bool is_any_of(std::string_view name, const std::vector<std::string_view>& names) {
  for (const std::string_view one : names) {
    if (one == name) return true;
  }
  return false;
}

}  // namespace kvtrie::test
