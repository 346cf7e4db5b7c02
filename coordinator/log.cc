// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/log.h"

#include <algorithm>

namespace kvtrie {

std::string log_value(std::string_view text) {
  std::string value(text.substr(0, 64));
  std::ranges::replace_if(
      value,
      [](char c) {
        return !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                 c == '.' || c == '_' || c == '-' || c == ':' || c == '/' || c == '+' || c == '@');
      },
      '_');
  return value.empty() ? "-" : value;
}

}  // namespace kvtrie
