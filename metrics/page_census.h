// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a scrape needs of pages and leases: counted by one walk over them, at most once a second,
// since the walk reads a line a page (about 0.1 s at 16 M pages). What stands in the segment is
// input: impossible words are counted as such.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>

#include "shm/ids.h"
#include "shm/segment.h"

namespace kvtrie {

struct PageCensus {
  std::array<std::uint64_t, kPageStates> pages{};  // by PageState
  std::uint64_t malformed = 0;
  std::uint64_t leases = 0;
};

PageCensus take_census(const Segment& segment);

// Thread-safe.
class CensusCache {
 public:
  static constexpr std::chrono::seconds kMaxAge{1};

  explicit CensusCache(const Segment& segment) : segment_(segment) {}
  PageCensus get();

 private:
  const Segment& segment_;
  std::mutex
      mutex_;  // guards what follows; a second scraper waits for the first one's walk and shares it
  PageCensus census_;
  std::chrono::steady_clock::time_point taken_{};
  bool valid_ = false;
};

}  // namespace kvtrie
