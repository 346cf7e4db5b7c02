// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The copy queue of a queued device: workers ask for bytes to be written into pages, the coordinator's copy engine
// writes them, later and in order. An object of its own in shared memory, so that what was asked for outlives both.
//
// Layout: CopyQueueHeader (one 4096-byte page), then a ring for each worker slot:
//   CopyRing | staging buffer 0 | ... | staging buffer 7           each of a page's bytes, rounded up to 64
//   copy number n uses entry n % 8 and staging buffer n % 8
//
// Invariants
//   Q1  submitted is written by the slot's worker only, done by the copy engine only; there is one engine, since there
//       is one coordinator (its lock lasts until all its threads are past their memory).
//   Q2  0 <= submitted - done <= 8, modulo 2^32.
//   Q3  done == submitted while the slot is kFree: the coordinator waits for that before it frees the slot (the fence).
//       So a new worker begins where the last one of its slot ended.
//
// Who moves what
//   submit   worker   1 bytes and entry (plain, relaxed)   2 submitted + 1 (release)        3 ring the doorbell
//   perform  engine   1 submitted (acquire), entry         2 bytes into the page (plain)    3 done + 1 (release), wake
//   idle     worker, coordinator: done (acquire) == submitted (acquire): every write of 2 happens before what follows
//
// The fence of a dead worker is idle(slot): nobody submits for it any more, so once true it stays true.
//
// Crash: died after / left behind / repaired by / test (CopyQueueTest, else named)
//   submit 1 / half an entry above submitted, which nobody reads / the next submit / HalfASubmitIsNoCopy
//   submit 2 / a copy without a ring / the engine looks itself every 50 ms /
//       DeviceFenceTest.CopyThatLandsAfterTheKillChangesNoReusedPage
//   perform 2, copy.after_bytes / a page with the bytes, done not raised: the fence holds / the engine of the next
//       coordinator writes the same bytes again / EngineMayDieBetweenBytesAndDone,
//       QueuedDeviceTest.CoordinatorThatDiesMeanwhileLeavesTheFenceToTheNext
//
// What the engine reads is input (C7): an entry that does not fit the cache is dropped and counted as done; rings
// that claim more than 8 copies are cut to none.
// Limits: 8 copies a worker at a time, each within one page. Memory: 8 pages of bytes a worker slot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "shm/geometry.h"
#include "shm/ids.h"
#include "shm/shared_object.h"
#include "shm/status.h"

namespace kvtrie {

struct CopyTarget {
  PageIndex page;
  std::uint32_t plane = 0;
  std::uint64_t offset = 0;  // in the page
};

// A copy that is to be performed. `bytes` stay as they are until finish().
struct CopyWork {
  CopyTarget target;
  std::span<const std::byte> bytes;
  std::uint64_t submitted_ns = 0;
};

class CopyQueue {
 public:
  static std::uint64_t size_bytes(const Geometry& geometry);
  // Of a zeroed mapping of size_bytes().
  static CopyQueue build(Mapping mapping, const Geometry& geometry, const std::uint64_t (&cache_id)[2]);
  // kCorrupt unless it is the queue of a cache of this geometry and id.
  static Result<CopyQueue> open(Mapping mapping, const Geometry& geometry, const std::uint64_t (&cache_id)[2]);

  // --- the worker's; one thread at a time for each slot
  // Takes a copy of `bytes`. kInvalid: not inside a page of this cache. kNotNow: 8 copies are on their way.
  Status submit(WorkerId me, const CopyTarget& target, std::span<const std::byte> bytes) const;
  // Sleeps until all of them are written; negative: without bound. kTimeout.
  Status wait_idle(WorkerId me, std::int64_t timeout_ns) const;

  // --- anybody's
  bool idle(WorkerId slot) const;

  // --- the engine's
  // The slot's oldest copy, if there is one. Entries that do not fit are dropped on the way.
  std::optional<CopyWork> next(WorkerId slot) const;
  void finish(WorkerId slot) const;
  WakeWord& doorbell() const { return header().doorbell; }
  std::uint32_t ring_count() const { return geometry_.workers + 1; }

 private:
  CopyQueue(Mapping mapping, const Geometry& geometry) : mapping_(std::move(mapping)), geometry_(geometry) {}

  CopyQueueHeader& header() const { return *reinterpret_cast<CopyQueueHeader*>(mapping_.data()); }
  CopyRing& ring_of(WorkerId slot) const;
  std::byte* staging(WorkerId slot, std::uint32_t number) const;
  bool fits(const CopyTarget& target, std::uint64_t bytes) const;

  Mapping mapping_;
  Geometry geometry_;
};

}  // namespace kvtrie
