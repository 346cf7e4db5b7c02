// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a run's parent and its worker processes share: settings, who has which request, answers, counts.
// Process-shared memory that the workers inherit as a descriptor; nothing of the cache is in here.
//
//   Header | RequestRecord x requests | WorkerTally x workers
//
// Invariants
//   1 A request is open, one worker's, or done: its owner word says which. Only its worker writes the rest of its
//     record.
//   2 A tally is written by one worker at a time; its successor goes on with it.
//
// Crash: a worker that dies leaves its requests its own; the parent opens them again. Attempts are counted when a
// request is taken, so what killed one worker does not kill the next.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <optional>

#include "tools/engine/workload.h"

namespace kvtrie::engine {

// Where a request may fail or its worker die: behind this step of the request.
enum class Stage : std::uint32_t { kBegin, kAllocate, kCompute, kPublish, kRelease, kNone };
inline constexpr std::size_t kStages = 5;
inline constexpr const char* kStageNames[kStages] = {"begin", "allocate", "compute", "publish", "release"};

// How pages that others announced are treated.
enum class WaitMode : std::uint32_t { kCompute, kWait, kAuto };

// A fault of the engine itself, which the comparison must see.
enum class Sabotage : std::uint32_t { kNone, kPublishEarly, kHalfWrite, kForeignPage, kWrongPage };

enum class EngineKind : std::uint32_t { kHash, kLlama };

struct RunSettings {
  char cache[256];
  char directory[512];
  char model[512];      // of llama.cpp
  char back_end[32];    // ...
  char schedules[512];  // ... folder for what the workers did (schedule.h)
  char dump[512];       // options of the workers' debug dumps; empty: none
  std::uint64_t seed;
  std::uint64_t start_ns;
  std::uint32_t in_flight;     // requests that a worker has begun
  std::uint32_t batch;         // of one prepare_batch, at most
  std::uint32_t chunk;         // tokens of one step, at most
  std::uint32_t same_tokens;   // workload.h
  std::uint32_t fail_percent;  // of the requests, at a stage each
  std::uint32_t kills;         // requests that kill their worker, at a stage each
  std::uint32_t kill_owner;    // 1: who computes a prompt of `same` dies half-way
  std::uint32_t slow_worker;   // worker 0 computes so many times slower; above 1 it begins first
  double prefill_token_us;
  EngineKind engine;
  WaitMode wait;
  Sabotage sabotage;
};

//  name, its key in JSON, text
#define KVTRIE_ENGINE_COUNTS(X)                                                                      \
  X(kBatches, "batches", "batches prepared")                                                         \
  X(kNotNow, "not_now", "batches that found too few pages")                                          \
  X(kSteps, "steps", "steps of the engine")                                                          \
  X(kCached, "cached", "prompt tokens found in the cache")                                           \
  X(kShared, "shared", "prompt tokens of another sequence of the batch")                             \
  X(kPrefilled, "prefilled", "prompt tokens computed")                                               \
  X(kDecoded, "decoded", "tokens generated and computed")                                            \
  X(kPublished, "published", "pages published")                                                      \
  X(kKeptPrivate, "kept_private", "pages kept private at a publish")                                 \
  X(kPreempted, "preempted", "preemptions")                                                          \
  X(kResumed, "resumed", "preempted requests resumed")                                               \
  X(kResumedCached, "resumed_cached", "tokens of these found in the cache")                          \
  X(kForks, "forks", "forks")                                                                        \
  X(kBeamsDropped, "beams_dropped", "beams dropped")                                                 \
  X(kLookedAgain, "looked_again", "begun again, since another process had announced the same pages") \
  X(kWaited, "waited", "requests that waited for pages of another process")                          \
  X(kWaitedTokens, "waited_tokens", "tokens that came by waiting")                                   \
  X(kIgnored, "ignored", "announced pages ignored, or waited for long enough")

enum class Count : std::uint8_t {
#define KVTRIE_ENGINE_NAME(name, key, text) name,
  KVTRIE_ENGINE_COUNTS(KVTRIE_ENGINE_NAME)
#undef KVTRIE_ENGINE_NAME
};
inline constexpr const char* kCountNames[] = {
#define KVTRIE_ENGINE_NAME(name, key, text) text,
    KVTRIE_ENGINE_COUNTS(KVTRIE_ENGINE_NAME)
#undef KVTRIE_ENGINE_NAME
};
inline constexpr const char* kCountKeys[] = {
#define KVTRIE_ENGINE_NAME(name, key, text) key,
    KVTRIE_ENGINE_COUNTS(KVTRIE_ENGINE_NAME)
#undef KVTRIE_ENGINE_NAME
};
inline constexpr std::size_t kCounts = std::size(kCountNames);

struct alignas(64) WorkerTally {
  std::array<std::atomic<std::uint64_t>, kCounts> counts;
  std::array<std::atomic<std::uint64_t>, kStages> failures;
  std::array<std::atomic<std::uint64_t>, kStages> kills;
  char error[512];  // why it failed

