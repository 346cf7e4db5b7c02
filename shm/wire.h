// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What plugin, tools and coordinator say to each other over the cache's Unix socket
// (SOCK_SEQPACKET, so one message is one packet). The socket says nothing about life.
//
//   client                                coordinator
//   AttachRequest                 ->
//                                 <-      AttachReply + descriptors {segment, pool 0, pool 1, ..., copy queue}
//   maps the segment,
//   kAttaching -> kActive in its slot     (worker_table.h)
//   closes                                a slot that is still kAttaching now is given up
//
//   NamespaceRequest, PlainRequest ->     ping and statistics; any number a connection
//                                 <-      one reply each
//   administrative requests       ->      admin_wire.h
//                                 <-      one reply each
//
// Every message begins with WireHeader, every reply with ReplyHead, in every version: so any two
// builds can at least refuse each other in words. Fixed widths, host byte order (one host), unused
// bytes zero. What does not have exactly its size, a known kind and ended strings is refused.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "shm/format.h"
#include "shm/status.h"

namespace kvtrie {

inline constexpr std::uint32_t kWireMagic = 0x5754'564B;  // "KVTW" in memory order
inline constexpr std::uint16_t kWireVersion = 1;
inline constexpr std::size_t kWireRequestMax = 4096;  // longer packets are refused
inline constexpr std::size_t kWireTextMax = 8192;
inline constexpr int kWireTimeoutMs = 5000;  // of a connection, on both sides

// Append-only.
enum class WireKind : std::uint16_t {
  kReply = 0,
  kAttach = 1,
  kNamespace = 2,
  kPing = 3,
  kStats = 4,
  kEvict = 5,
  kFlush = 6,
  kPin = 7,
  kUnpin = 8,
  kDrain = 9,
  kStop = 10,
};

// Why the coordinator said no. Append-only; each comes with a message that says what to do.
enum class Refusal : std::uint32_t {
  kNone = 0,
  kBadRequest = 1,     // not a message of this protocol
  kProtocol = 2,       // plugin and coordinator speak other versions
  kLayout = 3,         // other layout version of the segment
  kFingerprint = 4,    // other struct sizes
  kPidNamespace = 5,   // robust mutexes do not exclude between PID namespaces
  kNotAllowed = 6,     // uid and gid are not on the coordinator's lists
  kTableFull = 7,      // no worker slot
  kPoisoned = 8,       // the segment was given up
  kRoleNotServed = 9,  // this coordinator does not serve that role
  kIdentity = 10,      // the peer is not the process that it says it is
  kOtherCache = 11,    // the socket belongs to another cache
  kNamespaceInvalid = 12,
  kNamespacesFull = 13,
  kInternal = 14,  // a system call of the coordinator failed
  kDraining = 15,  // an operator drains the cache: nobody new
  kAdminOnly = 16,  // not for this process: see admin_wire.h
  kNoSuchNamespace = 17,
  kNotCached = 18,  // the page that was to be pinned is gone
  kPinsFull = 19,
  kNoSuchPin = 20,
};
inline constexpr std::uint32_t kRefusals = 21;

constexpr const char* name_of(Refusal refusal) {
  constexpr const char* kNames[] = {
      "none",          "bad_request", "protocol",   "layout",          "fingerprint",
      "pid_namespace", "not_allowed", "table_full", "poisoned",        "role",
      "identity",      "other_cache", "namespace",  "namespaces_full", "internal",
      "draining",      "admin_only",  "no_namespace", "not_cached",    "pins_full",
      "no_pin"};
  const auto i = static_cast<std::uint32_t>(refusal);
  return i < kRefusals ? kNames[i] : "unknown";
}

// What the caller can act on.
constexpr Code code_of(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return Code::kOk;
    case Refusal::kBadRequest:
    case Refusal::kNamespaceInvalid:
      return Code::kInvalid;
    case Refusal::kTableFull:
    case Refusal::kNamespacesFull:
    case Refusal::kPinsFull:
      return Code::kFull;
    case Refusal::kNoSuchNamespace:
    case Refusal::kNotCached:
    case Refusal::kNoSuchPin:
      return Code::kNotFound;
    case Refusal::kPoisoned:
      return Code::kPoisoned;
    default:
      return Code::kRefused;
  }
}

