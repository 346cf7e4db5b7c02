// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator of one cache: puts the parts together and runs them in one thread around epoll.
//
//   urgent     signalfd, pidfds of the workers (Reaper): first, and in the midst of an eviction
//   doorbell   workers that ran low on pages, or detached: reap_leaving, RoomKeeper::pass
//   sockets    attach, namespaces, administration: Connections, AttachService
//
// Start: lock the directory, open or make the objects, adopt (rule 15), listen. The segment's
// coordinator_state says kAdopting until then, kServing from then on, kStopped after a clean stop;
// the cache stays. A poisoned segment ends run(); kvtried then starts once more and so makes the successor.
//
// Crash: at any instruction. The lock goes with the process, workers go on with what is free, the
// next start adopts: adopt.after_epoch, adopt.after_slots, adopt.after_pages /
// AdoptTest.DiesWhileItAdopts, KvtriedTest.RestartsAgainAndAgainUnderSigkill.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/attach_service.h"
#include "coordinator/cache_directory.h"
#include "coordinator/cache_store.h"
#include "coordinator/connections.h"
#include "coordinator/doorbell_watcher.h"
#include "coordinator/failure.h"
#include "coordinator/log.h"
#include "coordinator/options.h"
#include "coordinator/reaper.h"
#include "coordinator/room_keeper.h"

namespace kvtrie {

class Coordinator {
 public:
  Coordinator(Options options, LogSink log) : options_(std::move(options)), log_(std::move(log)) {}

  // Makes this process the only coordinator of the cache; changes nothing of the cache itself.
  MaybeFailure lock();
  // `signal_fd` becomes readable when the coordinator is to stop. After lock().
  MaybeFailure start(int signal_fd);
  enum class End : std::uint8_t {
    kStopped,
    kPoisoned,  // the segment was given up; the next start makes its successor
  };
  // Serves until then. Call after start() only.
  MaybeFailure run(End& end);
  // Clean end: the segment and its pages stay for the next start.
  void stop();

  const Segment& segment() const { return *cache_.segment; }
  bool adopted() const { return cache_.adopted; }
  std::string socket_path() const { return directory_.socket_path(); }
  // Told how long each batch of an eviction was condemned, in seconds. After start().
  void on_pause(std::function<void(double)> observer) { keeper_->on_pause(std::move(observer)); }

 private:
  MaybeFailure take_over();
  MaybeFailure watch(const FileDescriptor& epoll, int fd) const;
  bool urgent() const;
  bool signalled() const;
  bool interrupted();
  std::int64_t sleep_ms(bool due) const;
  void wake_everybody() const;

  // Constant after start(). Destroyed in reverse order: the lock goes last.
  Options options_;
  LogSink log_;
  LogSink client_log_;
  int signal_fd_ = -1;
  HostIdentity host_;
  CacheDirectory directory_;
  CacheObjects cache_;
  FileDescriptor urgent_;
  FileDescriptor epoll_;
  std::optional<Reaper> reaper_;
  std::optional<AttachService> service_;
  std::optional<RoomKeeper> keeper_;
  std::optional<DoorbellWatcher> doorbell_;
  std::optional<Connections> connections_;
};

}  // namespace kvtrie
