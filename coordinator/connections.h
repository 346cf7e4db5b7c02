// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The coordinator's Unix socket: accepts, receives and answers without ever waiting for a client.
// What a client says is decided elsewhere (PacketHandler).
//
// A connection lives kWireTimeoutMs at most and is given descriptors once. At kConnectionsMax the
// oldest one goes, first among those that hold no unconfirmed slot; and so it does when descriptors run short. So a client that is silent, sends
// garbage, does not read, or opens connections without end costs bounded memory and descriptors and
// delays nobody. (Descriptors that it does not read stay in its own queues when the connection is over,
// and count against the limit of descriptors in flight of our user, unless that is root: an allowed
// user can use it up until its process ends.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "coordinator/failure.h"
#include "shm/shared_object.h"
#include "shm/worker_table.h"

namespace kvtrie {

// As the kernel states it for the process that called connect().
struct Peer {
  std::uint32_t pid = 0;  // 0: of a PID namespace that we cannot see
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;
};

struct Answer {
  std::vector<std::byte> packet;
  std::vector<int> descriptors;          // sent along; they stay the coordinator's
  std::optional<SlotGrant> unconfirmed;  // handed to `closed` when the connection ends
  bool close = false;
};

class PacketHandler {
 public:
  virtual ~PacketHandler() = default;
  // Who may not even ask: the refusal. Empty: welcome.
  virtual std::optional<Answer> greet(const Peer& peer) = 0;
  virtual Answer answer(const Peer& peer, std::span<const std::byte> packet) = 0;
  virtual void closed(const SlotGrant& unconfirmed) = 0;
};

class Connections {
 public:
  static constexpr std::size_t kConnectionsMax = 256;

  explicit Connections(PacketHandler& handler) : handler_(handler) {}
  ~Connections();
  Connections(const Connections&) = delete;
  Connections& operator=(const Connections&) = delete;

  // Replaces a socket that a dead coordinator left: the caller holds the directory's lock.
  MaybeFailure listen(const std::string& path, unsigned mode);
  int epoll_fd() const { return epoll_.get(); }
  // Some of what is ready now; level-triggered, so the rest comes with the next call.
  void serve();
  void drop_expired();
  // Until the next connection's time is up; -1: there is none.
  std::int64_t next_deadline_ms() const;
  std::size_t open_count() const { return connections_.size(); }

 private:
  struct Connection {
    FileDescriptor socket;
    Peer peer;
    std::int64_t deadline_ms = 0;
    std::optional<SlotGrant> unconfirmed;
    bool given = false;  // descriptors
  };
  using Place = std::list<Connection>::iterator;  // in order of age, so of deadline

  void accept_some();
  bool admit(FileDescriptor socket);
  void receive(Place place);
  static bool send(const Connection& connection, const Answer& answer);
  void drop(Place place);
  void drop_oldest();

  PacketHandler& handler_;
  std::string path_;
  FileDescriptor listener_;
  FileDescriptor epoll_;
  std::list<Connection> connections_;
};

}  // namespace kvtrie
