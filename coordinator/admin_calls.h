// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Does what administrative requests ask for (admin_wire.h), in the coordinator's loop: decides who may, checks the
// request, calls the part that knows how. AttachService receives the packets and words the refusals.
//
// An eviction is the only one that takes long: it scans all pages and then ends within kEvictTime, about as a pass of
// the loop's own does; its client asks again. The dead are reaped meanwhile.
//
// Crash: evict and flush leave what evictor.h and namespace_table.h say, pins what pins.h says. Draining and a stop
// that was asked for are this process's alone: the next coordinator serves.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "coordinator/connections.h"
#include "coordinator/log.h"
#include "coordinator/refused.h"
#include "coordinator/room_keeper.h"
#include "shm/admin_wire.h"
#include "shm/namespace_table.h"
#include "shm/pins.h"
#include "shm/segment.h"
#include "shm/worker_table.h"

namespace kvtrie {

class AdminCalls {
 public:
  static constexpr std::chrono::milliseconds kEvictTime{250};  // from the first batch on

  // `interrupted`: as RoomKeeper::pass has it.
  AdminCalls(const Segment& segment, RoomKeeper& keeper, std::function<bool()> interrupted,
             const LogSink& log)
      : segment_(segment),
        keeper_(keeper),
        namespaces_(segment),
        pins_(segment),
        interrupted_(std::move(interrupted)),
        log_(log) {}

  static bool knows(WireKind kind);
  // The reply's bytes. Requires knows(kind).
  using Reply = std::vector<std::byte>;
  std::variant<Reply, Refused> answer(const Peer& peer, WireKind kind, std::span<const std::byte> packet);

  bool draining() const { return draining_; }
  bool stop_requested() const { return stop_requested_; }
  bool pages_changed();  // since the last call: a pass is due

  // Takes pins away that have ended; looks once a second while there are some.
  void look_after_pins();
  // Until the next look is due, in milliseconds; -1: there are no pins.
  std::int64_t poll_after_ms() const;

 private:
  std::variant<Reply, Refused> evict(const Peer& peer, std::span<const std::byte> packet);
  std::variant<Reply, Refused> flush(const Peer& peer, std::span<const std::byte> packet);
  std::variant<Reply, Refused> pin(const Peer& peer, std::span<const std::byte> packet);
  std::variant<Reply, Refused> unpin(const Peer& peer, std::span<const std::byte> packet);
  std::variant<Reply, Refused> drain(const Peer& peer, std::span<const std::byte> packet);
  std::variant<Reply, Refused> stop(const Peer& peer, std::span<const std::byte> packet);
  std::optional<Refused> permission_problem(const Peer& peer, WireKind kind) const;
  static bool admin(const Peer& peer);
  bool attached(const Peer& peer) const;
  void end_pins();

  const Segment& segment_;
  RoomKeeper& keeper_;
  NamespaceTable namespaces_;
  PinTable pins_;
  std::function<bool()> interrupted_;
  const LogSink& log_;
  bool draining_ = false;
  bool stop_requested_ = false;
  bool pages_changed_ = false;
  std::chrono::steady_clock::time_point next_pins_look_{};
};

}  // namespace kvtrie
