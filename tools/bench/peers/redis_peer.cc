// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fcntl.h>
#include <fmt/format.h>
#include <hiredis/hiredis.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <thread>

#include "shm/shared_object.h"
#include "tools/bench/peers/all_peers.h"
#include "tools/bench/peers/server_process.h"

namespace kvtrie::bench {
namespace {

constexpr auto kStartLimit = std::chrono::seconds(20);
constexpr timeval kAnswerLimit{60, 0};
constexpr std::size_t kKeysAtOnce = 1024;  // while filling

struct FreeReply {
  void operator()(redisReply* reply) const { ::freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;
struct FreeContext {
  void operator()(redisContext* context) const { ::redisFree(context); }
};

// A command with binary arguments, used again and again.
class Command {
 public:
  explicit Command(const char* name) : name_(name) { clear(); }
  void clear() {
    arguments_.assign(1, name_);
    bytes_.assign(1, std::strlen(name_));
  }
  // Not copied: stays where it is until the command was sent.
  void add(const void* argument, std::size_t bytes) {
    arguments_.push_back(static_cast<const char*>(argument));
    bytes_.push_back(bytes);
  }
  Reply send(redisContext* context) {
    Reply reply(static_cast<redisReply*>(
        ::redisCommandArgv(context, static_cast<int>(arguments_.size()), arguments_.data(), bytes_.data())));
    if (reply == nullptr) throw std::runtime_error(fmt::format("Redis: {}: {}", name_, context->errstr));
    if (reply->type == REDIS_REPLY_ERROR) throw std::runtime_error(fmt::format("Redis: {}: {}", name_, reply->str));
    return reply;
  }

 private:
  const char* name_;
  std::vector<const char*> arguments_;
  std::vector<std::size_t> bytes_;
};

using Connection = std::unique_ptr<redisContext, FreeContext>;

// Null while nobody listens.
Connection connect_to(const std::string& socket) {
  Connection connection(::redisConnectUnixWithTimeout(socket.c_str(), kAnswerLimit));
  if (connection == nullptr || connection->err != 0) return nullptr;
  ::redisSetTimeout(connection.get(), kAnswerLimit);
  return connection;
}

class RedisLookup : public Lookup {
 public:
  explicit RedisLookup(const std::string& socket) : connection_(connect_to(socket)) {
    if (connection_ == nullptr) throw std::runtime_error("Redis: no connection");
  }
  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) override {
    hashes_.resize(tokens.size() / kTokensPerPage);
    command_.clear();
    for_each_page(tokens, [&](std::uint64_t hash, auto, std::uint32_t i) {
      hashes_[i] = hash;
      command_.add(&hashes_[i], sizeof hash);
      return true;
    });
    const Reply reply = command_.send(connection_.get());
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != hashes_.size()) {
      throw std::runtime_error("Redis: not an answer to MGET");
    }
    std::uint32_t found = 0;
    for (; found < reply->elements && reply->element[found]->type == REDIS_REPLY_STRING; ++found) {
      std::memcpy(pages + found, reply->element[found]->str, sizeof *pages);
    }
    return found;
  }

 private:
  Connection connection_;
  Command command_{"MGET"};
  std::vector<std::uint64_t> hashes_;
};

pid_t start_server(const std::string& directory, const std::string& socket) {
  const FileDescriptor log(::open((directory + "/redis.log").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  replay::ChildOptions child;
  child.program = KVTRIE_REDIS_SERVER;
  child.arguments = {"--port", "0", "--unixsocket", socket, "--unixsocketperm", "700", "--save", "", "--appendonly",
                     "no", "--daemonize", "no", "--dir", directory};
  child.standard_output = child.standard_error = log.get();
  return replay::start_child(child);
}

class RedisPeer : public Peer {
 public:
  RedisPeer(const Corpus& corpus, const std::string& directory)
      : socket_(directory + "/redis"), server_(start_server(directory, socket_)) {
    const Connection connection = await();
    version_ = info(connection.get(), "server", "redis_version:");
    const auto used = [&] { return std::strtod(info(connection.get(), "memory", "used_memory:").c_str(), nullptr); };
    const double before = used();
    fill(connection.get(), corpus);
    bytes_ = used() - before;
  }
  std::string name() const override { return "Redis"; }
  std::string configuration() const override {
    return fmt::format(
        "version {}, a server of its own on a Unix socket, nothing persistent, else as it comes (one thread: its "
        "documentation wants 4 cores for more); hiredis; one MGET of all pages of the prompt, whatever is cached; key: "
        "the chained hash, value: 4 bytes; the hash decides",
        version_);
  }
  std::unique_ptr<Lookup> open() const override { return std::make_unique<RedisLookup>(socket_); }
  std::optional<double> shared_bytes() const override { return bytes_; }

 private:
  Connection await() const {
    const auto deadline = std::chrono::steady_clock::now() + kStartLimit;
    for (;;) {
      if (Connection connection = connect_to(socket_)) return connection;
      if (server_.ended()) throw std::runtime_error(fmt::format("{} ended at once", KVTRIE_REDIS_SERVER));
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("Redis: not ready in time");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  static std::string info(redisContext* connection, std::string_view section, std::string_view field) {
    Command command("INFO");
    command.add(section.data(), section.size());
    const Reply reply = command.send(connection);
    const std::string_view text(reply->str == nullptr ? "" : reply->str);
    const std::size_t at = text.find(field);
    if (at == std::string_view::npos) throw std::runtime_error(fmt::format("Redis: INFO has no {}", field));
    const std::size_t from = at + field.size();
    return std::string(text.substr(from, text.find('\r', from) - from));
  }
  static void fill(redisContext* connection, const Corpus& corpus) {
    std::array<std::uint64_t, kKeysAtOnce> hashes{};
    Command command("MSET");
    std::size_t count = 0;
    const auto send = [&] {
      if (count > 0) command.send(connection);
      command.clear();
      count = 0;
    };
    for (const CachedPrompt& prompt : corpus) {
      for_each_page(prompt.tokens, [&](std::uint64_t hash, auto, std::uint32_t i) {
        hashes[count] = hash;
        command.add(&hashes[count], sizeof hash);
        command.add(&prompt.pages[i], sizeof prompt.pages[i]);
        if (++count == kKeysAtOnce) send();
        return true;
      });
    }
    send();
  }

  std::string socket_;
  ServerProcess server_;
  std::string version_;
  double bytes_ = 0;
};

}  // namespace

std::unique_ptr<Peer> make_redis(const Corpus& corpus, const std::string& directory) {
  return std::make_unique<RedisPeer>(corpus, directory);
}

}  // namespace kvtrie::bench
