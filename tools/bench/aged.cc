// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/aged.h"

#include <atomic>
#include <cstdint>

#include "shm/ids.h"

namespace kvtrie::bench {

double mean_run_length(const Segment& segment) {
  std::uint64_t live = 0;
  std::uint64_t runs = 0;
  StateWord before;  // of the page in front, if that is Live
  bool before_is_live = false;
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const Descriptor& descriptor = segment.descriptor({i});
    const StateWord word{descriptor.state.load(std::memory_order_acquire)};
    const bool is_live = word.state() == PageState::kLive;
    if (is_live) {
      const Handle parent{descriptor.parent.load(std::memory_order_relaxed)};
      ++live;
      if (!before_is_live || parent != Handle::page({i - 1}, before)) ++runs;
    }
    before = word;
    before_is_live = is_live;
  }
  return runs == 0 ? 0 : static_cast<double>(live) / static_cast<double>(runs);
}

}  // namespace kvtrie::bench
