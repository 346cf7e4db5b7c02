// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Ticks of a save file in the clock of the segment that is
// loaded: ages stay (docs/save-format.md, Time).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "save/save_format.h"
#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

class SavedTime {
 public:
  // A driven clock that nobody has driven yet goes on at the file's time.
  SavedTime(const SaveHead& head, const Segment& segment)
      : saved_now_(head.now_tick),
        ratio_(static_cast<double>(head.tick_ns) /
               static_cast<double>(segment.tick_ns())) {
    if (segment.superblock().clock_kind == static_cast<std::uint32_t>(ClockKind::kDriven)) {
      segment.superblock().driven_tick.store(in_ticks(saved_now_), std::memory_order_relaxed);
    }
    now_ = segment.now_tick();
  }

  std::uint32_t now() const { return now_; }

  // `place`: how far behind in the file it stands, 0 to 1. Orders
  // those that are older than the clock.
  TouchWord recency(std::uint64_t saved, double place) const {
    const TouchWord touch{saved};
    const std::uint32_t age = in_ticks(saved_now_ - std::min(touch.tick(), saved_now_));
    if (age < now_ || (age == now_ && ratio_ == 1)) {
      return TouchWord::make(now_ - age, touch.order(), touch.touches(), touch.hint_and_flags());
    }
    const auto order = static_cast<std::uint16_t>((1 - place) * 0xFFFF);
    return TouchWord::make(0, order, touch.touches(), touch.hint_and_flags());
  }

  // Tick before which the evictor passes a page by; 0: none.
  std::uint32_t retain_until(std::uint32_t ticks_left) const {
    if (ticks_left == 0) return 0;
    return now_ + std::clamp<std::uint32_t>(in_ticks(ticks_left), 1, kTicksMax - now_);
  }

 private:
  static constexpr std::uint32_t kTicksMax = std::numeric_limits<std::uint32_t>::max();

  std::uint32_t in_ticks(std::uint32_t saved_ticks) const {
    const double ticks = saved_ticks * ratio_;
    return ticks >= kTicksMax ? kTicksMax : static_cast<std::uint32_t>(ticks);
  }

  std::uint32_t saved_now_;
  double ratio_;
  std::uint32_t now_ = 0;
};

}  // namespace kvtrie
