// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a command gives back. Commands print nothing themselves, so tests run them in one process.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "tools/kvtrie/exit_codes.h"

namespace kvtrie::inspect {

using Json =
    nlohmann::ordered_json;  // keys stand in the order in which docs/kvtrie-json.md has them

// What a command may know of the host; filled in main, or by a test.
struct Environment {
  std::string shm_directory = "/dev/shm";  // where caches are looked for when none is named
  std::uint32_t euid = 0;
  std::string xdg_runtime_dir;
};

struct Outcome {
  Exit code = Exit::kOk;
  std::string out;  // for stdout
  std::string err;  // for stderr
};

// A failure in words; with --json also as an object on stdout, so that a script reads one stream.
inline Outcome failure(Exit code, const std::string& message, bool json) {
  Outcome outcome{code, {}, "kvtrie: " + message + "\n"};
  if (json) {
    Json object;
    object["error"]["exit_code"] = static_cast<int>(code);
    object["error"]["message"] = message;
    outcome.out = object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return outcome;
}

// One report struct a command, rendered by its own to_text and to_json.
template <typename Report>
Outcome render(const Report& report, bool json, Exit code = Exit::kOk) {
  Outcome outcome;
  outcome.code = code;
  outcome.out = json ? to_json(report).dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
                     : to_text(report);
  return outcome;
}

}  // namespace kvtrie::inspect
