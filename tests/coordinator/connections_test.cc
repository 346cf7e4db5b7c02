// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/connections.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "shm/wire.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

// Answers what it got; "slot" is answered with a grant, "close" with an end.
class Echo final : public PacketHandler {
 public:
  std::optional<Answer> greet(const Peer& peer) override {
    peers_.push_back(peer);
    if (!refuses_) return std::nullopt;
    return Answer{bytes("no"), {}, {}, true};
  }
  Answer answer(const Peer&, std::span<const std::byte> packet) override {
    packets_.emplace_back(reinterpret_cast<const char*>(packet.data()), packet.size());
    Answer answer{bytes(packets_.back().empty() ? "empty" : packets_.back()),
                  {},
                  {},
                  packets_.back() == "close"};
    if (packets_.back() == "slot") answer.unconfirmed = SlotGrant{{1}, ++granted_};
    if (packets_.back() == "descriptors") answer.descriptors = {STDERR_FILENO};
    return answer;
  }
  void closed(const SlotGrant& grant) override { given_up_.push_back(grant.incarnation); }

  static std::vector<std::byte> bytes(const std::string& text) {
    const auto span = std::as_bytes(std::span(text));
    return {span.begin(), span.end()};
  }

  std::vector<Peer> peers_;
  std::vector<std::string> packets_;
  std::vector<std::uint64_t> given_up_;
  std::uint64_t granted_ = 0;
  bool refuses_ = false;
};

class ConnectionsTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = cache_.directory() + "/socket";
    ASSERT_FALSE(connections_.listen(path_, 0600));
  }

  FileDescriptor connect() const {
    FileDescriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strcpy(name.sun_path, path_.c_str());
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name), 0);
    return fd;
  }
  // Everything that is ready now.
  void serve() {
    for (pollfd ready{connections_.epoll_fd(), POLLIN, 0}; ::poll(&ready, 1, 0) > 0;)
      connections_.serve();
  }
  static void say(const FileDescriptor& fd, const std::string& text) {
    (void)::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
  }
  static std::string hear(const FileDescriptor& fd) {
    char text[256];
    const ssize_t got = ::recv(fd.get(), text, sizeof text, MSG_DONTWAIT);
    return got < 0    ? std::strerror(errno)
           : got == 0 ? "end"
                      : std::string(text, static_cast<std::size_t>(got));
  }

  test::TemporaryCache cache_{"connections"};
  std::string path_;
  Echo echo_;
  Connections connections_{echo_};
};

TEST_F(ConnectionsTest, AnswersEachPacket) {
  const FileDescriptor client = connect();
  say(client, "one");
  say(client, "two");
  serve();
  EXPECT_EQ(hear(client), "one");
  EXPECT_EQ(hear(client), "two");
  ASSERT_EQ(echo_.peers_.size(), 1U);
  EXPECT_EQ(echo_.peers_[0].pid, static_cast<std::uint32_t>(::getpid()));
  EXPECT_EQ(echo_.peers_[0].uid, ::geteuid());
}

TEST_F(ConnectionsTest, RefusesAtTheDoor) {
  echo_.refuses_ = true;
  const FileDescriptor client = connect();
  serve();
  EXPECT_EQ(hear(client), "no");
  EXPECT_EQ(hear(client), "end");
  EXPECT_EQ(connections_.open_count(), 0U);
}

TEST_F(ConnectionsTest, OversizedPacketIsAsGoodAsNothing) {
  const FileDescriptor client = connect();
  say(client, std::string(kWireRequestMax + 1, 'x'));
  serve();
  EXPECT_EQ(hear(client), "empty");
  say(client, std::string(kWireRequestMax, 'x'));
  serve();
  EXPECT_EQ(echo_.packets_.back().size(), kWireRequestMax);
}