struct WireHeader {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint16_t kind;   // WireKind
  std::uint32_t bytes;  // of the whole message
  std::uint32_t layout_version;  // of a request: of the segment that its sender knows; 0: it does not say
};
static_assert(sizeof(WireHeader) == 16, "the same in every version");

struct AttachRequest {
  WireHeader header;
  std::uint32_t layout_version;
  std::uint32_t role;  // WorkerRole
  std::uint64_t struct_fingerprint;
  std::uint64_t start_time;  // the sender's own, so that a recycled pid is seen
  std::uint64_t pid_namespace;
  std::uint64_t plane_mask;
  std::uint64_t image;  // own_image()
  std::uint64_t scheduler;  // a plane writer's: WorkerTag of the worker into whose pages it writes
  char cache[64];
  char name[64];  // for people
};
static_assert(sizeof(AttachRequest) == 200);

struct NamespaceRequest {
  WireHeader header;
  std::uint32_t fields_bytes;
  std::uint32_t reserved;
  char label[64];
  char fields[kNamespaceDescriptorMax];
};
static_assert(sizeof(NamespaceRequest) == 88 + kNamespaceDescriptorMax);

struct PlainRequest {
  WireHeader header;
};

struct ReplyHead {
  WireHeader header;
  std::uint32_t refusal;  // Refusal
  std::uint32_t reserved;
  char message[488];  // empty when not refused
};
static_assert(sizeof(ReplyHead) == 512, "the same in every version");

struct AttachReply {
  ReplyHead head;
  std::uint32_t slot;  // 0: an observer has none
  std::uint32_t pool_count;
  std::uint64_t incarnation;
  std::uint64_t segment_bytes;
  std::uint64_t pool_bytes;  // of each
  std::uint64_t cache_id[2];
  std::uint32_t queue_count;  // 1: the last descriptor is the copy queue's
  std::uint32_t reserved;
};
static_assert(sizeof(AttachReply) == 512 + 56);

struct NamespaceReply {
  ReplyHead head;
  std::uint32_t id;
  std::uint32_t reserved;
  std::uint64_t root_generation;
  std::uint64_t hash_seed;
  std::uint64_t fields_hash;
};
static_assert(sizeof(NamespaceReply) == 512 + 32);

struct TextReply {
  ReplyHead head;
  std::uint32_t text_bytes;
  std::uint32_t reserved;
  char text[kWireTextMax];
};
static_assert(sizeof(AttachRequest) <= kWireRequestMax &&
              sizeof(NamespaceRequest) <= kWireRequestMax);

template <typename Message>
concept WireMessage = std::is_trivially_copyable_v<Message> && std::is_standard_layout_v<Message> &&
                          sizeof(Message) %
                          8 ==
                      0;

constexpr WireHeader wire_header(WireKind kind, std::size_t bytes) {
  return {kWireMagic, kWireVersion, static_cast<std::uint16_t>(kind),
          static_cast<std::uint32_t>(bytes), 0};
}

// A zeroed message of this kind with its header.
template <WireMessage Message>
Message make_message(WireKind kind) {
  Message message{};
  WireHeader header = wire_header(kind, sizeof message);
  std::memcpy(&message, &header, sizeof header);
  return message;
}

// False unless `packet` has exactly the size of a Message and says so.
template <WireMessage Message>
bool read_message(std::span<const std::byte> packet, Message& message) {
  if (packet.size() != sizeof message) return false;
  std::memcpy(&message, packet.data(), sizeof message);
  WireHeader header;
  std::memcpy(&header, packet.data(), sizeof header);
  return header.magic == kWireMagic && header.bytes == sizeof message;
}

template <std::size_t N>
void put_text(char (&field)[N], std::string_view text) {
  std::memset(field, 0, N);
  std::copy_n(text.data(), std::min(text.size(), N - 1), field);
}

// Up to the first NUL; never beyond the field.
template <std::size_t N>
std::string_view get_text(const char (&field)[N]) {
  return {field, ::strnlen(field, N)};
}

template <std::size_t N>
bool text_ends(const char (&field)[N]) {
  return ::strnlen(field, N) < N;
}

}  // namespace kvtrie
