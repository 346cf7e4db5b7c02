// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker process of a mix: like worker_loop it takes requests from the shared plan and keeps several open, but what
// it does with them is drawn by weight from all that the plugin can do, among what fits the sequence that was drawn
// before. What it has not done yet comes first now and then, so that a run of a few thousand operations has used every
// call.
//
// A request is served when a sequence that computed its prompt is released. One that is preempted, or finds no room,
// gives everything back and is begun again later; after many times it counts as failed. Beside these there are
// sequences that serve no request: forks, and prompts that others compute at the same time.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "tools/replay/mix_operations.h"

namespace kvtrie::replay {

class MixWorker {
 public:
  MixWorker(const MixContext& context, std::uint32_t in_flight, bool successor);
  // Until no request is left. Throws PluginError.
  void run();

 private:
  enum class Operation : std::uint8_t {
    kBegin,
    kBatch,
    kCompanion,
    kBeside,
    kFork,
    kWait,
    kAllocate,
    kAppend,
    kCompute,
    kPublish,
    kPublishIncomplete,
    kGiveBack,
    kCopyOut,
    kRelease,
    kPreempt,
    kProbe,
    kProbeHashes,
    kCounters,
    kEvict,
    kFlush,
    kVisit,
    kDevice,
    kMisuse,
  };
  static constexpr std::size_t kOperations = static_cast<std::size_t>(Operation::kMisuse) + 1;
  static constexpr std::size_t kNone = ~std::size_t{0};

  void fill_jobs();
  [[nodiscard]] bool fits(Operation operation, std::size_t chosen) const;
  [[nodiscard]] Operation draw(std::size_t chosen);
  void perform(Operation operation, std::size_t chosen);
  void perform_on(Operation operation, std::size_t chosen);
  void begin_next();
  void begin_batch();
  void begin_companion(std::uint32_t request);
  void check_all(const char* when);
  void allocate_or_make_room(std::size_t chosen);
  void flush_and_begin_again(std::size_t chosen);
  void end(std::size_t chosen, bool preempted);
  void finish(const MixSequence& sequence, bool served);
  [[nodiscard]] std::size_t serving() const;  // open sequences that serve a request

  const MixContext& context_;
  const std::uint32_t in_flight_;
  std::vector<MixSequencePtr> open_;
  std::deque<MixJob> jobs_;  // taken from the plan, hold nothing
  std::uint32_t last_taken_ = 0;
  std::vector<bool> done_;  // by operation
  CounterMemory counters_;
};

}  // namespace kvtrie::replay
