// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Administrative requests on the coordinator's socket: what an operator, and for some an engine, asks it to do.
// Framing, checks and refusals: wire.h.
//
//   request   who may                          what is done
//   kEvict    admin, or an attached worker     pages go, the least recently used first
//   kFlush    admin, or an attached worker     a namespace's root gets its next generation (rule 18)
//   kPin      admin                            a cached prefix is leased for the operator (pins.h)
//   kUnpin    admin                            and given back
//   kDrain    admin                            no new workers and namespaces, or (undo) again
//   kStop     admin                            the coordinator ends as with SIGTERM; the cache stays
//
// Admin is root and the coordinator's own user, by the kernel's word (SO_PEERCRED). An attached worker is a process
// that has an Active slot; its user was checked when it attached and is checked again by the connection.
#pragma once

#include <cstdint>

#include "shm/wire.h"

namespace kvtrie {

struct EvictRequest {
  WireHeader header;
  std::uint64_t pages_max;      // 0: all that can go
  std::uint32_t one_namespace;  // 0: of all namespaces; 1: of the one below only
  std::uint32_t name_space;
  std::uint64_t fields_hash;  // of that namespace as the sender knows it: a reused slot is refused
};
static_assert(sizeof(EvictRequest) == 40);

// What went, and what stayed of that which was asked for, by the first reason that holds. A worker that names no
// namespace is told what went only (C8).
struct EvictReply {
  ReplyHead head;
  std::uint64_t evicted;
  std::uint64_t pinned;
  std::uint64_t leased;    // by workers, or used just now
  std::uint64_t pending;   // announced and not written yet
  std::uint64_t interior;  // pages below them stay
  std::uint64_t other;     // retained by their engine, or not reached
  std::uint32_t done;      // 1: as many as were asked for, or all that can go; 0: there was no time for the rest
  std::uint32_t reserved;
};
static_assert(sizeof(EvictReply) == 512 + 56);

struct FlushRequest {
  WireHeader header;
  std::uint32_t name_space;
  std::uint32_t reserved;
  std::uint64_t fields_hash;
};
static_assert(sizeof(FlushRequest) == 32);

struct FlushReply {
  ReplyHead head;
  std::uint64_t root_generation;  // the new one
};
static_assert(sizeof(FlushReply) == 512 + 8);

inline constexpr std::uint32_t kPinSecondsMax = 10U * 366 * 86'400;

struct PinRequest {
  WireHeader header;
  std::uint64_t page;        // Handle of the deepest page of the prefix: names one life of it, so one path
  std::uint32_t expires_s;   // from now; 0: never; kPinSecondsMax at most
  std::uint32_t reserved;
  char reason[56];
};
static_assert(sizeof(PinRequest) == 88);

struct PinReply {
  ReplyHead head;
  std::uint32_t pin;    // its number
  std::uint32_t depth;  // pages that it keeps, the page itself and those above it
};
static_assert(sizeof(PinReply) == 512 + 8);

struct UnpinRequest {
  WireHeader header;
  std::uint64_t page;  // Handle that the pin is expected to hold: a number given anew is refused
  std::uint32_t pin;
  std::uint32_t reserved;
};
static_assert(sizeof(UnpinRequest) == 32);

struct DrainRequest {
  WireHeader header;
  std::uint32_t undo;  // 0 or 1
  std::uint32_t reserved;
};
static_assert(sizeof(DrainRequest) == 24);

}  // namespace kvtrie
