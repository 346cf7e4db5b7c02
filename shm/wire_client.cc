// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/wire_client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <ctime>

#include "shm/runtime_directory.h"

namespace kvtrie {
namespace {

constexpr std::size_t kDescriptorsMax = kPlanesMax + 2;  // segment, pools, copy queue

std::int64_t now_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

Status no_coordinator(const CoordinatorAddress& address, int error, std::string& message) {
  message = fmt::format(
      "no coordinator for cache '{}': nobody answers on {} ({}); start it with: kvtried --cache {} "
      "--dir {} --pages N --page-bytes N",
      address.cache, socket_path(address.directory, address.cache), std::strerror(error),
      address.cache, address.directory);
  return {Code::kNoCoordinator, "no coordinator answers on the cache's socket; start kvtried",
          error};
}

// Takes the descriptors out of a received message, so that none can leak.
std::vector<FileDescriptor> descriptors_of(msghdr& header) {
  std::vector<FileDescriptor> found;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      found.emplace_back(fd);
    }
  }
  return found;
}

}  // namespace

Result<WireClient> WireClient::connect(const CoordinatorAddress& address, std::string& message) {
  message = cache_name_problem(address.cache);
  if (!message.empty()) return Status{Code::kInvalid, "not a cache name"};
  WireClient client;
  client.address_ = address;
  client.deadline_ms_ = now_ms() + address.timeout_ms;
  const std::string path = socket_path(address.directory, address.cache);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path) {
    message = fmt::format("socket path {} is longer than {} bytes; use a shorter directory", path,
                          sizeof name.sun_path - 1);
    return Status{Code::kInvalid, "the socket's path is too long"};
  }
  std::copy(path.begin(), path.end(), name.sun_path);
  client.socket_ = FileDescriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!client.socket_.open()) {
    return client.failed(Code::kSystem, "making a socket", errno, message);
  }
  // connect() of a Unix socket waits only for room in the backlog, and obeys the send time-out
  // there.
  const timeval limit{address.timeout_ms / 1000,
                      static_cast<suseconds_t>(address.timeout_ms % 1000) * 1000};
  (void)::setsockopt(client.socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  int rc = 0;
  do {
    rc = ::connect(client.socket_.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name);
  } while (rc != 0 && errno == EINTR && now_ms() < client.deadline_ms_);
  if (rc != 0) {
    const int error = errno;
    if (error == ENOENT || error == ECONNREFUSED || error == ENOTDIR) {
      return no_coordinator(address, error, message);
    }
    if (error == EACCES || error == EPERM) {
      message = fmt::format(
          "not allowed to connect to {}: run as the coordinator's user, or start kvtried with "
          "--mode "
          "and --allow-uid or --allow-gid",
          path);
      return Status{Code::kRefused, "not allowed to connect to the coordinator", error};
    }
    return client.failed(error == EAGAIN || error == EINTR ? Code::kTimeout : Code::kSystem,
                         "connecting to the coordinator", error, message);
  }
  return client;
}

Status WireClient::failed(Code code, const char* what, int error, std::string& message) const {
  message = fmt::format("cache '{}': {}: {}", address_.cache, what,
                        error == 0 ? name_of(code) : std::strerror(error));
  return {code, what, error};
}

Status WireClient::wait_for(short events, std::string& message) {
  for (;;) {
    const std::int64_t left = deadline_ms_ - now_ms();
    pollfd poll_set{socket_.get(), events, 0};
    const int ready = left <= 0 ? 0 : ::poll(&poll_set, 1, static_cast<int>(left));
    if (ready > 0) return {};
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return failed(Code::kSystem, "poll", errno, message);
    message = fmt::format(
        "the coordinator of cache '{}' did not answer within {} ms; see whether kvtried is stopped "
        "or busy",
        address_.cache, address_.timeout_ms);
    return {Code::kTimeout, "the coordinator did not answer in time"};
  }
}

