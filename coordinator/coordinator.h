// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator of one cache: puts the parts together and runs them in one thread around epoll.
//
//   urgent     signalfd, pidfds of the workers (Reaper): first, and in the midst of an eviction
//   doorbell   workers that ran low on pages, or detached: reap_leaving, RoomKeeper::pass
//   sockets    attach, namespaces, administration: Connections, AttachService, AdminCalls
//   hangup     SIGHUP: settings are read again (reload.h)
//   prefault   the background thread has ended
//
// Start: lock the directory, open or make the objects, adopt (rule 15), listen. The segment's
// coordinator_state says kAdopting until then, kServing (or kDraining) from then on, kStopped after a
// clean stop; the cache stays. A poisoned segment ends run(); kvtried then starts once more and so makes the successor.
//
// Crash: at any instruction. The lock goes with the process, workers go on with what is free, the
// next start adopts: adopt.after_epoch, adopt.after_slots, adopt.after_pages /
// AdoptTest.DiesWhileItAdopts, KvtriedTest.RestartsAgainAndAgainUnderSigkill.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/admin_calls.h"
#include "coordinator/attach_service.h"
#include "coordinator/cache_directory.h"
#include "coordinator/cache_store.h"
#include "coordinator/connections.h"
#include "coordinator/doorbell_watcher.h"
#include "coordinator/failure.h"
#include "coordinator/log.h"
#include "coordinator/loop_health.h"
#include "coordinator/options.h"
#include "coordinator/prefault.h"
#include "coordinator/realtime.h"
#include "coordinator/reaper.h"
#include "coordinator/room_keeper.h"

namespace kvtrie {

class Coordinator {
 public:
  Coordinator(Options options, LogSink log) : options_(std::move(options)), log_(std::move(log)) {}

  // Makes this process the only coordinator of the cache; changes nothing of the cache itself.
  MaybeFailure lock();
  // `fd` becomes readable when settings are to be read again, and is emptied by `read`, which gives all settings as they
  // are written now, or why they cannot be read. Before start().
  void reload_on(int fd, std::function<MaybeFailure(Options& options)> read) {
    reload_fd_ = fd;
    read_options_ = std::move(read);
  }
  // `signal_fd` becomes readable when the coordinator is to stop. After lock(), by the thread that calls run().
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
  // After start(); by any thread. Empty: all is well. Else, for people, why this process is to be restarted (alive), or
  // why nobody new is to be sent here (ready).
  std::string alive_problem() const { return health_.problem(); }
  std::string ready_problem() const;
  // By any thread after start().
  PrefaultFigures prefault_figures() const { return prefault_ ? prefault_->figures() : PrefaultFigures{}; }

 private:
  MaybeFailure take_over();
  MaybeFailure watch(const FileDescriptor& epoll, int fd) const;
  bool urgent() const;
  bool signalled() const;
  bool interrupted();
  std::int64_t sleep_ms(bool due) const;
  MaybeFailure start_prefault();
  void raise_priority();
  bool attend(int fd);
  std::optional<End> ended();
  void reload_settings();
  void wake_everybody() const;

  // Constant after start(). Destroyed in reverse order: the lock goes last.
  Options options_;
  LogSink log_;
  LogSink client_log_;
  int signal_fd_ = -1;
  int reload_fd_ = -1;
  std::function<MaybeFailure(Options&)> read_options_;
  HostIdentity host_;
  CacheDirectory directory_;
  CacheObjects cache_;
  FileDescriptor urgent_;
  FileDescriptor epoll_;
  std::optional<Reaper> reaper_;
  std::optional<RoomKeeper> keeper_;
  std::optional<AdminCalls> admin_;
  std::optional<AttachService> service_;
  std::optional<DoorbellWatcher> doorbell_;
  std::optional<Connections> connections_;
  std::optional<Prefault> prefault_;
  Realtime realtime_;
  LoopHealth health_;
  bool stop_signalled_ = false;
};

}  // namespace kvtrie
