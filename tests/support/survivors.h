// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Processes that go on while another is stopped or dies: each begins, allocates, publishes and releases without end,
// looks at the bytes of all that it hits, and notes how long its calls take. What they note is in memory that the test
// shares.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/shm/test_support.h"
#include "tests/support/eventually.h"
#include "tests/support/plugin_worker.h"

namespace kvtrie::test {

// How long calls took: counts by powers of two of a microsecond, and the longest.
struct CallTimes {
  static constexpr std::size_t kBins = 24;
  std::array<std::atomic<std::uint32_t>, kBins> bins;
  std::atomic<std::uint64_t> longest_us;

  void note(std::uint64_t us) {
    bins[std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(us)), kBins - 1)].fetch_add(1);
    if (us > longest_us.load()) longest_us.store(us);  // one process writes
  }
  void clear() {
    for (auto& bin : bins) bin.store(0);
    longest_us.store(0);
  }
};

// Summed over processes.
struct TimesSum {
  std::array<std::uint64_t, CallTimes::kBins> bins{};
  std::uint64_t longest_us = 0;

  void add(const CallTimes& times) {
    for (std::size_t i = 0; i < bins.size(); ++i) bins[i] += times.bins[i].load();
    longest_us = std::max(longest_us, times.longest_us.load());
  }
  // Upper end of the bin in which that share of the calls ends.
  std::uint64_t percentile_us(unsigned percent) const {
    std::uint64_t all = 0;
    for (const std::uint64_t bin : bins) all += bin;
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < bins.size(); ++i) {
      seen += bins[i];
      if (seen * 100 >= all * percent) return std::uint64_t{1} << i;
    }
    return longest_us;
  }
};

enum class Timed : std::uint8_t { kBegin, kAllocate, kPublish, kRelease };
inline constexpr std::array<const char*, 4> kTimedNames{"begin", "allocate", "publish", "release"};

struct SurvivorNotes {
  std::array<CallTimes, 4> times;
  std::atomic<std::uint64_t> rounds;
  std::atomic<std::uint64_t> allocated;  // rounds that got their pages
  std::atomic<std::uint64_t> hits;
  std::atomic<std::uint64_t> evicted;
  std::atomic<std::uint32_t> evicts;  // asked to press by asking the coordinator for evictions
  std::atomic<std::uint32_t> ends;    // asked to
  std::array<char, 256> failure;
};

class Survivors {
 public:
  static constexpr std::uint32_t kPromptsFirst = 1000;  // numbers of their prompts; those of others are lower

  // Together they use `prompts` prompts of 2 to 5 pages.
  Survivors(const TemporaryCache& cache, std::size_t count, std::uint32_t prompts) {
    bytes_ = sizeof(SurvivorNotes) * count;
    void* const memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw Wrong("mmap");
    notes_ = static_cast<SurvivorNotes*>(memory);
    for (std::size_t i = 0; i < count; ++i) start(cache, prompts);
  }
  Survivors(const Survivors&) = delete;
  Survivors& operator=(const Survivors&) = delete;
  ~Survivors() {
    processes_.clear();
    ::munmap(notes_, bytes_);
  }

