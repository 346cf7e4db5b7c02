// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One operation of one process, with all that is needed to kill that process anywhere in it and to
// judge what it left.
//
//   survivors' process                         victim (forked, maps the segment itself)
//   reset(), setup
//                                              prepare       everything before the operation
//   meanwhile                                  waits
//                                              operate       <- dies in here, or returns
//   recover, check, survivors go on
//
// The oracle knows pending and done: `cached` is there before the operation and stays, but for
// `may_go`; nothing else is there afterwards, but for `may_come`. When the operation returned,
// `done_come` is there and `done_go` is not. All are closed under prefixes by the harness, `may_go`
// and `done_go` are taken as they stand.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/evictor.h"
#include "coordinator/room_keeper.h"
#include "tests/support/crash_world.h"
#include "worker_plugin/attachment.h"

namespace kvtrie::test {

inline constexpr WorkerId kVictimSlot{1};
inline constexpr std::uint16_t kSurvivor = 2;
inline constexpr std::uint16_t kOtherSurvivor = 3;
inline constexpr WorkerId kSpareSlot{4};  // nobody's when the world is new

// The process that dies.
struct Victim {
  explicit Victim(const CrashWorld& world)
      : view(world.segment_fd(), world.pool_fd()), engine(view, kVictimSlot), objects(world) {}

  const Segment& segment() const { return view.segment(); }
  std::uint64_t evict(std::uint64_t wanted) {
    return evictor
        ->evict(
            wanted, [] { return false; }, [](double) {})
        .evicted;
  }

  View view;
  Engine engine;
  Sequence sequence;
  std::array<Sequence, 3> more;  // of forks and batches
  std::unique_ptr<Evictor> evictor;
  std::unique_ptr<RoomKeeper> keeper;
  std::unique_ptr<AttachedCache> cache;  // the plugin's, once it attached
  std::unique_ptr<CopyQueue> queue;      // the coordinator's
  const CrashWorld& objects;             // for their descriptors: its mappings are the survivors'
  bool interfered = false;  // for at_place
  unsigned passed = 0;
};

enum class Role : std::uint8_t { kWorker, kCoordinator };

struct Scenario {
  std::string_view name;
  Role role = Role::kWorker;
  std::function<void(CrashWorld&)> setup = {};
  std::function<void(Victim&)> prepare = {};
  std::function<void(CrashWorld&)> meanwhile = {};
  std::function<void(Victim&)> operate = {};
  Paths cached = {};
  Paths may_go = {};
  Paths may_come = {};
  Paths done_come = {};
  Paths done_go = {};
  Path again = {};                  // what a survivor asks for afterwards
  std::vector<WorkerId> dead = {};  // beside a victim that is a worker: slots whose process is dead
  bool adopts = false;  // the coordinator died too (a page was Condemned, say): adoption follows
  std::size_t sparse = 1;  // of instructions that a strided run kills at because of their number, every so many: long
                           // loops that only read
  bool sleeps = false;  // may sleep in the kernel, up to milliseconds a run
  // Its coordinator's answers (world_coordinator.h), asked for while it prepares and between its steps. True: there was
  // something.
  std::function<bool()> serve = {};
  std::function<void(CrashWorld&)> recovery = {};  // instead of the judge's: by the coordinator that served it
  std::function<void(CrashWorld&)> fence = {};  // before the recovery: what its device does until it is over
  std::function<void(CrashWorld&)> recovered = {};  // after the recovery: what an operator does then
  // Only where crash points are compiled in: called in the victim at each of them, before it may
  // die there.
  std::function<void(Victim&, std::string_view place)> at_place = {};
};

// Every operation that is killed at every instruction.
std::span<const Scenario> all_scenarios();
const Scenario& scenario_named(std::string_view name);

}  // namespace kvtrie::test
