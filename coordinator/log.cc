// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/log.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace kvtrie {

LogSink limited_log(LogSink sink, std::uint32_t lines_a_second) {
  using Clock = std::chrono::steady_clock;
  struct Second {
    Clock::time_point start;
    std::uint32_t lines = 0;
  };
  return [sink = std::move(sink), lines_a_second, second = Second{}](std::string_view line) mutable {
    const auto now = Clock::now();
    if (now - second.start >= std::chrono::seconds(1)) {
      if (second.lines > lines_a_second) {
        sink(fmt::format("event=unlogged count={}", second.lines - lines_a_second));
      }
      second = {now, 0};
    }
    if (++second.lines <= lines_a_second) sink(line);
  };
}

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
