// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/reaper.h"

#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "shm/mutant.h"
#include "shm/process_identity.h"

namespace kvtrie {
namespace {

constexpr int kEventsAtOnce = 64;
constexpr std::int64_t kFencePollMs = 5;

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
  incarnations_.resize(segment_.slot_count());
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
  incarnations_[grant.slot.value] = grant.incarnation;
  return {};
}

void Reaper::forget(WorkerId slot) {
  if (pidfds_[slot.value].open()) --watched_;
  pidfds_[slot.value] = {};  // closing takes it out of the epoll set: it has no duplicates
}

bool Reaper::reap(WorkerId slot, SlotWord expected, Why why) {
  const auto start = std::chrono::steady_clock::now();
  if (!table_.begin_reap(slot, expected)) return false;
  // Its process is dead, or does not use the slot any more: nothing to wait for there.
  forget(slot);
  const Fenced one{slot, expected.with(SlotState::kReaping), why, waits_for(slot), start};
  if (one.waits_for == WaitsFor::kNothing) {
    finish(one);
    return true;
  }
  fenced_.push_back(one);
  log_(fmt::format("event=fence worker={} pid={} waits_for={}", slot.value,
                   segment_.worker(slot).pid.load(std::memory_order_relaxed),
                   one.waits_for == WaitsFor::kDevice ? "device" : "plane_writers"));
  return true;
}

// Writers first: what they asked the device for ends with their own slots.
Reaper::WaitsFor Reaper::waits_for(WorkerId slot) const {
  if (!KVTRIE_MUTANT(no_writer_fence) && table_.has_plane_writers(slot)) return WaitsFor::kPlaneWriters;
  return device_.fence(slot) ? WaitsFor::kNothing : WaitsFor::kDevice;
}

void Reaper::finish(const Fenced& one) {
  const std::uint32_t pid = segment_.worker(one.slot).pid.load(std::memory_order_relaxed);
  const bool died = one.why == Why::kDied || one.why == Why::kExec;
  const std::optional<ReapReport> report = reap_slot(segment_, one.slot, one.word, died);
  if (!report) {  // the slot was ours alone: somebody wrote over it
    give_up_segment(one.slot);
    return;
  }
  ++cleared_;
  const auto took = std::chrono::steady_clock::now() - one.since;
  log_(fmt::format("event={} worker={} pid={} pages={} leases={} took_us={}", event_name(one.why),
                   one.slot.value, pid, report->pages, report->leases,
                   std::chrono::duration_cast<std::chrono::microseconds>(took).count()));
}

// A plane writer that goes may be what its scheduler waits for, so until nothing moves.
std::uint32_t Reaper::reap_fenced() {
  std::uint32_t reaped = 0;
  for (std::size_t i = 0; i < fenced_.size();) {
    fenced_[i].waits_for = waits_for(fenced_[i].slot);
    if (fenced_[i].waits_for != WaitsFor::kNothing) {
      ++i;
      continue;
    }
    const Fenced one = fenced_[i];
    fenced_.erase(fenced_.begin() + static_cast<std::ptrdiff_t>(i));
    finish(one);
    ++reaped;
    i = 0;
  }
  return reaped;
}

std::int64_t Reaper::poll_after_ms() const {
  const bool device = std::ranges::any_of(
      fenced_, [](const Fenced& one) { return one.waits_for == WaitsFor::kDevice; });
  return device ? kFencePollMs : -1;
}

std::uint32_t Reaper::reap_dead() {
  const std::uint64_t cleared = cleared_;
  std::array<epoll_event, kEventsAtOnce> events;
  for (;;) {
    const int ready = ::epoll_wait(epoll_.get(), events.data(), kEventsAtOnce, 0);
    if (ready <= 0) break;
    for (int i = 0; i < ready; ++i) {
      const WorkerId slot{static_cast<std::uint16_t>(events[static_cast<std::size_t>(i)].data.u32)};
      // The process is dead, so nobody but us moves the word; a word that does not know its worker
      // was written over.
      const SlotWord now = table_.word(slot);
      const bool left = now.state() == SlotState::kLeaving;  // and ended before we looked at the doorbell
      if (!reap(slot, now, left ? Why::kLeft : Why::kDied)) {
        give_up_segment(slot);
        forget(slot);
      }
    }
  }
  (void)reap_fenced();
  return static_cast<std::uint32_t>(cleared_ - cleared);
}

std::uint32_t Reaper::reap_leaving() {
  const std::uint64_t cleared = cleared_;
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const SlotWord now = table_.word(slot);
    // Of another life it is no wish of this one: the word was written over, and whoever did that still uses the slot.
    if (now.state() != SlotState::kLeaving || (watches(slot) && now.incarnation() != incarnations_[i])) continue;
    (void)reap(slot, now, Why::kLeft);
  }
  (void)reap_fenced();
  return static_cast<std::uint32_t>(cleared_ - cleared);
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

// Somebody wrote over a slot's word: nobody can tell what is whose.
void Reaper::give_up_segment(WorkerId slot) {
  log_(fmt::format("event=corrupt worker={} word={:#x}", slot.value, table_.word(slot).raw));
  segment_.poison(PoisonReason::kCorruptStructure);
}

MaybeFailure Reaper::adopt(AdoptSlots& slots) {
  constexpr int kLooksMax = 4;  // attaching, active, leaving: a word does not change more often before it is ours
  table_.recover();
  std::uint32_t looked_at = 0;
  int looks = 0;
  for (std::uint32_t i = 1; i < segment_.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    looks = i == looked_at ? looks + 1 : 1;
    looked_at = i;
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
    } else if (looks < kLooksMax && now.well_formed()) {
      --i;
    } else {
      give_up_segment(slot);
    }
  }
  // A dead scheduler was looked at before its dead plane writers.
  (void)reap_fenced();
  slots.reaped -= static_cast<std::uint32_t>(fenced_.size());
  return {};
}

}  // namespace kvtrie
