// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Stands between a worker and a real kvtried and passes their packets on, so that a test acts at a moment between two
// of them, or changes one. The coordinator sees a connection of this very process, as without it.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "shm/runtime_directory.h"
#include "shm/shared_object.h"
#include "shm/wire.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

class Between {
 public:
  using Packet = std::vector<std::byte>;
  struct Actions {
    std::function<void()> before_request = {};                    // the coordinator has the connection already
    std::function<void(Packet&, FileDescriptor&)> on_reply = {};  // with the connection to the coordinator
  };

  Between(const TemporaryCache& cache, Actions actions)
      : actions_(std::move(actions)),
        upstream_(socket_path(cache.directory(), cache.name())),
        directory_(cache.directory() + "/between") {
    const std::string path = socket_path(directory_, cache.name());
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::filesystem::remove(path);
    listener_ = FileDescriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un name = name_of_path(path);
    if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0 ||
        ::listen(listener_.get(), 8) != 0) {
      ADD_FAILURE() << "listening on " << path;
    }
    thread_ = std::thread([this] { pass_on(); });
  }
  Between(const Between&) = delete;
  Between& operator=(const Between&) = delete;
  ~Between() {
    stop_ = true;
    thread_.join();
  }

  // To be given to attach in the place of the cache's own.
  const std::string& directory() const { return directory_; }

 private:
  static sockaddr_un name_of_path(const std::string& path) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strncpy(name.sun_path, path.c_str(), sizeof name.sun_path - 1);
    return name;
  }
  void pass_on() {
    while (!stop_) {
      pollfd waited{listener_.get(), POLLIN, 0};
      if (::poll(&waited, 1, 10) != 1) continue;
      const FileDescriptor client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      FileDescriptor server(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
      const sockaddr_un name = name_of_path(upstream_);
      if (::connect(server.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0)
        one_request(client, server);
      // A worker holds its connection until its slot is its own.
      if (server.open()) (void)receive(client);
    }
  }
  void one_request(const FileDescriptor& client, FileDescriptor& server) {
    const Packet request = receive(client);
    const auto hello = make_message<PlainRequest>(WireKind::kPing);
    (void)::send(server.get(), &hello, sizeof hello, MSG_NOSIGNAL);
    (void)receive(server);
    if (actions_.before_request) actions_.before_request();
    (void)::send(server.get(), request.data(), request.size(), MSG_NOSIGNAL);
    std::vector<FileDescriptor> descriptors;
    Packet reply = receive(server, &descriptors);
    if (actions_.on_reply) actions_.on_reply(reply, server);
    send_with(client, reply, descriptors);
  }
  static Packet receive(const FileDescriptor& from, std::vector<FileDescriptor>* descriptors = nullptr) {
    Packet packet(2 * kWireTextMax);
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    iovec part{packet.data(), packet.size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const ssize_t got = ::recvmsg(from.get(), &header, MSG_CMSG_CLOEXEC);
    packet.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    const cmsghdr* const rights = got > 0 ? CMSG_FIRSTHDR(&header) : nullptr;
    for (std::size_t i = 0; rights != nullptr && i < (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(rights) + i * sizeof fd, sizeof fd);
      FileDescriptor owned(fd);
      if (descriptors != nullptr) descriptors->push_back(std::move(owned));
    }
    return packet;
  }
  static void send_with(const FileDescriptor& to, Packet& packet, const std::vector<FileDescriptor>& descriptors) {
    alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
    iovec part{packet.data(), packet.size()};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (!descriptors.empty()) {
      header.msg_control = control;
      header.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
      cmsghdr* const rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      for (std::size_t i = 0; i < descriptors.size(); ++i) {
        const int fd = descriptors[i].get();
        std::memcpy(CMSG_DATA(rights) + i * sizeof fd, &fd, sizeof fd);
      }
    }
    (void)::sendmsg(to.get(), &header, MSG_NOSIGNAL);
  }

  Actions actions_;
  std::string upstream_;
  std::string directory_;
  FileDescriptor listener_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace kvtrie::test