  void add(Count count, std::uint64_t by = 1) { raise(counts[static_cast<std::size_t>(count)], by); }
  static void raise(std::atomic<std::uint64_t>& sum, std::uint64_t by) {
    sum.store(sum.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }
};

struct RequestRecord {
  static constexpr std::uint32_t kOpen = 0;
  static constexpr std::uint32_t kDone = 0xFFFF'FFFF;

  std::atomic<std::uint32_t> owner;  // worker + 1
  std::atomic<std::uint32_t> attempts;
  std::uint32_t answer_tokens;
  std::uint32_t prefilled;              // tokens computed for it, by the attempt that finished
  std::uint64_t first_token_ns;         // from its first taking by a worker that lived to the first token
  std::uint64_t woken_ns;               // kill_owner: from the owner's death to this waiter's return
  std::atomic<std::uint64_t> death_ns;  // kill_owner, of a group's first request: when its owner died
  std::uint32_t answer[kOutputMax * kBeamsMax];
};

class Board {
 public:
  // Throws std::system_error.
  Board(const RunSettings& settings, std::uint32_t requests, std::uint32_t workers);
  // The one that a worker inherited as `fd`.
  explicit Board(int fd);
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;
  ~Board();

  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] const RunSettings& settings() const { return header_->settings; }
  [[nodiscard]] std::uint32_t requests() const { return header_->requests; }
  [[nodiscard]] std::uint32_t workers() const { return header_->workers; }
  [[nodiscard]] RequestRecord& record(std::uint32_t index) const { return records_[index]; }
  [[nodiscard]] WorkerTally& tally(std::uint32_t worker) const { return tallies_[worker]; }
  [[nodiscard]] Workload workload() const { return {settings().seed, settings().same_tokens, workers()}; }

  // An open request is `worker`'s from now on; empty when there is none for it now. Of `same`, the worker's own of
  // the group that is under way.
  std::optional<std::uint32_t> take(std::uint32_t worker);
  void finish(std::uint32_t index);
  [[nodiscard]] std::uint32_t finished() const { return header_->finished.load(std::memory_order_acquire); }
  // By the parent, when `worker` is dead: its requests are open again.
  void reopen(std::uint32_t worker);
  void ask_to_stop() { header_->stop.store(1, std::memory_order_relaxed); }
  [[nodiscard]] bool stopping() const { return header_->stop.load(std::memory_order_relaxed) != 0; }

 private:
  struct Header {
    std::uint64_t magic;
    std::uint64_t bytes;
    std::uint32_t requests;
    std::uint32_t workers;
    RunSettings settings;
    alignas(64) std::atomic<std::uint32_t> first_open;  // a hint
    std::atomic<std::uint32_t> finished;
    std::atomic<std::uint32_t> stop;
  };

  void map(std::uint64_t bytes);
  void find_parts();
  bool own(std::uint32_t index, std::uint32_t worker);

  int fd_ = -1;
  std::uint64_t bytes_ = 0;
  Header* header_ = nullptr;
  RequestRecord* records_ = nullptr;
  WorkerTally* tallies_ = nullptr;
};

[[nodiscard]] std::uint64_t now_ns();

}  // namespace kvtrie::engine
