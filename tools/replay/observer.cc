// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/observer.h"

#include <fmt/format.h>
#include <sched.h>

#include <cstring>
#include <stdexcept>
#include <thread>

#include "shm/free_pages.h"
#include "shm/page_table.h"

namespace kvtrie::replay {
namespace {

constexpr int kLooksBeforeSleeping = 64;
constexpr auto kBetweenLooks = std::chrono::microseconds(50);

Segment open_or_throw(const std::string& cache) {
  if (const std::string problem = cache_name_problem(cache); !problem.empty()) {
    throw std::runtime_error(fmt::format("cache '{}': {}", cache, problem));
  }
  Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  if (!segment) {
    const Status status = segment.error();
    if (status.code() == Code::kNotFound) {
      throw std::runtime_error(fmt::format("there is no cache '{}': start kvtried --cache {}", cache, cache));
    }
    throw std::runtime_error(
        fmt::format("cache '{}': {}{}{}", cache, status.what(), status.system_errno() != 0 ? ": " : "",
                    status.system_errno() != 0 ? std::strerror(status.system_errno()) : ""));
  }
  return std::move(*segment);
}

// Looks again and again until `done`, yielding first and then in short sleeps.
template <typename Done>
bool wait_until(Done done, std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (int looks = 0; !done(); ++looks) {
    if (looks < kLooksBeforeSleeping) {
      ::sched_yield();
      continue;
    }
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(kBetweenLooks);
  }
  return true;
}

}  // namespace

std::uint64_t Census::lost() const {
  std::uint64_t all = impossible;
  for (const std::uint64_t count : pages)
    all += count;
  const std::uint64_t found = free_bits + in(PageState::kLive);
  return found > all ? 0 : all - found;
}

Observer::Observer(const std::string& cache) : segment_(open_or_throw(cache)) {}

bool Observer::clock_is_driven() const {
  return segment_.superblock().clock_kind == static_cast<std::uint32_t>(ClockKind::kDriven);
}

std::uint32_t Observer::driven_tick() const {
  return segment_.superblock().driven_tick.load(std::memory_order_relaxed);
}

Observer::Counters Observer::counters() const {
  Counters sums{};
  for (std::size_t i = 0; i < kCounters; ++i)
    sums[i] = segment_.total(static_cast<Counter>(i));
  return sums;
}

// The free pages are counted first: enough of them, and then no pass running, means that the pass
// that freed them has ended. The other way round, one could begin between the two looks.
bool Observer::rests() const {
  const Superblock& block = segment_.superblock();
  const std::uint64_t free = FreePages(segment_).count();
  const bool enough = free >= block.low_pages.load(std::memory_order_relaxed);
  const bool fell_short = block.eviction_shortfall.load(std::memory_order_seq_cst) > 0;
  return (enough || fell_short) && block.evictor_busy.load(std::memory_order_seq_cst) == 0;
}

bool Observer::settle(std::chrono::milliseconds limit) const {
  return wait_until([this] { return rests(); }, limit);
}

Census Observer::census() const {
  Census census;
  const PageStats pages = PageTable(segment_).stats();
  census.pages = pages.by_state;
  census.impossible = pages.impossible;
  census.free_bits = FreePages(segment_).count();
  return census;
}

Census Observer::census_at_rest(std::chrono::milliseconds limit) const {
  Census census;
  (void)wait_until(
      [&] {
        census = this->census();
        return census.lost() == 0;
      },
      limit);
  return census;
}

}  // namespace kvtrie::replay
