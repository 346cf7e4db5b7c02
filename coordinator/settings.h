// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every setting of kvtried in one table: a flag --KEY and a line `KEY = value` of a TOML file are
// the same thing, read by the same function. A flag beats the file.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "coordinator/failure.h"
#include "coordinator/options.h"
#include "shm/status.h"

namespace kvtrie {

enum class SettingKind : std::uint8_t { kValue, kList, kSwitch };

struct Setting {
  const char* key;  // as in the file; the flag is "--" + key
  SettingKind kind;
  const char* value_name;
  const char* help;
  // Stores one value (of a list: one more). Returns what is wrong with it, or nothing.
  std::string (*apply)(Options& options, const std::string& text);
};

std::span<const Setting> settings();

// Applies a TOML file, except for keys that `overridden` names (flags were given for them; they are
// checked all the same). Unknown keys and values of a wrong type are failures that name the key and
// its line.
MaybeFailure apply_file(const std::string& path,
                        const std::function<bool(std::string_view)>& overridden, Options& options);

// "4096", "512K", "2MiB": K, M, G, T with or without iB, powers of 1024.
Result<std::uint64_t> parse_bytes(std::string_view text);

}  // namespace kvtrie
