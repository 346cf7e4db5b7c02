// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <absl/container/flat_hash_map.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <array>
#include <stdexcept>
#include <zmq.hpp>

#include "shm/shared_object.h"
#include "tools/bench/peers/all_peers.h"
#include "tools/bench/peers/hash_map.h"
#include "tools/bench/peers/server_process.h"

namespace kvtrie::bench {
namespace {

constexpr int kStartLimitMs = 60'000;
constexpr int kAnswerLimitMs = 60'000;

using Map = absl::flat_hash_map<std::uint64_t, HashedEntry>;

void serve(const Corpus& corpus, const std::string& address, int ready) {
  const double before = heap_bytes();
  MapLookup<Map> lookup(corpus);
  const double bytes = heap_bytes() - before;
  std::size_t pages_max = 0;
  for (const CachedPrompt& prompt : corpus) pages_max = std::max(pages_max, prompt.pages.size());
  std::vector<std::uint32_t> pages(pages_max);
  zmq::context_t context;
  zmq::socket_t socket(context, zmq::socket_type::rep);
  socket.bind(address);
  if (::write(ready, &bytes, sizeof bytes) != sizeof bytes) return;
  zmq::message_t request;
  for (;;) {
    if (!socket.recv(request)) continue;
    const std::span<const std::uint32_t> tokens(request.data<std::uint32_t>(), request.size() / sizeof(std::uint32_t));
    // What is longer than all that is cached has an end that is not.
    const std::size_t asked = std::min(tokens.size(), pages.size() * kTokensPerPage);
    const std::uint32_t found = lookup.find(tokens.first(asked), pages.data());
    socket.send(zmq::buffer(&found, sizeof found), zmq::send_flags::none);
  }
}

class ZeroMqLookup : public Lookup {
 public:
  explicit ZeroMqLookup(const std::string& address) : socket_(context_, zmq::socket_type::req) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::rcvtimeo, kAnswerLimitMs);
    socket_.set(zmq::sockopt::sndtimeo, kAnswerLimitMs);
    socket_.connect(address);
  }
  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t*) override {
    std::uint32_t found = 0;
    const zmq::mutable_buffer answer(&found, sizeof found);
    const zmq::const_buffer request = zmq::buffer(tokens.data(), tokens.size_bytes());
    if (!socket_.send(request, zmq::send_flags::none) || !socket_.recv(answer)) {
      throw std::runtime_error("ZeroMQ: the server did not answer");
    }
    return found;
  }

 private:
  zmq::context_t context_;
  zmq::socket_t socket_;
};

class ZeroMqPeer : public Peer {
 public:
  ZeroMqPeer(const Corpus& corpus, const std::string& directory) : address_("ipc://" + directory + "/zeromq") {
    std::array<int, 2> pipe{};
    if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
    const FileDescriptor mine(pipe[0]);
    FileDescriptor its(pipe[1]);
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) throw std::runtime_error("fork");
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      try {
        if (::getppid() == parent) serve(corpus, address_, its.get());
      } catch (const std::exception& error) {
        fmt::print(stderr, "kvtrie-bench: ZeroMQ server: {}\n", error.what());
      }
      ::_exit(1);
    }
    server_ = std::make_unique<ServerProcess>(pid);
    its = {};
    pollfd said{mine.get(), POLLIN, 0};
    while (::poll(&said, 1, kStartLimitMs) < 0 && errno == EINTR) {
    }
    if (said.revents == 0 || ::read(mine.get(), &bytes_, sizeof bytes_) != sizeof bytes_) {
      throw std::runtime_error("the ZeroMQ server did not start");
    }
  }
  std::string name() const override { return "ZeroMQ server"; }
  std::string configuration() const override {
    const auto [major, minor, patch] = zmq::version();
    return fmt::format(
        "version {}.{}.{}, ipc://, REQ and REP, one I/O thread on each side, all token ids of the prompt in the "
        "message, as they are; the server, in C++ with one thread, hashes them and looks up in an "
        "absl::flat_hash_map; the hash decides; it answers how many pages there are, not which",
        major, minor, patch);
  }
  std::unique_ptr<Lookup> open() const override { return std::make_unique<ZeroMqLookup>(address_); }
  std::optional<double> shared_bytes() const override { return bytes_; }
  bool gives_pages() const override { return false; }

 private:
  std::string address_;
  std::unique_ptr<ServerProcess> server_;
  double bytes_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_zeromq(const Corpus& corpus, const std::string& directory) {
  return std::make_unique<ZeroMqPeer>(corpus, directory);
}

}  // namespace kvtrie::bench
