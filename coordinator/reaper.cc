// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/reaper.h"

#include <fmt/format.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <chrono>

#include "shm/process_identity.h"

namespace kvtrie {
namespace {

constexpr int kEventsAtOnce = 64;

}  // namespace

const char* Reaper::event_name(Why why) {
  switch (why) {
    case Why::kDied:
      return "reap";
    case Why::kExec:
      return "reap_exec";
    case Why::kLeft:
      return "detach";
    case Why::kGivenUp:
      break;
  }
  return "give_up";
}

MaybeFailure Reaper::start() {
  epoll_ = FileDescriptor(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.open()) return system_failure("epoll_create1", errno);
  pidfds_.resize(segment_.slot_count());
  return {};
}

MaybeFailure Reaper::watch(SlotGrant grant, FileDescriptor pidfd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = grant.slot.value;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, pidfd.get(), &event) != 0) {
    return system_failure("watching a worker's pidfd", errno);
  }
  if (!pidfds_[grant.slot.value].open()) ++watched_;
  pidfds_[grant.slot.value] = std::move(pidfd);
  return {};
}

void Reaper::forget(WorkerId slot) {
  if (pidfds_[slot.value].open()) --watched_;
  pidfds_[slot.value] = {};  // closing takes it out of the epoll set: it has no duplicates
}

bool Reaper::reap(WorkerId slot, SlotWord expected, Why why) {
  const auto start = std::chrono::steady_clock::now();
  const WorkerRecord& record = segment_.worker(slot);
  const std::uint32_t pid = record.pid.load(std::memory_order_relaxed);
  const std::optional<ReapReport> report = reap_slot(segment_, slot, expected, why == Why::kDied || why == Why::kExec);
  if (!report) return false;
  ++cleared_;
  forget(slot);
  const auto took = std::chrono::steady_clock::now() - start;
  log_(fmt::format("event={} worker={} pid={} pages={} leases={} took_us={}", event_name(why),
                   slot.value, pid, report->pages, report->leases,
                   std::chrono::duration_cast<std::chrono::microseconds>(took).count()));
  return true;
}

std::uint32_t Reaper::reap_dead() {
  std::uint32_t reaped = 0;
  std::array<epoll_event, kEventsAtOnce> events;
  for (;;) {
    const int ready = ::epoll_wait(epoll_.get(), events.data(), kEventsAtOnce, 0);
    if (ready <= 0) return reaped;
    for (int i = 0; i < ready; ++i) {
      const WorkerId slot{static_cast<std::uint16_t>(events[static_cast<std::size_t>(i)].data.u32)};
      // The process is dead, so nobody but us moves the word; a word that does not know its worker
      // was written over.
      const SlotWord now = table_.word(slot);
      const bool left = now.state() == SlotState::kLeaving;  // and ended before we looked at the doorbell
      if (reap(slot, now, left ? Why::kLeft : Why::kDied)) {
        ++reaped;
      } else {
        log_(fmt::format("event=corrupt worker={} word={:#x}", slot.value, table_.word(slot).raw));
        segment_.poison(PoisonReason::kCorruptStructure);
      }
      forget(slot);
    }
  }
}

std::uint32_t Reaper::reap_leaving() {
  std::uint32_t reaped = 0;
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const SlotWord now = table_.word(slot);
    if (now.state() == SlotState::kLeaving && reap(slot, now, Why::kLeft)) ++reaped;
  }
  return reaped;
}

void Reaper::reap_other_images(std::uint32_t pid, std::uint64_t start_time, std::uint64_t image) {
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const SlotWord now = table_.word(slot);
    const WorkerRecord& record = segment_.worker(slot);
    if (now.state() != SlotState::kActive || record.pid.load(std::memory_order_relaxed) != pid ||
        record.start_time.load(std::memory_order_relaxed) != start_time ||
        record.image.load(std::memory_order_relaxed) == image) {
      continue;
    }
    (void)reap(slot, now, Why::kExec);
  }
}

void Reaper::give_up(SlotGrant grant) {
  // Fails when the worker confirmed: then the slot is its own.
  (void)reap(grant.slot, SlotWord::make(SlotState::kAttaching, grant.incarnation), Why::kGivenUp);
}

MaybeFailure Reaper::adopt(AdoptSlots& slots) {
  table_.recover();
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const SlotWord now = table_.word(slot);
    if (now.state() == SlotState::kFree) continue;
    if (now.state() == SlotState::kActive) {
      const WorkerRecord& record = segment_.worker(slot);
      Result<FileDescriptor> pidfd =
          open_pidfd_of(record.pid.load(std::memory_order_relaxed),
                        record.start_time.load(std::memory_order_relaxed));
      if (pidfd) {
        if (MaybeFailure failure = watch({slot, now.incarnation()}, std::move(*pidfd)))
          return failure;
        ++slots.alive;
        continue;
      }
      // Only "no such process" is a death; without descriptors, say, we know nothing and must not
      // take.
      if (pidfd.error().code() != Code::kNotFound) {
        return failure_of(fmt::format("looking for the process of worker {}", i), pidfd.error());
      }
    }
    // Dead, leaving, half reaped, or attached only by halves: a worker that confirms just now wins,
    // and is then looked at again.
    const Why why = now.state() == SlotState::kLeaving     ? Why::kLeft
                    : now.state() == SlotState::kAttaching ? Why::kGivenUp
                                                           : Why::kDied;
    if (reap(slot, now, why)) {
      ++slots.reaped;
    } else {
      --i;
    }
  }
  return {};
}

}  // namespace kvtrie
