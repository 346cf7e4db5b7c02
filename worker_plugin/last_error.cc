// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/last_error.h"

#include <algorithm>

namespace kvtrie {
namespace {

constexpr std::size_t kTextMax = 511;
thread_local char text_of_thread[kTextMax + 1];

static_assert(static_cast<int>(Code::kStale) == KVTRIE_E_STALE &&
                  static_cast<int>(Code::kBusy) == KVTRIE_E_BUSY &&
                  static_cast<int>(Code::kSystem) == KVTRIE_E_SYSTEM,
              "codes have one number inside and outside");

}  // namespace

const char* last_error() noexcept { return text_of_thread; }

kvtrie_code to_c(Code code) noexcept {
  // Internal to locks; a caller has no use for it.
  return code == Code::kOwnerDied ? KVTRIE_E_SYSTEM : static_cast<kvtrie_code>(code);
}

kvtrie_code fail_text(Code code, std::string_view text) noexcept {
  const std::size_t length = std::min(text.size(), kTextMax);
  std::copy_n(text.data(), length, text_of_thread);
  text_of_thread[length] = '\0';
  return to_c(code);
}

}  // namespace kvtrie
