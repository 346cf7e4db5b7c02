// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator of a CrashWorld, for victims that attach: kvtried's own parts (Connections, AttachService, Reaper,
// AdminCalls, RoomKeeper) on the world's objects and a socket, but for the files that a cache has. It runs only while
// serve() or reap() is called, so a tracer decides at which instruction of a victim its coordinator answers.
#pragma once

#include <memory>
#include <string>

#include "coordinator/admin_calls.h"
#include "coordinator/attach_service.h"
#include "coordinator/connections.h"
#include "coordinator/options.h"
#include "coordinator/reaper.h"
#include "coordinator/room_keeper.h"
#include "tests/support/crash_world.h"

namespace kvtrie::test {

// For sockets; removed at the end of this process.
const std::string& socket_directory();

class WorldCoordinator {
 public:
  // Listens on DIRECTORY/crash/socket.
  WorldCoordinator(const CrashWorld& world, DeviceKind device, const std::string& directory);

  // As after a start: watches who lives, reaps who does not, adopts the pages.
  void adopt();
  // Answers what has come. False: there was nothing.
  bool serve();
  // After the death of a worker: gives back what the slot held. Throws Violation when that does not happen.
  void reap(WorkerId slot);
  // A round of its loop without sleep: reaps, serves, evicts what is due.
  void turn();

 private:
  Options options_;
  LogSink log_ = [](std::string_view) {};
  CacheObjects cache_;
  std::optional<Reaper> reaper_;
  std::optional<RoomKeeper> keeper_;
  std::optional<AdminCalls> admin_;
  std::optional<AttachService> service_;
  std::optional<Connections> connections_;
};

}  // namespace kvtrie::test
