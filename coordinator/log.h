// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Lines "event=... key=value ..." go to a sink that main gives; the library prints nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace kvtrie {

// One line without its end. Called by the loop's thread only.
using LogSink = std::function<void(std::string_view line)>;

// For lines that clients cause: passes on so many a second, and then says how many it left out.
LogSink limited_log(LogSink sink, std::uint32_t lines_a_second);

// `text` as a value of a log line: what could break the line or the value apart becomes '_'; at
// most 64 bytes.
std::string log_value(std::string_view text);

}  // namespace kvtrie
