// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A cache of the replay's own: a kvtried with a name and a directory that nobody else has. Whatever
// happens to the replay short of SIGKILL, the daemon is stopped and its objects are removed.
#pragma once

#include <sys/types.h>

#include <string>

#include "tools/replay/child_process.h"
#include "tools/replay/options.h"

namespace kvtrie::replay {

// With the exit code that fits.
struct CacheStartError {
  std::string text;
  ExitCode code;
};

class OwnCache {
 public:
  // Starts `kvtried` (a path) and waits until it serves. Throws CacheStartError.
  OwnCache(const ReplayOptions& options, const std::string& kvtried, Signals& signals);
  OwnCache(const OwnCache&) = delete;
  OwnCache& operator=(const OwnCache&) = delete;
  ~OwnCache();

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::string& directory() const { return directory_; }
  // Empty while it runs; else how it ended. May be asked again.
  [[nodiscard]] std::string how_it_ended();
  // What it has logged.
  [[nodiscard]] std::string log() const;

 private:
  void start(const ReplayOptions& options, const std::string& kvtried, Signals& signals);
  void clean_up() noexcept;

  std::string name_;
  std::string directory_;
  std::uint32_t planes_;
  pid_t pid_ = -1;
  int wait_status_ = 0;
  FileDescriptor output_;
};

}  // namespace kvtrie::replay
