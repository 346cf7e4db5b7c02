// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the replay's parent and its workers share: the requests, who has which, and what came of it.
// An anonymous object (memfd) that the workers inherit.
//
//   PlanHeader | PlannedRequest x requests | ids | WorkerTally x workers | extra   each part 64-byte
//   aligned
//
// Invariants
//   1 A request's owner word is the truth: open, a worker's, served or failed. A worker takes a
//     request by compare-and-swap from open, so each is served once.
//   2 `first_open` {times set back 32 | index 32} is a hint: nothing before the index is open. It
//   is
//     set back by the parent alone, which raises the upper half, so that a worker's late step
//     forward fails.
//   3 A tally is written by one worker at a time.
//
// Crash: a worker that dies leaves its requests taken; the parent opens them again (reopen) when
// the kernel has said that it is dead. Hits of a begin that had not been added yet: begin_pages
// says how many there can be. A histogram may be one off.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "tools/replay/histogram.h"
#include "tools/replay/options.h"
#include "tools/replay/trace.h"

namespace kvtrie::replay {

// What a worker is told beside the requests.
struct PlanSettings {
  char cache[64];
  char directory[4096];
  char plugin[4096];
  std::uint32_t in_flight;
  std::uint32_t namespaces;
  std::uint32_t sequential;  // 1: wait for the evictor where the sequential model evicts
  std::uint32_t mix;         // 1: all calls by chance (mix_worker.h)
  std::uint64_t seed;
  double speed;  // 0: max
  double check_percent;
  std::uint64_t start_ns;  // CLOCK_MONOTONIC at the trace's time 0
  std::uint64_t mix_seed;
};

struct PlannedRequest {
  std::uint64_t timestamp_ms;
  std::uint64_t first_id;  // in ids()
  std::uint32_t id_count;
  std::uint32_t output_length;
  std::uint32_t tick;
  std::atomic<std::uint32_t> owner;  // kOpen, kServed, kFailed, or worker + 1
};

// Sums of one worker. Append-only, in the order of kTallyNames.
enum class Tally : std::uint8_t {
  kServed,
  kFailed,
  kBegins,
  kPagesAsked,   // full prompt pages of all begins
  kPagesHit,     // what begin answered, of all begins
  kRuns,         // runs of neighbouring pages among them
  kBlocksAsked,  // of finished requests; of one that began twice the last begin counts
  kBlocksHit,
  kTokensAsked,
  kTokensHit,
  kPagesWritten,
  kPagesPublished,
  kPagesPrivate,  // asked to be published, and kept private
  kPagesChecked,  // compared in all planes
  kWrongPages,
  kRetries,    // began again since there was no room
  kUnsettled,  // sequential: the evictor did not come to rest in time
};
inline constexpr std::size_t kTallies = 17;

enum class Timing : std::uint8_t { kLookup, kAllocate, kPublish, kRelease };
inline constexpr std::size_t kTimings = 4;

struct alignas(64) WorkerTally {
  std::atomic<std::uint64_t> sums[kTallies];
  std::atomic<std::uint64_t> begin_pages;  // most that the begin that runs now can answer
  Histogram timings[kTimings];
  char error[512];  // why the worker gave up

  void add(Tally tally, std::uint64_t by = 1) {
    std::atomic<std::uint64_t>& sum = sums[static_cast<std::size_t>(tally)];
    sum.store(sum.load(std::memory_order_relaxed) + by, std::memory_order_release);
  }
  [[nodiscard]] std::uint64_t get(Tally tally) const {
    return sums[static_cast<std::size_t>(tally)].load(std::memory_order_acquire);
  }
  Histogram& timing(Timing which) { return timings[static_cast<std::size_t>(which)]; }
};

class SharedPlan {
 public:
  static constexpr std::uint32_t kOpen = 0;
  static constexpr std::uint32_t kServed = 0xFFFF'FFFF;
  static constexpr std::uint32_t kFailed = 0xFFFF'FFFE;

  // Ticks go up from `tick_base`. Throws std::system_error or std::runtime_error.
  // `extra_bytes`, zeroed, are for another part's use (mix_board.h).
  SharedPlan(std::span<const Request> requests, const PlanSettings& settings, std::uint32_t workers,
             std::uint32_t tick_base, std::uint64_t extra_bytes = 0);
  // The plan that a worker inherited as `fd`.
  explicit SharedPlan(int fd);
  SharedPlan(const SharedPlan&) = delete;
  SharedPlan& operator=(const SharedPlan&) = delete;
  ~SharedPlan();

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] PlanSettings& settings() const { return header_->settings; }
  [[nodiscard]] std::uint32_t request_count() const { return header_->request_count; }
  [[nodiscard]] std::uint32_t worker_count() const { return header_->worker_count; }
  [[nodiscard]] PlannedRequest& planned(std::uint32_t index) const { return requests_[index]; }
  [[nodiscard]] Request request(std::uint32_t index) const;
  [[nodiscard]] WorkerTally& tally(std::uint32_t worker) const { return tallies_[worker]; }
  [[nodiscard]] std::byte* extra() const { return reinterpret_cast<std::byte*>(tallies_ + worker_count()); }

  // The first open request is `worker`'s from now on; empty when none is open.
  std::optional<std::uint32_t> take(std::uint32_t worker);
  void finish(std::uint32_t index, bool served);
  // By the parent, when `worker` is dead: its requests are open again. Returns how many.
  std::uint32_t reopen(std::uint32_t worker);
  // By the parent, when all are finished and no worker runs: all requests are open once more.
  void open_all();
  // How often open_all() was called, plus one.
  [[nodiscard]] std::uint32_t rounds() const { return rounds_; }
  [[nodiscard]] std::uint32_t finished() const {
    return header_->finished.load(std::memory_order_acquire);
  }
  // Finished or not, by the owner words.
  [[nodiscard]] std::uint32_t count_unfinished() const;

  void ask_to_stop() { header_->stop.store(1, std::memory_order_relaxed); }
  [[nodiscard]] bool stopping() const { return header_->stop.load(std::memory_order_relaxed) != 0; }

 private:
  struct PlanHeader {
    std::uint64_t magic;
    std::uint64_t bytes;
    std::uint64_t id_count;
    std::uint32_t request_count;
    std::uint32_t worker_count;
    alignas(64) std::atomic<std::uint64_t> first_open;
    std::atomic<std::uint32_t> finished;
    std::atomic<std::uint32_t> stop;
    alignas(64) PlanSettings settings;
  };

  void map(std::uint64_t bytes);
  void find_parts();

  std::uint32_t rounds_ = 1;
  int fd_ = -1;
  std::uint64_t bytes_ = 0;
  PlanHeader* header_ = nullptr;
  PlannedRequest* requests_ = nullptr;
  std::uint64_t* ids_ = nullptr;
  WorkerTally* tallies_ = nullptr;
};

}  // namespace kvtrie::replay
