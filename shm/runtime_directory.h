// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Where a cache's directory is. A pure rule, so that coordinator, plugin and tools agree without
// reading the environment below main.
//
//   DIR/NAME/lock     held (flock) by the coordinator that runs, its pid inside
//   DIR/NAME/socket   attach and admin requests, see wire.h
#pragma once

#include <cstdint>
#include <string>

namespace kvtrie {

// DIR when nobody names one: /run/kvtrie for root, $XDG_RUNTIME_DIR/kvtrie for others. Without that
// variable (null or empty), what it is on a system with logind.
inline std::string default_runtime_directory(std::uint32_t euid, const char* xdg_runtime_dir) {
  if (euid == 0) return "/run/kvtrie";
  if (xdg_runtime_dir != nullptr && *xdg_runtime_dir != '\0') {
    return std::string(xdg_runtime_dir) + "/kvtrie";
  }
  return "/run/user/" + std::to_string(euid) + "/kvtrie";
}

inline std::string cache_directory_path(const std::string& directory, const std::string& cache) {
  return directory + "/" + cache;
}
inline std::string socket_path(const std::string& directory, const std::string& cache) {
  return cache_directory_path(directory, cache) + "/socket";
}
inline std::string lock_path(const std::string& directory, const std::string& cache) {
  return cache_directory_path(directory, cache) + "/lock";
}

}  // namespace kvtrie