TEST_F(ConnectionsTest, DescriptorsThatAClientSendsDoNotStay) {
  const auto count = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  const FileDescriptor client = connect();
  serve();
  const auto before = count();
  const int fds[2] = {0, 1};
  char control[CMSG_SPACE(sizeof fds)] = {};
  char text[] = "fds";
  iovec part{text, 3};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof fds);
  std::memcpy(CMSG_DATA(rights), fds, sizeof fds);
  ASSERT_EQ(::sendmsg(client.get(), &header, 0), 3);
  serve();
  EXPECT_EQ(hear(client), "fds");
  EXPECT_EQ(count(), before);
}

TEST_F(ConnectionsTest, EndsWhenTheClientDoesOrTheHandlerSays) {
  FileDescriptor client = connect();
  const FileDescriptor other = connect();
  serve();
  EXPECT_EQ(connections_.open_count(), 2U);
  client = {};
  say(other, "close");
  serve();
  EXPECT_EQ(hear(other), "close");
  EXPECT_EQ(hear(other), "end");
  EXPECT_EQ(connections_.open_count(), 0U);
}

TEST_F(ConnectionsTest, UnconfirmedSlotIsHandedBackWhenTheConnectionEnds) {
  FileDescriptor client = connect();
  say(client, "slot");
  serve();
  EXPECT_TRUE(echo_.given_up_.empty());
  say(client, "slot");
  serve();
  EXPECT_EQ(echo_.given_up_, (std::vector<std::uint64_t>{1})) << "one a connection";
  client = {};
  serve();
  EXPECT_EQ(echo_.given_up_, (std::vector<std::uint64_t>{1, 2}));
}

TEST_F(ConnectionsTest, ClientThatDoesNotReadIsDropped) {
  const FileDescriptor client = connect();
  for (int i = 0; i < 10'000 && (i == 0 || connections_.open_count() == 1); ++i) {
    say(client, "and on and on");
    serve();
  }
  EXPECT_EQ(connections_.open_count(), 0U);
}

TEST_F(ConnectionsTest, OldestIdleConnectionMakesRoom) {
  std::vector<FileDescriptor> clients;
  clients.push_back(connect());
  say(clients[0], "slot");
  serve();
  (void)hear(clients[0]);
  while (clients.size() < Connections::kConnectionsMax) {
    clients.push_back(connect());
    serve();
  }
  EXPECT_EQ(connections_.open_count(), Connections::kConnectionsMax);
  clients.push_back(connect());
  serve();
  EXPECT_EQ(connections_.open_count(), Connections::kConnectionsMax);
  EXPECT_EQ(hear(clients[0]), std::strerror(EAGAIN)) << "it holds a slot";
  EXPECT_EQ(hear(clients[1]), "end") << "the oldest of the others";
  EXPECT_EQ(hear(clients[2]), std::strerror(EAGAIN));
  say(clients.back(), "hello");
  serve();
  EXPECT_EQ(hear(clients.back()), "hello");
}

TEST_F(ConnectionsTest, DeadlineIsTheOldestConnections) {
  EXPECT_EQ(connections_.next_deadline_ms(), -1);
  const FileDescriptor client = connect();
  serve();
  EXPECT_GT(connections_.next_deadline_ms(), kWireTimeoutMs - 1000);
  EXPECT_LE(connections_.next_deadline_ms(), kWireTimeoutMs);
  connections_.drop_expired();
  EXPECT_EQ(connections_.open_count(), 1U);
}

TEST_F(ConnectionsTest, PathThatIsTooLongIsAnError) {
  Connections other(echo_);
  EXPECT_TRUE(other.listen("/tmp/" + std::string(200, 'x'), 0600));
  EXPECT_TRUE(other.listen("/nonexistent/socket", 0600));
}

// What a client does not read stays in flight on our account.
TEST_F(ConnectionsTest, DescriptorsAreGivenOnceAConnection) {
  const FileDescriptor client = connect();
  say(client, "descriptors");
  serve();
  EXPECT_EQ(connections_.open_count(), 1U);
  say(client, "other");
  serve();
  EXPECT_EQ(connections_.open_count(), 1U);
  say(client, "descriptors");
  serve();
  EXPECT_EQ(connections_.open_count(), 0U);
}

}  // namespace
}  // namespace kvtrie
