// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Asks a running coordinator for what admin_wire.h lists. Used by the plugin and by tools. Each call makes its own
// connection, is bounded by address.timeout_ms and thread-safe; `message` gets the text for people when it fails.
//
// Errors of every call: kNoCoordinator (nobody answers), kTimeout, kRefused (not allowed), kInvalid.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "shm/admin_wire.h"
#include "shm/ids.h"
#include "shm/status.h"
#include "shm/wire_client.h"

namespace kvtrie {

// A namespace as its user knows it. kNotFound when its slot is another's by now.
struct NamespaceKey {
  NamespaceId id;
  std::uint64_t fields_hash = 0;
};

struct EvictedPages {
  std::uint64_t evicted = 0;
  // What stayed, as EvictReply says it; all zero when `pages_max` pages went.
  std::uint64_t pinned = 0;
  std::uint64_t leased = 0;
  std::uint64_t pending = 0;
  std::uint64_t interior = 0;
  std::uint64_t other = 0;
  bool done = false;  // false: the time was up before all that could go was gone
};

// Up to `pages_max` pages, 0: all that can go; of one namespace, or of all.
Result<EvictedPages> request_eviction(const CoordinatorAddress& address, std::uint64_t pages_max,
                                      const std::optional<NamespaceKey>& of, std::string& message);
// The namespace's next root generation. From its store on, nothing published before is matched.
Result<std::uint64_t> request_flush(const CoordinatorAddress& address, const NamespaceKey& of,
                                    std::string& message);

struct PinWish {
  Handle page;                  // the deepest of the prefix
  std::uint32_t expires_s = 0;  // 0: never
  std::string reason;           // up to 55 bytes are kept
};
struct PinMade {
  std::uint32_t pin = 0;
  std::uint32_t depth = 0;  // pages kept
};
// kNotFound: the page is not cached any more. kFull: no pin is free.
Result<PinMade> request_pin(const CoordinatorAddress& address, const PinWish& wish,
                            std::string& message);
// kNotFound: no such pin, or it holds another page by now.
Status request_unpin(const CoordinatorAddress& address, std::uint32_t pin, Handle page,
                     std::string& message);
Status request_drain(const CoordinatorAddress& address, bool undo, std::string& message);
// Returns when the coordinator has agreed; it ends a moment later.
Status request_stop(const CoordinatorAddress& address, std::string& message);

}  // namespace kvtrie
