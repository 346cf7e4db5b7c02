// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Text of the last failure on this thread: what failed, on what, and what to do about it. A fixed
// buffer a thread, without a destructor, so that nothing of it outlives the library.
#pragma once

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "shm/status.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie {

const char* last_error() noexcept;

// For api_call.h; Code and kvtrie_code have the same numbers. Longer texts are cut.
kvtrie_code fail_text(Code code, std::string_view text) noexcept;

template <typename... Args>
kvtrie_code fail(Code code, fmt::format_string<Args...> format, Args&&... args) noexcept {
  try {
    char text[512];
    const auto end = fmt::format_to_n(text, sizeof text, format, std::forward<Args>(args)...);
    return fail_text(code, {text, static_cast<std::size_t>(end.out - text)});
  } catch (...) {
    return fail_text(code, "no memory for the message");
  }
}

kvtrie_code to_c(Code code) noexcept;

}  // namespace kvtrie
