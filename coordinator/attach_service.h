// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Decides on requests: who may attach, which slot, which descriptors; namespaces; statistics. What an administrator
// asks for goes to AdminCalls. Every refusal has a code (shm/wire.h) and a text that says what to do. It never waits
// for anybody; Connections does the talking.
//
// The order of checks in attach is the order in which an operator would want to hear of them:
//   credentials -> protocol -> cache -> layout, fingerprint -> role -> PID namespace -> poisoned ->
//   draining -> plane writer's mask and scheduler -> identity -> table
//
// Who gets which planes writable: workers all of them, plane writers those of their mask, observers none. (On a queued
// device nobody: they get the copy queue. A plane writer's segment is writable too: its slot's state and its wish to
// leave are stores there, and one segment is one trust domain.)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/admin_calls.h"
#include "coordinator/cache_store.h"
#include "coordinator/connections.h"
#include "coordinator/log.h"
#include "coordinator/options.h"
#include "coordinator/reaper.h"
#include "shm/namespace_table.h"
#include "shm/wire.h"
#include "shm/worker_table.h"

namespace kvtrie {

class AttachService final : public PacketHandler {
 public:
  AttachService(const Options& options, const CacheObjects& cache, Reaper& reaper, AdminCalls& admin,
                const LogSink& log);

  std::optional<Answer> greet(const Peer& peer) override;
  Answer answer(const Peer& peer, std::span<const std::byte> packet) override;
  void closed(const SlotGrant& unconfirmed) override { reaper_.give_up(unconfirmed); }

 private:
  using No = Refused;

  Answer attach(const Peer& peer, std::span<const std::byte> packet);
  Answer open_namespace(const Peer& peer, std::span<const std::byte> packet);
  Answer administer(const Peer& peer, WireKind kind, std::span<const std::byte> packet);
  Answer text_reply(const std::string& text) const;
  No protocol_problem(std::span<const std::byte> packet) const;
  No build_problem(const AttachRequest& request) const;
  No place_problem(const Peer& peer, const AttachRequest& request) const;
  No writer_problem(const AttachRequest& request) const;
  Answer grant(const Peer& peer, const AttachRequest& request, WorkerRole role);
  Answer attached(const Peer& peer, const AttachRequest& request, SlotGrant grant) const;
  static Access access_to(const AttachRequest& request, std::uint32_t plane);
  Answer refuse(const Peer& peer, const No& no);

  const Options& options_;
  const CacheObjects& cache_;
  const Segment& segment_;
  WorkerTable table_;
  NamespaceTable namespaces_;
  Reaper& reaper_;
  AdminCalls& admin_;
  const LogSink& log_;
  const LogSink log_refused_;  // refused clients must not fill the log
};

}  // namespace kvtrie
