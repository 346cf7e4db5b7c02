// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/coordinator_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shm/runtime_directory.h"
#include "shm/segment.h"
#include "tools/kvtrie/caches.h"
#include "tools/kvtrie/host.h"

namespace kvtrie::inspect {

std::optional<Refusal> CoordinatorLock::take() {
  if (auto refusal = lock_directory()) return refusal;
  return lock_segment();
}

std::optional<Refusal> CoordinatorLock::lock_directory() {
  const std::string file = lock_path(directory_, cache_);
  directory_lock_ = FileDescriptor(::open(file.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!directory_lock_.open()) {
    if (errno == ENOENT) return std::nullopt;
    return Refusal{Exit::kRefused, fmt::format("opening {}: {}; run kvtrie as the user that runs kvtried, or as root",
                                               file, std::strerror(errno))};
  }
  if (::flock(directory_lock_.get(), LOCK_EX | LOCK_NB) == 0) return std::nullopt;
  if (errno != EWOULDBLOCK) {
    return Refusal{Exit::kSystem, fmt::format("locking {}: {}", file, std::strerror(errno))};
  }
  return Refusal{Exit::kRefused, running_text(pid_in_lock_file(), directory_)};
}

// A coordinator that was given another directory holds this one.
std::optional<Refusal> CoordinatorLock::lock_segment() {
  Result<FileDescriptor> fd = open_object(segment_object_name(cache_), Access::kReadOnly);
  if (!fd) {
    if (fd.error().code() == Code::kNotFound) return std::nullopt;
    return Refusal{exit_of(fd.error()), open_problem(environment_, cache_, fd.error())};
  }
  segment_lock_ = std::move(*fd);
  if (::flock(segment_lock_.get(), LOCK_EX | LOCK_NB) == 0) return std::nullopt;
  return Refusal{Exit::kRefused, running_text(pid_in_segment(), "in another --dir")};
}

std::string CoordinatorLock::pid_in_lock_file() const {
  char text[32] = {};
  const ssize_t got = ::pread(directory_lock_.get(), text, sizeof text - 1, 0);
  std::string pid(text, got > 0 ? static_cast<std::size_t>(got) : 0);
  pid.erase(std::ranges::find_if(pid, [](char c) { return c < '0' || c > '9'; }), pid.end());
  return pid.empty() ? pid_in_segment() : pid;
}

std::string CoordinatorLock::pid_in_segment() const {
  const Result<Segment> segment = open_segment(cache_, Access::kReadOnly);
  if (!segment) return "unknown";
  return std::to_string(segment->superblock().coordinator_pid.load(std::memory_order_relaxed));
}

std::string CoordinatorLock::running_text(const std::string& pid, const std::string& where) const {
  const Result<Segment> segment = open_segment(cache_, Access::kReadOnly);
  const bool elsewhere = segment && HostView(*segment).same_boot() && !HostView(*segment).same_pid_namespace();
  const std::string how =
      elsewhere ? "it is in another PID namespace, where that is its pid" : fmt::format("kill {}", pid);
  return fmt::format("cache '{}' is served by a coordinator (pid {}, {}): stop it first ({}), {}", cache_, pid, where,
                     how, purpose_);
}

}  // namespace kvtrie::inspect