void WireClient::say_layout(std::span<std::byte> request) {
  std::memcpy(request.data() + offsetof(WireHeader, layout_version), &kLayoutVersion, sizeof kLayoutVersion);
}

Status WireClient::exchange(std::span<const std::byte> request, std::span<std::byte> reply,
                            std::size_t& received, std::vector<FileDescriptor>* descriptors,
                            std::string& message) {
  for (;;) {
    const ssize_t sent =
        ::send(socket_.get(), request.data(), request.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) break;
    if (errno == EINTR) continue;
    // The coordinator may have answered (a refusal) and closed before it read anything: look.
    if (errno == EPIPE || errno == ECONNRESET) break;
    if (errno != EAGAIN) return failed(Code::kSystem, "sending to the coordinator", errno, message);
    if (Status status = wait_for(POLLOUT, message); !status) return status;
  }
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsMax * sizeof(int))] = {};
  iovec part{reply.data(), reply.size()};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t got = 0;
  for (bool reset = false;;) {
    got = ::recvmsg(socket_.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got >= 0) break;
    if (errno == EINTR) continue;
    if (errno == ECONNRESET && !reset) {
      // It closed with our request unread. The kernel says so first; its answer, a refusal, comes
      // after that.
      reset = true;
      continue;
    }
    if (errno != EAGAIN)
      return failed(Code::kSystem, "receiving from the coordinator", errno, message);
    if (Status status = wait_for(POLLIN, message); !status) return status;
  }
  std::vector<FileDescriptor> found = descriptors_of(header);
  if (got == 0) {
    message = fmt::format(
        "the coordinator of cache '{}' closed the connection without an answer: it stopped, or it "
        "is "
        "overrun by connections; try again",
        address_.cache);
    return {Code::kNoCoordinator, "the coordinator closed the connection"};
  }
  if ((header.msg_flags & MSG_CTRUNC) != 0) {
    return failed(Code::kSystem, "too few free file descriptors for the pools (ulimit -n)", EMFILE,
                  message);
  }
  if ((header.msg_flags & MSG_TRUNC) != 0) {
    return failed(Code::kRefused, "the coordinator's answer is of another version", 0, message);
  }
  received = static_cast<std::size_t>(got);
  if (descriptors != nullptr) *descriptors = std::move(found);
  return {};
}

Status WireClient::judge(std::span<const std::byte> reply, std::size_t received,
                         std::string& message) const {
  ReplyHead head;
  if (received < sizeof head)
    return failed(Code::kRefused, "not an answer of a kvtrie coordinator", 0, message);
  std::memcpy(&head, reply.data(), sizeof head);
  if (head.header.magic != kWireMagic) {
    return failed(Code::kRefused, "not an answer of a kvtrie coordinator", 0, message);
  }
  const auto refusal = static_cast<Refusal>(head.refusal);
  if (refusal != Refusal::kNone) {
    message = std::string(get_text(head.message));
    return {code_of(refusal), "the coordinator refused; the message says why"};
  }
  if (received != reply.size() || head.header.bytes != received ||
      head.header.version != kWireVersion) {
    return failed(Code::kRefused, "the coordinator's answer is of another version", 0, message);
  }
  return {};
}

Result<std::string> request_stats(const CoordinatorAddress& address, std::string& message) {
  Result<WireClient> client = WireClient::connect(address, message);
  if (!client) return client.error();
  TextReply reply{};
  if (Status status = client->call(make_message<PlainRequest>(WireKind::kStats), reply, message);
      !status) {
    return status;
  }
  return std::string(reply.text, std::min<std::size_t>(reply.text_bytes, sizeof reply.text));
}

Status ping(const CoordinatorAddress& address, std::string& message) {
  Result<WireClient> client = WireClient::connect(address, message);
  if (!client) return client.error();
  TextReply reply{};
  return client->call(make_message<PlainRequest>(WireKind::kPing), reply, message);
}

}  // namespace kvtrie
