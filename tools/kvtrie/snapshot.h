// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Copies of what a segment says at one moment, in private memory, for commands to look at in peace.
//
// The segment may be live (pages change while they are read) or hold any bytes at all. So: each
// word is read once, every index in it is compared with a limit before it is used, loops run over
// arrays of known length, and what cannot be is counted instead of believed. Nothing is written; no
// lock is taken.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/ids.h"
#include "shm/page_table.h"
#include "shm/segment.h"
#include "shm/worker_table.h"
#include "tools/kvtrie/host.h"

namespace kvtrie::inspect {

inline constexpr auto kRelaxed = std::memory_order_relaxed;

enum class LeaseTarget : std::uint8_t { kPage, kOtherLife, kImpossible };

constexpr const char* name_of(LeaseTarget target) {
  constexpr const char* kNames[] = {"page", "other_life", "impossible"};
  return kNames[static_cast<std::uint8_t>(target)];
}

struct LeaseView {
  WorkerId slot;
  std::uint32_t index = 0;  // of the lease slot
  Handle handle;
  LeaseTarget target = LeaseTarget::kImpossible;  // kPage: handle names the page's present life
  std::uint32_t since_tick = 0;
  std::uint32_t request_tag = 0;
  bool beyond_high_water = false;  // the evictor does not look there
};
// Every lease slot that is not empty, in the order of the area.
std::vector<LeaseView> read_leases(const Segment& segment);

struct WorkerView {
  WorkerId slot;
  SlotWord word;
  std::uint32_t pid = 0;
  std::uint64_t start_time = 0;
  std::uint32_t uid = 0;
  WorkerRole role = WorkerRole::kWorker;
  std::string name;
  Liveness liveness = Liveness::kNone;
  bool stopped = false;  // alive, and held by SIGSTOP or a debugger
  std::uint32_t attach_tick = 0;
  std::uint32_t leases_high_water = 0;
  std::uint32_t pages_wanted = 0;
  std::uint64_t wait_ticket = 0;
  bool awaited = false;            // somebody sleeps, or did, until a page comes that it computes
  std::uint16_t scheduler = 0;     // of a plane writer: the slot for which it writes
  std::uint64_t plane_mask = 0;    // of a plane writer: the planes
  std::array<std::uint64_t, kCounters> counters{};

  std::uint64_t writing = 0;
  std::uint64_t pending = 0;
  std::uint64_t held_hint =
      0;  // sum of its held counts: at least writing + pending when nobody moves
  std::uint64_t leases = 0;
  std::uint64_t stale_leases = 0;  // of another life or impossible: they protect nothing
  std::optional<LeaseView> oldest_lease;

  bool attached() const { return word.state() != SlotState::kFree; }
  bool holds() const { return writing + pending + leases + stale_leases + held_hint != 0; }
  std::uint64_t counter(Counter which) const { return counters[static_cast<std::size_t>(which)]; }
};
// All slots, slot 0 (the coordinator's, with its process's identity) first.
std::vector<WorkerView> read_workers(const Segment& segment, const HostView& host,
                                     const PageStats& pages,
                                     const std::vector<LeaseView>& leases);

// When the page that a slot has been writing for the longest time entered its state.
struct OldestOwnPages {
  std::optional<std::uint32_t> writing_tick;
  std::optional<std::uint32_t> pending_tick;
};
// By slot.
std::vector<OldestOwnPages> read_oldest_own_pages(const Segment& segment);

struct CoordinatorView {
  std::uint32_t pid = 0;
  std::uint64_t start_time = 0;
  std::uint64_t epoch = 0;
  std::uint32_t state = 0;
  Liveness liveness = Liveness::kNone;
};
CoordinatorView read_coordinator(const Segment& segment, const HostView& host);
const char* coordinator_state_name(std::uint32_t state);

struct NamespaceView {
  NamespaceId id;
  bool open = false;
  std::uint64_t root_generation = 0;
  std::string label;
  std::string fields;  // "key=value key=value", printable
};
NamespaceView read_namespace(const Segment& segment, NamespaceId id);

}  // namespace kvtrie::inspect
