// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/page_census.h"

namespace kvtrie {

PageCensus CensusCache::get() {
  const std::lock_guard guard(mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (!valid_ || now - taken_ >= kMaxAge) {
    census_ = {PageTable(segment_).stats(), LeaseTable(segment_).stats()};
    taken_ = std::chrono::steady_clock::now();
    valid_ = true;
  }
  return census_;
}

}  // namespace kvtrie
