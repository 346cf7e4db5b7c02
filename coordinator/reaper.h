// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Takes back what workers held that died, left, or never came (rule 14). Death is the kernel's
// word: each slot in use has the pidfd of its process in an epoll set; nothing here is a time-out.
// A process that replaced its program (execve) has ended as a worker too; the kernel does not report that, so it is
// seen when the new program attaches, or when the process ends.
//
// Order for one slot: kReaping, then its pages, leases and waits, then its identity, last kFree. A
// coordinator that dies in between leaves kReaping (or the slot as it was), and adopt() of the next
// one does it again.
#pragma once

#include <cstdint>
#include <vector>

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
  Reaper(const Segment& segment, const LogSink& log)
      : segment_(segment), table_(segment), log_(log) {}

  MaybeFailure start();
  // Readable when a watched process is dead.
  int epoll_fd() const { return epoll_.get(); }

  // `pidfd` is the process that `grant` was given to.
  MaybeFailure watch(SlotGrant grant, FileDescriptor pidfd);
  // Reaps the dead; one system call when there are none. Returns how many.
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
  // Slots cleared since the start: who sees it grow looks whether somebody waits for the pages.
  std::uint64_t cleared() const { return cleared_; }

 private:
  enum class Why : std::uint8_t { kDied, kExec, kLeft, kGivenUp };
  static const char* event_name(Why why);
  bool reap(WorkerId slot, SlotWord expected, Why why);
  void forget(WorkerId slot);

  const Segment& segment_;
  WorkerTable table_;
  const LogSink& log_;
  FileDescriptor epoll_;
  std::vector<FileDescriptor> pidfds_;  // by slot
  std::uint32_t watched_ = 0;
  std::uint64_t cleared_ = 0;
};

}  // namespace kvtrie
