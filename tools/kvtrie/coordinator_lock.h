// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Keeps coordinators out while a command changes a cache by itself: both locks that a coordinator holds, the one in the
// cache's directory and the one on the segment, which also meets a coordinator that was given another --dir. Held until
// the end of its life.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "shm/shared_object.h"
#include "tools/kvtrie/outcome.h"

namespace kvtrie::inspect {

struct Refusal {
  Exit code;
  std::string message;
};

class CoordinatorLock {
 public:
  // `purpose`: what is to be done when no coordinator runs, as in "then destroy the cache".
  CoordinatorLock(const Environment& environment, std::string cache, std::string directory, std::string purpose)
      : environment_(environment),
        cache_(std::move(cache)),
        directory_(std::move(directory)),
        purpose_(std::move(purpose)) {}

  // Without a directory, or without a segment, there is nothing to lock there.
  std::optional<Refusal> take();

 private:
  std::optional<Refusal> lock_directory();
  std::optional<Refusal> lock_segment();
  std::string pid_in_lock_file() const;
  std::string pid_in_segment() const;
  std::string running_text(const std::string& pid, const std::string& where) const;

  const Environment& environment_;
  const std::string cache_;
  const std::string directory_;
  const std::string purpose_;
  FileDescriptor directory_lock_;
  FileDescriptor segment_lock_;
};

}  // namespace kvtrie::inspect
