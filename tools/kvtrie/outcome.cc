// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/outcome.h"

#include <nlohmann/json.hpp>

namespace kvtrie::inspect {

std::string json_text(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"; }

Outcome failure(Exit code, const std::string& message, bool json) {
  Outcome outcome{code, {}, "kvtrie: " + message + "\n"};
  if (json) {
    Json object;
    object["error"]["exit_code"] = static_cast<int>(code);
    object["error"]["message"] = message;
    outcome.out = json_text(object);
  }
  return outcome;
}

}  // namespace kvtrie::inspect
