// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Caches in the states that lookups meet, and the prompts that are cached in them.
//
//   fresh     filled once, so each prompt is one run of neighbouring pages
//   aged      requests of a trace (or generated ones) replayed under eviction until so many pages were evicted as the
//             cache has ten times over; prompts are paths that are cached then
//   shuffled  each page of a prompt somewhere else: no two neighbours
//
// Fresh and shuffled caches hold prompts of all lengths, each length about a quarter of the pages, at least one prompt.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/bench/sections.h"
#include "tools/replay/observer.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {

inline constexpr std::array<std::uint32_t, 4> kPromptPages{16, 256, 2048, 8192};
// Of the prompts of one length that are looked up: a timing takes some milliseconds.
inline constexpr std::uint64_t kPagesABlock = 1U << 17;

enum class Age : std::uint8_t { kFresh, kAged, kShuffled };
const char* name_of(Age age);

struct Prompt {
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint32_t> pages;  // where they are cached
};

struct CacheState {
  std::uint64_t pages = 1U << 20;
  Age age = Age::kFresh;
  double low_percent = 0;  // watermarks: with 0 and 0 nothing is evicted
  double high_percent = 0;
  double turnovers = 10;  // aged
  std::uint64_t page_bytes = 8;
  bool page_checksums = false;
  std::uint32_t leases = 1024;  // a worker may hold
};

// One worker of the calling process.
class BenchWorker {
 public:
  // `model`: field of its namespace, so of prompts that others cached with the same.
  BenchWorker(const Settings& settings, const replay::OwnCache& cache, const char* model = "kvtrie-bench");
  const replay::Plugin& plugin() const { return plugin_; }
  kvtrie_worker worker() const { return attachment_.worker(); }
  kvtrie_namespace name_space() const { return name_space_; }

  // Pages hit.
  std::uint32_t begin_and_release(std::span<const std::uint32_t> tokens, std::uint32_t flags = 0) const;
  kvtrie_sequence begin(std::span<const std::uint32_t> tokens, std::uint32_t& cached, std::uint32_t flags = 0) const;
  void release(kvtrie_sequence sequence) const { plugin_.expect(plugin_->release(sequence), "release"); }
  // Takes all pages of a prompt.
  using Allocate = std::function<void(kvtrie_sequence, std::uint32_t pages)>;
  // Allocates, publishes and releases all of it, and notes the pages.
  void cache(Prompt& prompt, const Allocate& allocate) const;
  void cache(Prompt& prompt) const;
  // Whatever nobody holds.
  void evict_all() const;

 private:
  const replay::Plugin plugin_;
  const replay::Attachment attachment_;
  kvtrie_namespace name_space_;
};

// The segment of a cache, as its coordinator has it.
Segment open_writable(const std::string& cache);

// The cache's, as long as this lives: nothing is evicted.
class StoppedCoordinator {
 public:
  explicit StoppedCoordinator(const replay::OwnCache& cache) : cache_(cache) { cache_.stop(); }
  StoppedCoordinator(const StoppedCoordinator&) = delete;
  StoppedCoordinator& operator=(const StoppedCoordinator&) = delete;
  ~StoppedCoordinator() { cache_.go_on(); }

 private:
  const replay::OwnCache& cache_;
};

class BenchCache {
 public:
  BenchCache(const Settings& settings, const CacheState& state);
  // The same segment in another state: aged goes on with what is cached, the others evict all of it first.
  void become(const Settings& settings, Age age);
  const replay::OwnCache& own() const { return cache_; }
  const Segment& segment() const { return observer_->segment(); }
  const CacheState& state() const { return state_; }
  // Of the namespace that prompts() are cached in.
  const char* model() const;
  // Cached prompts of so many pages, from all over the cache: at most `most` of them and kPagesABlock pages; fewer, or
  // none, when the cache has no more.
  std::vector<Prompt> prompts(std::uint32_t pages, std::size_t most = kPagesABlock) const;
  // Aged: requests have left prompts of so many pages; else, some were cached afterwards.
  bool of_the_trace(std::uint32_t pages) const;
  // Pages evicted in this state, by the cache's pages.
  double turnovers() const;
  // While it was aged: how often the pool had turned over, and mean_run() then.
  const std::vector<std::pair<double, double>>& runs_while_aged() const { return runs_while_aged_; }
  // Of neighbouring pages that one path goes through, over all cached pages.
  double mean_run() const;

 private:
  void fill(const Settings& settings);
  void fill(const BenchWorker& worker);
  void age(const Settings& settings);
  static void drop_torn(const BenchWorker& worker, std::vector<Prompt>& prompts);
  void cache_more(const BenchWorker& worker, std::uint32_t length, std::vector<Prompt>& prompts) const;

  CacheState state_;
  replay::Signals signals_;
  replay::OwnCache cache_;
  std::optional<replay::Observer> observer_;
  std::array<std::vector<Prompt>, kPromptPages.size()> filled_;  // by length; of many every so manieth
  double turnovers_before_ = 0;  // of the pool, in earlier states
  std::vector<std::pair<double, double>> runs_while_aged_;
};

}  // namespace kvtrie::bench
