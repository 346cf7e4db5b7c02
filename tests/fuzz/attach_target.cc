// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The client's side of the socket: a coordinator that answers anything, with any descriptors. What says that it is a
// cache, and is damaged, is attached to and used.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "shm/admin_client.h"
#include "shm/runtime_directory.h"
#include "shm/wire_client.h"
#include "tests/fuzz/damage.h"
#include "tests/fuzz/finding.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/fuzz/world.h"
#include "worker_plugin/attach_client.h"
#include "worker_plugin/attachment.h"

namespace kvtrie::fuzz {
namespace {

// What the next client is told.
struct Reply {
  std::vector<std::byte> packet;  // none: the connection is closed
  std::vector<int> descriptors;
};

class Liar {
 public:
  static Liar& get() {
    static auto* const liar = new Liar;  // its thread ends with the process
    return *liar;
  }

  const CoordinatorAddress& address() const { return address_; }
  void say_next(Reply reply) {
    const std::lock_guard lock(mutex_);
    next_ = std::move(reply);
  }

 private:
  Liar() {
    address_.cache = "fuzz";
    address_.directory =
        (std::filesystem::temp_directory_path() / ("kvtrie-fuzz-" + std::to_string(::getpid()))).string();
    address_.timeout_ms = 100;
    (void)::mkdir(address_.directory.c_str(), 0700);
    (void)::mkdir((address_.directory + "/fuzz").c_str(), 0700);
    const std::string path = socket_path(address_.directory, address_.cache);
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::ranges::copy(path, name.sun_path);
    (void)::unlink(path.c_str());
    listener_ = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    require(
        ::bind(listener_, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0 && ::listen(listener_, 8) == 0,
        "listen");
    std::thread([this] { serve(); }).detach();
    std::atexit([] { get().remove_files(); });
  }

  void remove_files() const {
    (void)::unlink(socket_path(address_.directory, address_.cache).c_str());
    (void)::rmdir((address_.directory + "/fuzz").c_str());
    (void)::rmdir(address_.directory.c_str());
  }

  void serve() {
    for (;;) {
      const FileDescriptor client(::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC));
      std::byte request[kWireRequestMax];
      if (!client.open() || ::recv(client.get(), request, sizeof request, 0) <= 0) continue;
      const std::lock_guard lock(mutex_);
      if (next_.packet.empty()) continue;
      alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))] = {};
      iovec part{next_.packet.data(), next_.packet.size()};
      msghdr header{};
      header.msg_iov = &part;
      header.msg_iovlen = 1;
      if (const std::size_t bytes = std::min<std::size_t>(next_.descriptors.size(), 8) * sizeof(int); bytes != 0) {
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(bytes);
        cmsghdr* const rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(bytes);
        std::memcpy(CMSG_DATA(rights), next_.descriptors.data(), bytes);
      }
      (void)::sendmsg(client.get(), &header, MSG_NOSIGNAL);
    }
  }

  CoordinatorAddress address_;
  int listener_ = -1;
  std::mutex mutex_;
  Reply next_;
};

template <typename Message>
std::vector<std::byte> bytes_of(const Message& message) {
  const auto view = std::as_bytes(std::span(&message, 1));
  return {view.begin(), view.end()};
}

void damage_packet(Input& input, std::vector<std::byte>& packet, const Segment& segment) {
  for (std::uint32_t n = input.below(4); n > 0 && packet.size() >= 8; --n) {
    const std::size_t words = packet.size() / 8;
    // The head, or what follows it.
    const std::size_t word =
        input.byte() % 2 == 0 ? input.below(4) : std::min<std::size_t>(words - 1, 64 + input.below(10));
    const std::uint64_t value = plausible_word(input, segment);
    std::memcpy(packet.data() + std::min(word, words - 1) * 8, &value, sizeof value);
  }
  if (input.byte() % 16 == 0) packet.resize(input.below(static_cast<std::uint32_t>(packet.size()) + 64));
}

std::vector<std::byte> attach_reply(Input& input, const World& world) {
  auto reply = make_message<AttachReply>(WireKind::kReply);
  reply.slot = input.byte() % 8 == 0 ? input.below(8) : kWorkers;
  reply.incarnation = 1;
  reply.pool_count = 1;
  reply.segment_bytes = world.segment().size_bytes();
  reply.pool_bytes = std::uint64_t{kPages} * kPageBytes;
  std::copy_n(world.segment().superblock().cache_id, 2, reply.cache_id);
  return bytes_of(reply);
}

