// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Takes back what workers held that died, left, or never came (rule 14). Death is the kernel's
// word: each slot in use has the pidfd of its process in an epoll set; nothing here is a time-out.
// A process that replaced its program (execve) has ended as a worker too; the kernel does not report that, so it is
// seen when the new program attaches, or when the process ends.
//
// Order for one slot: kReaping, then the fence, then its pages, leases and waits, then its identity, last kFree. A
// coordinator that dies in between leaves kReaping (or the slot as it was), and adopt() of the next
// one does it again, fence and all.
//
// The fence: what a worker's pages are given back for is that nobody can write into them any more. Two may:
//   the device    copies that the worker asked for are still under way: Device::fence (device.h) has not said true
//   plane writers that filled pages for it (W5 of worker_table.h) and have a slot: they detach, or die and are reaped,
//                 each behind its own fence
// Until both are over the slot stays kReaping with everything in it: pages Writing or Pending of the dead owner, leases,
// the slot's number. Nothing of it is reused, everybody else's is at once; nobody waits for it here: every look at the
// dead (reap_dead) looks again, and poll_after_ms() says when to come if nothing else happens. To other workers a
// Pending page of it looks like one of a slow owner.
//
//   kActive, kLeaving, kAttaching --CAS--> kReaping --fence--> pages, leases, waits --> kFree
//                                           |    ^
//                                           +----+ not over: event=fence, once
//
// Crash: died after / left behind / repaired by / test
//   kReaping, fence not over / all of it / the next coordinator's adopt() asks its own device and the same slots /
//       QueuedDeviceTest.CoordinatorThatDiesMeanwhileLeavesTheFenceToTheNext,
//       PlaneWriterTest.PagesOfADeadSchedulerComeBackWhenItsLastRankIsGone
//   a plane writer's slot kFree, its scheduler's not looked at again / kReaping / adopt() / the same
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "coordinator/device.h"
#include "coordinator/failure.h"
#include "coordinator/log.h"
#include "shm/ids.h"
#include "shm/recovery.h"
#include "shm/segment.h"
#include "shm/shared_object.h"
#include "shm/worker_table.h"

namespace kvtrie {

class Reaper {
 public:
  Reaper(const Segment& segment, Device& device, const LogSink& log)
      : segment_(segment), table_(segment), device_(device), log_(log) {}

  MaybeFailure start();
  // Readable when a watched process is dead.
  int epoll_fd() const { return epoll_.get(); }

  // `pidfd` is the process that `grant` was given to.
  MaybeFailure watch(SlotGrant grant, FileDescriptor pidfd);
  // Reaps the dead, and those before it whose fence is over now; one system call when there are none. Returns how many
  // slots are free again.
  std::uint32_t reap_dead();
  // Clears the slots of workers that detached.
  std::uint32_t reap_leaving();
  // The process runs another program by now (execve): what it held under any other image nobody will give back.
  void reap_other_images(std::uint32_t pid, std::uint64_t start_time, std::uint64_t image);
  // The connection closed and the worker never confirmed: the slot is free again, unless it did.
  void give_up(SlotGrant grant);

  struct AdoptSlots {
    std::uint32_t alive = 0;
    std::uint32_t reaped = 0;
  };
  // After a coordinator's death: watches the workers that live, reaps all others.
  MaybeFailure adopt(AdoptSlots& slots);

  std::uint32_t watched() const { return watched_; }
  // The slot has a process, by the kernel's word.
  bool watches(WorkerId slot) const { return pidfds_[slot.value].open(); }
  // Slots whose fence is not over.
  std::size_t fenced() const { return fenced_.size(); }
  // When to call reap_dead() again though no process died: the device has copies under way. -1: not needed.
  std::int64_t poll_after_ms() const;
  // Slots cleared since the start: who sees it grow looks whether somebody waits for the pages.
  std::uint64_t cleared() const { return cleared_; }

 private:
  enum class Why : std::uint8_t { kDied, kExec, kLeft, kGivenUp };
  enum class WaitsFor : std::uint8_t { kNothing, kDevice, kPlaneWriters };
  // Reaping, since when, and what for.
  struct Fenced {
    WorkerId slot;
    SlotWord word;
    Why why;
    WaitsFor waits_for;
    std::chrono::steady_clock::time_point since;
  };
  static const char* event_name(Why why);
  // False when its word is not `expected` any more. True: the slot is free, or fenced.
  bool reap(WorkerId slot, SlotWord expected, Why why);
  WaitsFor waits_for(WorkerId slot) const;
  void finish(const Fenced& one);
  std::uint32_t reap_fenced();
  void forget(WorkerId slot);
  void give_up_segment(WorkerId slot);

  const Segment& segment_;
  WorkerTable table_;
  Device& device_;
  const LogSink& log_;
  FileDescriptor epoll_;
  std::vector<FileDescriptor> pidfds_;  // by slot
  std::vector<std::uint64_t> incarnations_;  // of those
  std::vector<Fenced> fenced_;
  std::uint32_t watched_ = 0;
  std::uint64_t cleared_ = 0;
};

}  // namespace kvtrie
