// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What is fuzzed: one function a group of readers. Any bytes are an input. A target returns, or it found something:
// then the process ends (finding.h, a sanitizer, a signal). Not thread-safe.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvtrie::fuzz {

void fuzz_plugin(const std::uint8_t* data, std::size_t size);  // calls of workers, on bytes damaged between them
void fuzz_kvtrie(const std::uint8_t* data, std::size_t size);  // commands of kvtrie that look
void fuzz_coordinator(const std::uint8_t* data,
                      std::size_t size);                     // adopt, reap, evict, administration, save, metrics
void fuzz_save(const std::uint8_t* data, std::size_t size);  // damaged save files
void fuzz_attach(const std::uint8_t* data,
                 std::size_t size);  // messages of the socket; segments that are attached to

struct Target {
  const char* name;
  void (*run)(const std::uint8_t* data, std::size_t size);
};

inline constexpr std::array<Target, 5> kTargets = {{{"plugin", fuzz_plugin},
                                                    {"kvtrie", fuzz_kvtrie},
                                                    {"coordinator", fuzz_coordinator},
                                                    {"save", fuzz_save},
                                                    {"attach", fuzz_attach}}};

}  // namespace kvtrie::fuzz
