// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One request on its way through the cache, a stage at a time, so that a worker can have several
// open at once:
//
//   begin      match; compare the bytes of all hit pages
//   allocate   pages for the rest of prompt and answer; no room: everything is given back, to retry
//   compute    write own pages and publish those of the prompt, in one portion or several
//   check      compare hit and own pages once more: nobody else may have written them
//   release
//
// The bytes: a page of the prompt holds what content.h derives from the path to it. Pages of the
// answer are never shared, so theirs depend on who writes them too: a page that two requests hold
// at once shows even if both have the same tokens.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "tools/replay/content.h"
#include "tools/replay/observer.h"
#include "tools/replay/plugin.h"
#include "tools/replay/shared_plan.h"

namespace kvtrie::replay {

// What all requests of a worker have in common.
struct RunContext {
  const Plugin& plugin;
  kvtrie_worker worker;
  kvtrie_geometry geometry;
  std::vector<kvtrie_namespace> namespaces;
  SharedPlan& plan;
  WorkerTally& tally;
  const Observer* observer;  // sequential replays only: where to see that the evictor rests
  std::uint64_t owner_salt;  // differs between worker processes
  bool drives_clock;
};

enum class Progress : std::uint8_t { kGoesOn, kNoRoom, kFinished };

class RequestRun {
 public:
  RequestRun(RunContext& context, std::uint32_t index);

  // The next stage. `alone`: this worker has no other request open, so a pause before the next try costs none of
  // them anything. kNoRoom: it holds nothing and begins again at its next step.
  // Throws PluginError.
  Progress step(bool alone);

  [[nodiscard]] std::uint32_t index() const { return index_; }

 private:
  enum class Stage : std::uint8_t { kBegin, kAllocate, kCompute, kCheck, kRelease };

  void begin();
  Progress allocate(bool alone);
  void compute();
  void check();
  void release();
  Progress finish(bool served);

  void derive_digests();
  void settle() const;
  void look_up_pages();
  bool back_off();
  void check_holds_no_more_than_hits() const;
  void fill(std::uint32_t first, std::uint32_t end);
  void publish(std::uint64_t tokens);
  void compare(std::uint32_t first, std::uint32_t end, const char* when);
  void report_wrong(std::uint32_t position, std::uint32_t plane, std::size_t word,
                    const char* when);
  [[nodiscard]] bool chosen(std::uint32_t position) const;
  [[nodiscard]] std::uint64_t* words_of(std::uint32_t position, std::uint32_t plane) const;
  void count_hit_runs() const;

  RunContext& context_;
  const std::uint32_t index_;
  const Request request_;
  const std::uint32_t name_space_;
  std::uint32_t total_pages_ = 0;
  std::uint32_t prompt_pages_ = 0;  // full ones: those that are looked up and published
  std::vector<std::uint32_t> tokens_;
  std::vector<PathDigest> digests_;  // by position
  std::vector<std::uint32_t> pages_;
  kvtrie_sequence sequence_{};
  std::uint32_t hits_ = 0;
  std::uint32_t written_ = 0;  // positions whose bytes are there
  std::uint32_t portions_ = 1;
  std::uint32_t retries_ = 0;  // while it was alone
  std::chrono::steady_clock::time_point no_room_since_;
  Stage stage_ = Stage::kBegin;
};

}  // namespace kvtrie::replay
