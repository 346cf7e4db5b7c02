// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/connections.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "shm/wire.h"

namespace kvtrie {
namespace {

constexpr int kBacklog = 128;
constexpr int kAcceptsAtOnce = 32;
constexpr int kEventsAtOnce = 64;
constexpr std::size_t kGroupsMax = 256;
// Connections leave so many descriptors to the rest: a new worker needs one for its life, beside its connection.
constexpr rlim_t kSpareDescriptors = 16;

std::int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

// The kernel gives the lowest number that is free.
bool nearly_last(int descriptor) {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
         static_cast<rlim_t>(descriptor) + kSpareDescriptors >= limit.rlim_cur;
}

std::optional<Peer> peer_of(int socket) {
  ucred credentials{};
  socklen_t bytes = sizeof credentials;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) != 0) return std::nullopt;
  Peer peer{static_cast<std::uint32_t>(credentials.pid), credentials.uid, credentials.gid, {}};
  std::array<gid_t, kGroupsMax> groups{};
  bytes = sizeof groups;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0) {
    peer.groups.assign(groups.begin(), groups.begin() + bytes / sizeof(gid_t));
  }
  return peer;
}

}  // namespace

Connections::~Connections() {
  while (!connections_.empty())
    drop(connections_.begin());
  if (!path_.empty()) ::unlink(path_.c_str());
}

MaybeFailure Connections::listen(const std::string& path, unsigned mode) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path) {
    return Failure{fmt::format("socket path {} is longer than {} bytes; use a shorter --dir", path,
                               sizeof name.sun_path - 1)};
  }
  std::ranges::copy(path, name.sun_path);
  epoll_ = FileDescriptor(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.open()) return system_failure("epoll_create1", errno);
  listener_ = FileDescriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_.open()) return system_failure("making a socket", errno);
  ::unlink(path.c_str());
  if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0) {
    return system_failure("binding " + path, errno);
  }
  path_ = path;
  // Nobody can connect before listen(), so there is no moment with wider permissions.
  if (::chmod(path.c_str(), mode) != 0) return system_failure("chmod " + path, errno);
  if (::listen(listener_.get(), kBacklog) != 0)
    return system_failure("listening on " + path, errno);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) != 0) {
    return system_failure("watching the socket", errno);
  }
  return {};
}

void Connections::serve() {
  std::array<epoll_event, kEventsAtOnce> events;
  const int ready = ::epoll_wait(epoll_.get(), events.data(), kEventsAtOnce, 0);
  bool accepts = false;
  for (int i = 0; i < ready; ++i) {
    auto* const connection = static_cast<Connection*>(events[static_cast<std::size_t>(i)].data.ptr);
    if (connection == nullptr) {
      accepts = true;
      continue;
    }
    const auto place =
        std::ranges::find(connections_, connection, [](Connection& c) { return &c; });
    if (place != connections_.end()) receive(place);
  }
  // Last, since it may drop connections that have an event in this batch.
  if (accepts) accept_some();
}

void Connections::accept_some() {
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    FileDescriptor socket(
        ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.open()) {
      // Without a free descriptor the listener would stay readable for ever: make room.
      if ((errno == EMFILE || errno == ENFILE) && !connections_.empty()) drop_oldest();
      return;
    }
    if (connections_.size() >= kConnectionsMax) {
      drop_oldest();
    } else if (nearly_last(socket.get()) && !connections_.empty()) {
      drop_oldest();
      FileDescriptor lower(::fcntl(socket.get(), F_DUPFD_CLOEXEC, 0));  // the number that became free
      if (lower.open()) socket = std::move(lower);
    }
    (void)admit(std::move(socket));
  }
}

bool Connections::admit(FileDescriptor socket) {
  std::optional<Peer> peer = peer_of(socket.get());
  if (!peer) return false;
  connections_.push_back({std::move(socket), std::move(*peer), now_ms() + kWireTimeoutMs, {}});
  Connection& connection = connections_.back();
  if (const std::optional<Answer> refusal = handler_.greet(connection.peer)) {
    (void)send(connection, *refusal);
    connections_.pop_back();
    return false;
  }
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP;
  event.data.ptr = &connection;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection.socket.get(), &event) != 0) {
    connections_.pop_back();
    return false;
  }
  return true;
}

void Connections::receive(Place place) {
  alignas(8) std::array<std::byte, kWireRequestMax> packet;
  // No room for descriptors is offered, so none that a client sends can stay with us. MSG_TRUNC:
  // the real length.
  const ssize_t got =
      ::recv(place->socket.get(), packet.data(), packet.size(), MSG_DONTWAIT | MSG_TRUNC);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) {
    drop(place);
    return;
  }
  const std::size_t bytes = std::min(static_cast<std::size_t>(got), packet.size() + 1);
  const Answer answer = handler_.answer(
      place->peer, bytes > packet.size()
                       ? std::span<const std::byte>()  // too long: as good as nothing
                       : std::span<const std::byte>(packet.data(), bytes));
  std::optional<SlotGrant> second;
  if (answer.unconfirmed) {
    second = place->unconfirmed;
    place->unconfirmed = answer.unconfirmed;
  }
  if (second) handler_.closed(*second);
  const bool again = !answer.descriptors.empty() && place->given;
  place->given = place->given || !answer.descriptors.empty();
  if (again || !send(*place, answer) || answer.close) drop(place);
}

bool Connections::send(const Connection& connection, const Answer& answer) {
  iovec part{const_cast<std::byte*>(answer.packet.data()), answer.packet.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE((kPlanesMax + 2) * sizeof(int))] = {};
  const std::size_t bytes = answer.descriptors.size() * sizeof(int);
  if (bytes != 0) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(rights), answer.descriptors.data(), bytes);
  }
  return ::sendmsg(connection.socket.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(answer.packet.size());
}

void Connections::drop(Place place) {
  const std::optional<SlotGrant> unconfirmed = place->unconfirmed;
  connections_.erase(place);
  if (unconfirmed) handler_.closed(*unconfirmed);
}

void Connections::drop_oldest() {
  const auto idle =
      std::ranges::find_if(connections_, [](const Connection& c) { return !c.unconfirmed; });
  drop(idle != connections_.end() ? idle : connections_.begin());
}

void Connections::drop_expired() {
  const std::int64_t now = now_ms();
  while (!connections_.empty() && connections_.front().deadline_ms <= now)
    drop(connections_.begin());
}

std::int64_t Connections::next_deadline_ms() const {
  if (connections_.empty()) return -1;
  return std::max<std::int64_t>(connections_.front().deadline_ms - now_ms(), 0);
}

}  // namespace kvtrie
