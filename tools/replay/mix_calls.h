// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The plugin as a mix calls it: each answer is counted, and one that the call must not give ends the replay.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <initializer_list>
#include <string>

#include "tools/replay/mix_board.h"
#include "tools/replay/plugin.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie::replay {

// A set of codes, for what a call may answer.
class Codes {
 public:
  constexpr Codes(std::initializer_list<kvtrie_code> codes) {
    for (const kvtrie_code code : codes)
      add(code);
  }
  constexpr Codes& add(kvtrie_code code, bool when = true) {
    if (when) bits_ |= 1U << static_cast<unsigned>(code);
    return *this;
  }
  [[nodiscard]] constexpr bool has(kvtrie_code code) const {
    return static_cast<unsigned>(code) < 32 && (bits_ >> static_cast<unsigned>(code) & 1U) != 0;
  }

 private:
  unsigned bits_ = 0;
};

// Pointers to the calls of kvtrie_device.h, which are not in the table.
struct DeviceCalls {
  explicit DeviceCalls(const std::string& plugin);  // throws PluginError
#define KVTRIE_MIX_NAME(name) decltype(&kvtrie_##name) name;
  KVTRIE_MIX_DEVICE_CALLS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
};

template <MixCall Which>
struct MixCallOf;
#define KVTRIE_MIX_NAME(call)                                                       \
  template <>                                                                       \
  struct MixCallOf<MixCall::call> {                                                 \
    static auto get(const kvtrie_api& api, const DeviceCalls&) { return api.call; } \
  };
KVTRIE_MIX_TABLE_CALLS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME
#define KVTRIE_MIX_NAME(call)                                                             \
  template <>                                                                             \
  struct MixCallOf<MixCall::call> {                                                       \
    static auto get(const kvtrie_api&, const DeviceCalls& device) { return device.call; } \
  };
KVTRIE_MIX_DEVICE_CALLS(KVTRIE_MIX_NAME)
#undef KVTRIE_MIX_NAME

class MixCalls {
 public:
  MixCalls(const Plugin& plugin, const std::string& path, MixTally& tally, WorkerTally& times)
      : plugin_(plugin), device_(path), tally_(tally), times_(times) {}

  // Throws PluginError when the answer is not in `allowed`.
  template <MixCall Which, typename... A>
  kvtrie_code make(Codes allowed, A... arguments) const {
    const auto start = std::chrono::steady_clock::now();
    const kvtrie_code code = MixCallOf<Which>::get(*plugin_.operator->(), device_)(arguments...);
    if constexpr (Which == MixCall::begin) record(Timing::kLookup, start);
    if constexpr (Which == MixCall::allocate) record(Timing::kAllocate, start);
    if constexpr (Which == MixCall::publish) record(Timing::kPublish, start);
    if constexpr (Which == MixCall::release) record(Timing::kRelease, start);
    tally_.add(Which, code);
    if (!allowed.has(code)) refuse(Which, code, allowed);
    return code;
  }
  // The calls that answer a text.
  template <MixCall Which, typename... A>
  std::string text(A... arguments) const {
    const char* text = MixCallOf<Which>::get(*plugin_.operator->(), device_)(arguments...);
    tally_.add(Which, text != nullptr ? KVTRIE_OK : KVTRIE_E_INVALID);
    return text == nullptr ? "" : text;
  }
  // Throws PluginError: "publish: more pages than asked for".
  template <typename... A>
  void require(bool holds, MixCall call, fmt::format_string<A...> text, A&&... values) const {
    if (holds) return;
    throw PluginError(fmt::format("{}: {}", kMixCallNames[static_cast<std::size_t>(call)],
                                  fmt::format(text, std::forward<A>(values)...)));
  }
  [[nodiscard]] const Plugin& plugin() const { return plugin_; }

 private:
  void record(Timing timing, std::chrono::steady_clock::time_point start) const {
    const auto took = std::chrono::steady_clock::now() - start;
    times_.timing(timing).record(
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()));
  }
  [[noreturn]] void refuse(MixCall which, kvtrie_code code, Codes allowed) const;

  const Plugin& plugin_;
  DeviceCalls device_;
  MixTally& tally_;
  WorkerTally& times_;
};

}  // namespace kvtrie::replay
