// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a command gives back. Commands print nothing themselves, so tests run them in one process.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>

#include "tools/kvtrie/exit_codes.h"

namespace kvtrie::inspect {

// Keys stand in the order in which docs/kvtrie-json.md has them. What makes or reads one includes nlohmann/json.hpp.
using Json = nlohmann::ordered_json;

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

// As --json prints it; bytes that are not UTF-8 are replaced.
std::string json_text(const Json& json);

// A failure in words; with --json also as an object on stdout, so that a script reads one stream.
Outcome failure(Exit code, const std::string& message, bool json);

// One report struct a command, rendered by its own to_text and to_json.
template <typename Report>
Outcome render(const Report& report, bool json, Exit code = Exit::kOk) {
  return {code, json ? json_text(to_json(report)) : to_text(report), {}};
}

}  // namespace kvtrie::inspect
