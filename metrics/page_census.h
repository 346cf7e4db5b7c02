// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a scrape needs of pages and leases: their tables' stats, taken at most once a second, since
// those of the pages read a line a page (about 0.1 s at 16 M pages).
#pragma once

#include <chrono>
#include <mutex>

#include "shm/lease_table.h"
#include "shm/page_table.h"
#include "shm/segment.h"

namespace kvtrie {

struct PageCensus {
  PageStats pages;
  LeaseStats leases;
};

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
