// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/host.h"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <string>
#include <string_view>

namespace kvtrie::inspect {
namespace {

std::uint64_t clock_ns(clockid_t id) {
  timespec now{};
  ::clock_gettime(id, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

double difference_seconds(std::uint64_t now_ns, std::uint64_t then_ns) {
  return now_ns >= then_ns ? static_cast<double>(now_ns - then_ns) * 1e-9
                           : -static_cast<double>(then_ns - now_ns) * 1e-9;
}

}  // namespace

HostView::HostView(const Segment& segment)
    : clock_(static_cast<ClockKind>(segment.superblock().clock_kind)),
      tick_ns_(segment.superblock().tick_ns),
      now_tick_(segment.now_tick()),
      monotonic_ns_(clock_ns(CLOCK_MONOTONIC)),
      realtime_ns_(clock_ns(CLOCK_REALTIME)) {
  const Superblock& block = segment.superblock();
  if (const Result<BootId> boot = read_boot_id()) {
    same_boot_ = std::memcmp(boot->data(), block.boot_id, sizeof block.boot_id) == 0;
  }
  if (const Result<std::uint64_t> pid_namespace = own_pid_namespace()) {
    same_pid_namespace_ = *pid_namespace == block.pid_namespace;
  }
}

Liveness HostView::liveness(std::uint32_t pid, std::uint64_t start_time) const {
  if (pid == 0) return Liveness::kNone;
  if (!same_boot_) return Liveness::kDead;
  if (!same_pid_namespace_) return Liveness::kUnknown;
  const Result<FileDescriptor> pidfd = open_pidfd_of(pid, start_time);
  if (pidfd) return Liveness::kAlive;
  const Status status = pidfd.error();
  // EINVAL: a number that no process can have.
  const bool gone = status.code() == Code::kNotFound || status.system_errno() == EINVAL ||
                    status.system_errno() == ENOENT || status.system_errno() == ESRCH;
  return gone ? Liveness::kDead : Liveness::kUnknown;
}

bool HostView::stopped(std::uint32_t pid) const {
  constexpr std::string_view kLabel = "State:\t";  // then a letter
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(status, line);) {
    if (line.size() > kLabel.size() && line.starts_with(kLabel)) return line[kLabel.size()] == 'T' || line[kLabel.size()] == 't';
  }
  return false;
}

std::optional<double> HostView::age_seconds(std::uint32_t tick) const {
  if (clock_ == ClockKind::kSystem && !same_boot_) return std::nullopt;
  // Modulo 2^32, as everybody who compares ticks does.
  const auto ticks = static_cast<std::int32_t>(now_tick_ - tick);
  // A tick that began after this snapshot's, on a live segment, is now.
  if (ticks == -1) return 0.0;
  return static_cast<double>(ticks) * static_cast<double>(tick_ns_) * 1e-9;
}

std::optional<double> HostView::monotonic_age_seconds(std::uint64_t monotonic_ns) const {
  if (!same_boot_) return std::nullopt;
  return difference_seconds(monotonic_ns_, monotonic_ns);
}

double HostView::made_seconds_ago(std::uint64_t realtime_ns) const {
  return difference_seconds(realtime_ns_, realtime_ns);
}

}  // namespace kvtrie::inspect
