// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// SIGHUP: flags and file are read again, and of what they say now a running coordinator takes over what it can.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/options.h"

namespace kvtrie {

// When a changed setting takes effect.
enum class SettingChange : std::uint8_t {
  kAtOnce,
  kRestart,   // of kvtried
  kNewCache,  // it is fixed in the segment
};
// Of every key of settings(); empty for other words.
std::optional<SettingChange> change_of(std::string_view key);

struct Reload {
  std::vector<std::string> changed;  // keys
  struct Ignored {
    std::string key;
    SettingChange needs;
  };
  std::vector<Ignored> ignored;  // differ, and stay as they were
};
// Takes over into `now` what of `next` can change at once.
Reload reload(Options& now, const Options& next);
// The lines for the log: what changed, and for each setting that did not, what it needs.
std::vector<std::string> log_lines(const Reload& reload);

}  // namespace kvtrie