  SurvivorNotes& notes(std::size_t i) { return notes_[i]; }
  std::size_t size() const { return processes_.size(); }
  std::uint64_t evicted() const { return notes_[0].evicted.load(); }
  // The first asks for evictions, again and again, as long as it is told.
  void press(bool on) { notes_[0].evicts.store(on ? 1 : 0); }
  void clear_times() {
    for (std::size_t i = 0; i < size(); ++i) {
      for (CallTimes& times : notes_[i].times) times.clear();
    }
  }
  // Each of those that live does `rounds` more rounds in which it got its pages, and `least` goes by.
  bool go_on(std::uint64_t rounds, std::chrono::milliseconds least) {
    const auto end = std::chrono::steady_clock::now() + least;
    std::vector<std::uint64_t> before;
    for (std::size_t i = 0; i < size(); ++i) before.push_back(notes_[i].allocated.load());
    for (std::size_t i = 0; i < size(); ++i) {
      if (!processes_[i]) continue;
      const auto more = [&] { return notes_[i].allocated.load() >= before[i] + rounds || failed(); };
      for (int waited = 0; !more(); ++waited) {
        if (waited > 20'000) {
          ADD_FAILURE() << "survivor " << i << " does not go on";
          return false;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
    std::this_thread::sleep_until(end);
    return !failed();
  }
  // Nobody waited: DESIGN.md lets a call wait 1 ms for a stripe whose holder lives, once. What is above that here is
  // the machine's, which other tests use; the last bound is far below what a wait for the stopped one would be.
  void expect_nobody_waited(const std::string& where, std::chrono::milliseconds longest) {
    for (std::size_t call = 0; call < kTimedNames.size(); ++call) {
      TimesSum sum;
      for (std::size_t i = 0; i < size(); ++i) sum.add(notes_[i].times[call]);
      EXPECT_LE(sum.percentile_us(50), 2'048U) << where << ": median of " << kTimedNames[call];
      EXPECT_LE(sum.percentile_us(95), 65'536U) << where << ": p95 of " << kTimedNames[call];
      EXPECT_LE(sum.longest_us, static_cast<std::uint64_t>(longest.count()) * 1000)
          << where << ": longest " << kTimedNames[call];
    }
  }
  // The processes end as they should, and released what they had.
  void end() {
    for (std::size_t i = 0; i < size(); ++i) notes_[i].ends.store(1);
    for (std::size_t i = 0; i < size(); ++i) {
      if (!processes_[i]) continue;
      EXPECT_EQ(processes_[i]->wait(), 0) << "survivor " << i;
    }
    EXPECT_FALSE(failed());
  }
  void kill(std::size_t i) { processes_[i].reset(); }

 private:
  bool failed() const {
    bool any = false;
    for (std::size_t i = 0; i < size(); ++i) {
      if (notes_[i].failure[0] == 0) continue;
      ADD_FAILURE() << "survivor " << i << ": " << notes_[i].failure.data();
      any = true;
    }
    return any;
  }
  void start(const TemporaryCache& cache, std::uint32_t prompts) {
    SurvivorNotes& notes = notes_[size()];
    const auto seed = static_cast<unsigned>(size());
    processes_.push_back(std::make_unique<Child>([&cache, &notes, prompts, seed](Line) {
      try {
        const PluginWorker worker(cache, "survivor");
        std::mt19937 random(seed);  // NOLINT: the same requests each time
        while (notes.ends.load() == 0) {
          const auto number = static_cast<std::uint32_t>(random());
          round(worker, notes, number % prompts, 2 + number / prompts % 4);
        }
        worker.detach();
        return 0;
      } catch (const std::exception& wrong) {
        std::strncpy(notes.failure.data(), wrong.what(), notes.failure.size() - 1);
        return 1;
      }
    }));
  }
  template <typename Call>
  static auto timed(SurvivorNotes& notes, Timed which, Call call) {
    const auto start = std::chrono::steady_clock::now();
    const auto result = call();
    const auto took = std::chrono::steady_clock::now() - start;
    notes.times[static_cast<std::size_t>(which)].note(
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(took).count()));
    return result;
  }
  static void round(const PluginWorker& worker, SurvivorNotes& notes, std::uint32_t number, std::uint32_t pages) {
    const Prompt tokens = PluginWorker::prompt(kPromptsFirst + number, pages);
    kvtrie_sequence sequence{};
    kvtrie_begin_result hit{};
    hit.size = sizeof hit;
    PluginWorker::must(timed(notes, Timed::kBegin,
                             [&] {
                               return kvtrie_begin(worker.worker, worker.space, tokens.data(), tokens.size(), nullptr,
                                                   &hit, &sequence);
                             }),
                       "begin");
    worker.check_bytes(sequence, tokens, hit.cached_pages);
    notes.hits.fetch_add(hit.cached_pages);
    const kvtrie_code got =
        timed(notes, Timed::kAllocate, [&] { return worker.allocate(sequence, tokens.size(), 0); });
    if (got != KVTRIE_E_NOT_NOW) PluginWorker::must(got, "allocate");
    if (got == KVTRIE_OK) {
      worker.compute(sequence, tokens);
      PluginWorker::must(
          timed(notes, Timed::kPublish, [&] { return kvtrie_publish(sequence, tokens.size(), nullptr); }), "publish");
      notes.allocated.fetch_add(1);
    }
    PluginWorker::must(timed(notes, Timed::kRelease, [&] { return kvtrie_release(sequence); }), "release");
    if (notes.rounds.fetch_add(1) % 16 == 0 && notes.evicts.load() != 0) {
      std::uint64_t evicted = 0;
      const kvtrie_code code = kvtrie_evict(worker.worker, worker.space, 8, &evicted);
      // Its coordinator may be between two lives.
      if (code != KVTRIE_E_NO_COORDINATOR && code != KVTRIE_E_TIMEOUT) PluginWorker::must(code, "evict");
      notes.evicted.fetch_add(evicted);
    }
  }

  std::size_t bytes_ = 0;
  SurvivorNotes* notes_ = nullptr;
  std::vector<std::unique_ptr<Child>> processes_;
};

}  // namespace kvtrie::test
