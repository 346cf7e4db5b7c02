// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The cache's directory DIR/NAME: made when missing, and locked while this object lives, so that
// one coordinator at a time serves the cache. The lock is flock's, so the kernel drops it with its
// holder; the pid inside is for people. Permissions follow the objects' mode: who may read those
// may enter.
#pragma once

#include <string>

#include "coordinator/failure.h"
#include "shm/shared_object.h"

namespace kvtrie {

class CacheDirectory {
 public:
  // Exit code kExitOtherRunning when another coordinator holds it; the text has its pid.
  static MaybeFailure lock(const std::string& directory, const std::string& cache, unsigned mode,
                           CacheDirectory& locked);

  const std::string& path() const { return path_; }
  std::string socket_path() const { return path_ + "/socket"; }

 private:
  std::string path_;
  FileDescriptor lock_;
};

// Directory mode that fits an object mode: x wherever it has r or w.
constexpr unsigned directory_mode(unsigned object_mode) {
  return object_mode | ((object_mode >> 1 | object_mode >> 2) & 0111);
}

}  // namespace kvtrie
