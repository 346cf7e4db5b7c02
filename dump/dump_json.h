// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Statistics and parts as JSON: one spelling for info.json and for `kvtrie page --stats`.
#pragma once

#include <nlohmann/json.hpp>

#include "dump/page_layout.h"
#include "dump/statistics.h"

namespace kvtrie::dump {

// Without finite items min, max, mean and standard_deviation are null.
inline nlohmann::ordered_json to_json(const Statistics& all) {
  const auto number = [&](double value) {
    return all.finite() == 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(value);
  };
  return {{"items", all.items},
          {"nan", all.nan},
          {"inf", all.inf},
          {"min", number(all.min)},
          {"max", number(all.max)},
          {"mean", number(all.mean)},
          {"standard_deviation", number(all.standard_deviation)},
          {"histogram", all.histogram}};
}

inline nlohmann::ordered_json to_json(const Part& part, const Statistics& all) {
  return {{"name", part.name},           {"offset", part.offset}, {"bytes", part.bytes()},
          {"dtype", name_of(part.dtype)}, {"shape", part.shape},   {"statistics", to_json(all)}};
}

}  // namespace kvtrie::dump
