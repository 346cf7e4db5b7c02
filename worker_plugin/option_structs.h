// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Structs of kvtrie.h that begin with their size, so that callers and libraries of different
// releases understand each other: later releases append fields, an older caller's missing ones are
// zero, and a newer caller's, which this library cannot serve, are refused.
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

namespace kvtrie {

template <typename T>
concept SizedStruct = std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T> &&
    std::is_same_v<decltype(T::size), std::size_t>;

template <SizedStruct T>
bool size_is_served(const T& given) {
  return given.size >= sizeof given.size && given.size <= sizeof(T);
}

// Requires size_is_served(given).
template <SizedStruct T>
T read_sized(const T& given) {
  T copy{};
  std::memcpy(&copy, &given, given.size);
  return copy;
}

// Fills what the caller has room for; its size stays. Requires size_is_served(out).
template <SizedStruct T>
void write_sized(T& out, const T& value) {
  constexpr std::size_t kFirst = sizeof out.size;
  std::memcpy(reinterpret_cast<std::byte*>(&out) + kFirst,
              reinterpret_cast<const std::byte*>(&value) + kFirst, out.size - kFirst);
}

}  // namespace kvtrie
