// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A cache of the replay's own: a kvtried with a name and a directory that nobody else has. Whatever
// happens to the replay short of SIGKILL, the daemon is stopped and its objects are removed.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

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
  // SIGKILL, SIGSTOP, SIGCONT to the daemon. Of one that was killed start_again() starts a successor, which takes the
  // cache over, and serves() says when: it returns at once.
  void kill();
  void stop() const;
  void go_on() const;
  void start_again();
  [[nodiscard]] bool serves();
  // Empty while it runs; else how it ended. May be asked again.
  [[nodiscard]] std::string how_it_ended();
  // What it has logged.
  [[nodiscard]] std::string log() const;

 private:
  void await(Signals& signals);
  void clean_up() noexcept;

  std::string name_;
  std::string directory_;
  std::string program_;  // kvtried
  std::vector<std::string> arguments_;
  std::uint32_t planes_;
  pid_t pid_ = -1;
  int wait_status_ = 0;
  FileDescriptor output_;
  std::string said_;  // by the daemon that runs
};

}  // namespace kvtrie::replay
