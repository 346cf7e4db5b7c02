// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/copy_engine.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "shm/crash_point.h"
#include "shm/futex.h"

namespace kvtrie {
namespace {

constexpr std::int64_t kLookAnywayNs = 50'000'000;

std::uint64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

}  // namespace

CopyEngine::CopyEngine(const CopyQueue& queue, std::vector<Mapping> planes, std::uint64_t page_bytes,
                       std::uint32_t delay_ms)
    : queue_(queue),
      planes_(std::move(planes)),
      page_bytes_(page_bytes),
      delay_ns_(std::uint64_t{delay_ms} * 1'000'000),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

void CopyEngine::run(const std::stop_token& stop) {
  const std::stop_callback wake(stop, [this] { ring(queue_.doorbell()); });
  while (!stop.stop_requested()) {
    const std::uint32_t seen = queue_.doorbell().word.load(std::memory_order_seq_cst);
    const std::int64_t sleep_ns = perform_due(stop);
    if (stop.stop_requested()) return;
    (void)wait_on(queue_.doorbell(), seen, sleep_ns);
  }
}

std::int64_t CopyEngine::perform_due(const std::stop_token& stop) {
  std::int64_t sleep_ns = kLookAnywayNs;
  for (std::uint32_t i = 1; i < queue_.ring_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    while (!stop.stop_requested()) {
      const std::optional<CopyWork> work = queue_.next(slot);
      if (!work) break;
      // A time in the future is no worker's (the clock is one for all): such a copy is due.
      const std::uint64_t now = now_ns();
      const std::uint64_t waited = now - std::min(now, work->submitted_ns);
      if (waited < delay_ns_ && work->submitted_ns <= now) {
        sleep_ns = std::min(sleep_ns, static_cast<std::int64_t>(delay_ns_ - waited));
        break;
      }
      perform_copy(queue_, planes_[work->target.plane], page_bytes_, slot, *work);
    }
  }
  return sleep_ns;
}

void perform_copy(const CopyQueue& queue, const Mapping& plane, std::uint64_t page_bytes, WorkerId slot,
                  const CopyWork& work) {
  std::byte* const page = plane.data() + work.target.page.value * page_bytes;
  std::copy(work.bytes.begin(), work.bytes.end(), page + work.target.offset);
  KVTRIE_CRASH_POINT("copy.after_bytes");
  queue.finish(slot);
}

}  // namespace kvtrie