int some_descriptor(Input& input, const World& world, int right) {
  static const FileDescriptor small(::memfd_create("kvtrie-fuzz-small", MFD_CLOEXEC));
  static const FileDescriptor null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  switch (input.below(32)) {
    case 0:
      return small.get();
    case 1:
      return null.get();
    case 2:
      return world.pool_fd();
    case 3:
      return world.segment_fd();
    default:
      return right;
  }
}

// A request or two through what was attached to.
void use(Input& input, AttachedCache& cache, Damage& damage) {
  static HandleTable table;
  std::string message;
  (void)cache.open_namespace(table, "model=a\n", "fuzz", message);
  Worker& worker = cache.worker();
  for (int i = 0; i < 4 && !input.ended(); ++i) {
    Sequence sequence;
    BeginReport report;
    const std::vector<std::uint32_t> tokens = tokens_of({1, 1 + input.below(6), 1 + input.below(6)});
    if (!worker.begin(World::get().name_space(0), tokens, {}, sequence, report)) continue;
    (void)worker.allocate(sequence, tokens.size(), 0);
    damage_some(input, World::get().segment(), damage);
    PublishReport published;
    (void)worker.publish(sequence, tokens.size(), published);
    const PoolView pool = cache.pool_view();
    for (std::uint32_t p = 0; p < sequence.positions() && pool.planes != 0; ++p) {  // device memory has no address
      require(sequence.page_at(p).value < pool.pages, "a page outside the pool");
      *reinterpret_cast<volatile std::byte*>(pool.plane[0] + sequence.page_at(p).value * pool.page_bytes +
                                             pool.page_bytes - 1);
    }
    worker.release(sequence);
  }
  (void)cache.counted(Counter::kLookups);
  (void)cache.drive_clock(input.byte());
  cache.leave();
}

}  // namespace

void fuzz_attach(const std::uint8_t* data, std::size_t size) {
  World& world = World::get();
  world.reset();
  Liar& liar = Liar::get();
  Input input(data, size);
  Damage damage;
  // The slot that the coordinator gave.
  world.segment().worker({kWorkers}).slot_state.store(SlotWord::make(SlotState::kAttaching, 1).raw);
  for (int i = 0; i < 4 && !input.ended(); ++i) {
    for (std::uint32_t n = input.below(4); n > 0; --n)
      damage_some(input, world.segment(), damage);
    if (input.byte() % 16 == 0) {
      auto* const words = reinterpret_cast<std::uint64_t*>(world.segment().data());
      words[input.below(offsetof(Superblock, constant_checksum) / 8)] = plausible_word(input, world.segment());
      Superblock& block = world.segment().superblock();
      block.constant_checksum = constant_checksum(block);
    }
    std::string message;
    Reply reply;
    switch (input.below(8)) {
      case 0: {
        auto text = make_message<TextReply>(WireKind::kReply);
        text.text_bytes = input.take<std::uint32_t>();
        reply.packet = bytes_of(text);
        damage_packet(input, reply.packet, world.segment());
        liar.say_next(std::move(reply));
        const Result<std::string> stats = request_stats(liar.address(), message);
        require(!stats || stats->size() <= kWireTextMax, "a text longer than its message");
        break;
      }
      case 1: {
        reply.packet = bytes_of(make_message<NamespaceReply>(WireKind::kReply));
        damage_packet(input, reply.packet, world.segment());
        liar.say_next(std::move(reply));
        (void)request_namespace(liar.address(), "model=x\n", "x", message);
        break;
      }
      case 2: {
        const std::span<const std::uint8_t> any = input.bytes(input.take<std::uint16_t>() % 700);
        std::ranges::transform(any, std::back_inserter(reply.packet),
                               [](std::uint8_t byte) { return std::byte{byte}; });
        reply.descriptors.push_back(world.pool_fd());
        liar.say_next(std::move(reply));
        (void)ping(liar.address(), message);
        break;
      }
      default: {
        reply.packet = attach_reply(input, world);
        damage_packet(input, reply.packet, world.segment());
        reply.descriptors = {some_descriptor(input, world, world.segment_fd()),
                             some_descriptor(input, world, world.pool_fd())};
        if (input.byte() % 32 == 0) reply.descriptors.resize(input.below(6), world.pool_fd());
        liar.say_next(std::move(reply));
        AttachOptions options;
        options.address = liar.address();
        Result<Attachment> got = attach(options, message);
        if (!got) break;
        Result<std::unique_ptr<AttachedCache>> cache = AttachedCache::make(std::move(*got), liar.address(), message);
        if (cache) use(input, **cache, damage);
        break;
      }
    }
  }
}

}  // namespace kvtrie::fuzz
