// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/waiting.h"

#include <ctime>

#include "shm/mutant.h"

namespace kvtrie {
namespace {

// Signed, so that a time just ahead (read later than `now_ns`) is near, and one far ahead is not.
std::int64_t from_to(std::uint64_t from_ns, std::uint64_t to_ns) {
  return static_cast<std::int64_t>(to_ns - from_ns);
}

bool reservation_stands(std::uint64_t until_ns, std::uint64_t now_ns) {
  const std::int64_t left = from_to(now_ns, until_ns);
  return KVTRIE_MUTANT(reservation_never_ends) || (left > 0 && left <= 2 * kReservedForNs);
}

}  // namespace

std::uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(now.tv_nsec);
}

bool shows_life(const WorkerRecord& waiter, std::uint64_t now_ns) {
  const std::int64_t ago = from_to(waiter.wait_seen.load(std::memory_order_relaxed), now_ns);
  return KVTRIE_MUTANT(wish_of_the_silent_binds) || (ago < kSilentAfterNs && ago > -kSilentAfterNs);
}

std::uint64_t pages_due_before(const Segment& segment, Turn turn) {
  const std::uint64_t until = segment.superblock().reserved_until.load(std::memory_order_relaxed);
  if (until == 0 || turn == Turn::first() || KVTRIE_MUTANT(take_before_older)) return 0;
  const std::uint64_t now = monotonic_ns();
  if (!reservation_stands(until, now)) return 0;
  std::uint64_t due = 0;
  for (std::uint32_t i = 1; i < segment.slot_count(); ++i) {
    const auto slot = static_cast<std::uint16_t>(i);
    const WorkerRecord& record = segment.worker({slot});
    const std::uint32_t wanted = record.pages_wanted.load(std::memory_order_acquire);
    if (wanted == 0 || wanted > segment.page_count()) continue;
    const Turn other{record.wait_ticket.load(std::memory_order_relaxed), slot};
    if (other < turn && shows_life(record, now)) due += wanted;
  }
  return due;
}

}  // namespace kvtrie
