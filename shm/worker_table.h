// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Worker slots: who is attached, as which life of the slot, and who may say so.
//
// Layout: area kWorkers, one WorkerRecord (1024 bytes) a slot. Slot 0 is the coordinator's, stays
// kFree and is used for its counters and pins alone.
//   slot word   63           8 7       0
//              | incarnation  | SlotState |
//
// Invariants
//   W1 Identity (pid, start time, uid, role, name) is constant while the word is not kFree; while
//      it is kFree, it is zero, or left over from a death inside `give`.
//   W2 The incarnation grows by one each time the slot is given; so each grant has a word of its
//      own, and a compare-and-swap by a process that is too late fails.
//   W3 What the slot owns (pages, leases, waits) is given back before the word becomes kFree.
//   W4 Counters are never reset: they belong to the slot, so the sum over all slots is monotone.
//   W5 A plane writer (role kPlaneWriter) names the slot of its scheduler: it writes page bytes for it, so pages of
//      that slot's owner are not given back while the plane writer's slot is in use (has_plane_writers). The
//      scheduler was kActive when the plane writer got its slot, and W3 keeps its slot from being given anew before
//      the plane writer's is kFree: the slot's number suffices. (A death inside finish_reap leaves the plane writer
//      without a role: its own writes are over by then, the fence of coordinator/reaper.h came first.)
//
// States: from, to, who, by which atomic, and why that suffices
//   kFree      kAttaching  coordinator  release store  there is one; identity was stored before
//   kAttaching kActive     worker       CAS            fails if the slot was given up meanwhile
//   kActive    kLeaving    worker       CAS            its leases and pages are no longer used
//   kAttaching kReaping    coordinator  CAS            connection closed unconfirmed, or dead
//   kActive    kReaping    coordinator  CAS            only after the kernel reported the death
//   kLeaving   kReaping    coordinator  CAS            detached
//   kReaping   kFree       coordinator  release store  after the reap (W3), identity cleared before
//
// Pairs: the worker's compare-and-swap in `confirm` reads the identity's release store; a reader
// that sees kFree (acquire) sees the pages of the last owner given back.
//
// Crash: died after / left behind / repaired by / test (WorkerTableTest, else named)
//   give, attach.after_identity / kFree with an identity / recover clears it /
//       CoordinatorDiesInGive
//   give, attach.after_attaching / kAttaching without a reply / adoption gives it up; a client that
//       got its slot in time is kActive / CoordinatorDiesInGive, AdoptTest.TakesOverWhatIsThere
//   worker, before confirm / kAttaching / its connection closes, its pidfd fires /
//       GivenUpSlotCannotBeConfirmed, KvtriedAttachTest.WorkersThatDieInAttachCostNothing
//   worker, kActive or kLeaving / slot, pages, leases / pidfd; kLeaving at the next doorbell /
//       AttachTest.DeathGivesBackPagesAndSlot, KvtriedTest.AdoptsAfterSigkillWithWorkersAliveDeadAndLeft
//   begin_reap, reap.after_reaping / kReaping, all still held / adoption reaps again (idempotent) /
//       CoordinatorDiesInReap, AdoptTest.DiesWhileItAdopts
//   finish_reap, reap.after_identity_cleared / kReaping without identity / the same / the same
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "shm/format.h"
#include "shm/ids.h"
#include "shm/segment.h"
#include "shm/status.h"

namespace kvtrie {

inline constexpr std::uint8_t kSlotStates = 5;

constexpr const char* name_of(SlotState state) {
  constexpr const char* kNames[] = {"free", "attaching", "active", "leaving", "reaping"};
  const auto i = static_cast<std::uint8_t>(state);
  return i < kSlotStates ? kNames[i] : "impossible";
}

constexpr const char* name_of(WorkerRole role) {
  constexpr const char* kNames[] = {"worker", "observer", "plane_writer", "admin"};
  const auto i = static_cast<std::uint32_t>(role);
  return i < 4 ? kNames[i] : "impossible";
}

struct SlotWord {
  std::uint64_t raw = 0;

  static constexpr SlotWord make(SlotState state, std::uint64_t incarnation) {
    return {incarnation << 8 | static_cast<std::uint64_t>(state)};
  }
  constexpr SlotState state() const { return static_cast<SlotState>(raw & 0xFF); }
  constexpr std::uint64_t incarnation() const { return raw >> 8; }
  constexpr SlotWord with(SlotState state) const { return make(state, incarnation()); }
  constexpr bool well_formed() const { return (raw & 0xFF) < kSlotStates; }
  constexpr bool operator==(const SlotWord&) const = default;
};

// One life of a slot.
struct SlotGrant {
  WorkerId slot;
  std::uint64_t incarnation = 0;
  bool operator==(const SlotGrant&) const = default;
};

// A grant in one word, for those who pass it on: {incarnation 48 | slot 16}; 0 is none.
struct WorkerTag {
  std::uint64_t raw = 0;

  static constexpr WorkerTag of(SlotGrant grant) { return {grant.incarnation << 16 | grant.slot.value}; }
  constexpr SlotGrant grant() const { return {{static_cast<std::uint16_t>(raw & 0xFFFF)}, raw >> 16}; }
};

struct WorkerIdentity {
  std::uint32_t pid = 0;
  std::uint64_t start_time = 0;
  std::uint32_t uid = 0;
  WorkerRole role = WorkerRole::kWorker;
  std::string_view name;
  std::uint64_t plane_mask = 0;
  std::uint64_t image = 0;
  WorkerId scheduler{};  // of a plane writer
};

struct WorkerTableStats {
  std::uint32_t slots[kSlotStates] = {};  // by SlotState, without slot 0
  std::uint32_t impossible = 0;
};

class WorkerTable {
 public:
  explicit WorkerTable(const Segment& segment) : segment_(segment) {}

  // Zero bytes are a table of free slots.
  void init() const {}
  // Empty, or the first thing in a slot that cannot be, and which slot. True at any moment.
  std::string validate() const;
  std::string validate(WorkerId slot) const;
  // Clears what a death inside `give` left in free slots. Idempotent; no other coordinator may run.
  void recover() const;
  WorkerTableStats stats() const;

  SlotWord word(WorkerId slot) const;

  // --- the coordinator's
  // A free slot for this process, whose pidfd is open. kFull: none.
  // `taken`: slots that have a process whatever their words say, which may have been written over.
  Result<SlotGrant> give(const WorkerIdentity& identity,
                         const std::function<bool(WorkerId)>& taken = [](WorkerId) { return false; }) const;
  // Takes the slot out of use if its word is still `expected` (same state and incarnation).
  bool begin_reap(WorkerId slot, SlotWord expected) const;
  // After everything that the slot held was given back.
  void finish_reap(WorkerId slot) const;
  // Whether a plane writer of this scheduler has a slot (W5). One line a slot.
  bool has_plane_writers(WorkerId scheduler) const;

  // --- the worker's
  // kStale: the slot was given up meanwhile; attach again.
  Status confirm(SlotGrant grant) const;
  // The last thing before unmapping; rings the coordinator.
  Status leave(SlotGrant grant) const;

  // --- anybody's
  // That life of the slot has ended and all that it held was given back (acquire): it writes no page any more.
  bool over(SlotGrant grant) const;

 private:
  const Segment& segment_;
};

}  // namespace kvtrie
