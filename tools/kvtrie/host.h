// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What this host says about what a segment says: whether its processes live, and how long ago a
// tick was.
#pragma once

#include <cstdint>
#include <optional>

#include "shm/process_identity.h"
#include "shm/segment.h"

namespace kvtrie::inspect {

enum class Liveness : std::uint8_t {
  kNone,  // no process is named
  kAlive,
  kDead,     // or its pid is another process's by now
  kUnknown,  // another PID namespace: pids mean nothing here
};

constexpr const char* name_of(Liveness liveness) {
  constexpr const char* kNames[] = {"none", "alive", "dead", "unknown"};
  return kNames[static_cast<std::uint8_t>(liveness)];
}

// Taken once a command, so that all ages of one output agree.
class HostView {
 public:
  explicit HostView(const Segment& segment);

  bool same_boot() const { return same_boot_; }
  bool same_pid_namespace() const { return same_pid_namespace_; }
  ClockKind clock() const { return clock_; }
  std::uint64_t tick_ns() const { return tick_ns_; }
  std::uint32_t now_tick() const { return now_tick_; }

  Liveness liveness(std::uint32_t pid, std::uint64_t start_time) const;
  // Of a living process: SIGSTOP, or a debugger, holds it.
  bool stopped(std::uint32_t pid) const;
  // Negative: in the future. None: ticks of another boot cannot be compared with now.
  std::optional<double> age_seconds(std::uint32_t tick) const;
  std::optional<double> monotonic_age_seconds(std::uint64_t monotonic_ns) const;
  double made_seconds_ago(std::uint64_t realtime_ns) const;

 private:
  ClockKind clock_;
  std::uint64_t tick_ns_;
  std::uint32_t now_tick_;
  std::uint64_t monotonic_ns_ = 0;
  std::uint64_t realtime_ns_ = 0;
  bool same_boot_ = false;
  bool same_pid_namespace_ = false;
};

}  // namespace kvtrie::inspect
