// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// N requests at once against a real kvtried, through the plugin as it is shipped (loaded with dlopen): as threads of
// one process that is attached once, or as processes that load and attach each for themselves.
//
//   class AllocationTest : public ConcurrencyTest { ... };
//   TEST_P(AllocationTest, ...) {
//     serve({"--pages", "256"});
//     run_together([](Requester& me) { me.meet(); ... me.complain("..."); });
//     expect_at_rest();
//   }
//   INSTANTIATE_TEST_SUITE_P(, AllocationTest, all_settings(), setting_name);
//
// A request must not use gtest's macros: in another process nobody would hear of it. It complains instead, and what it
// throws is a complaint, too. All waits are bounded; a process of a request that hangs kills itself.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "shm/segment.h"
#include "shm/verify.h"
#include "tests/concurrency/support/prompts.h"
#include "tests/support/eventually.h"
#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

enum class Apart { kThreads, kProcesses };
struct Setting {
  std::uint32_t requests = 1;
  Apart apart = Apart::kThreads;
};
void PrintTo(const Setting& setting, std::ostream* out);

inline auto all_settings() {
  std::vector<Setting> settings;
  for (const std::uint32_t requests : {1U, 2U, 4U, 8U, 32U}) {
    settings.push_back({requests, Apart::kThreads});
    settings.push_back({requests, Apart::kProcesses});
  }
  return testing::ValuesIn(settings);
}
std::string setting_name(const testing::TestParamInfo<Setting>& info);  // "Threads8"

inline constexpr std::uint32_t kBoardPages = 4096;  // pages of a cache, at most
inline constexpr std::chrono::seconds kRoundsFor{2};
inline constexpr unsigned kLifeSeconds = 60;         // of a request's process

// What the requests of a run and the test have in common, in memory that all of them map.
struct Board {
  static constexpr std::size_t kTextsMax = 8;
  std::atomic<std::uint32_t> arrived{0};
  std::atomic<std::uint32_t> opened{0};  // how many times the gate was
  std::atomic<std::uint32_t> ended{0};
  std::atomic<std::uint32_t> complaints{0};
  std::array<std::array<char, 200>, kTextsMax> texts{};         // of the first complaints
  std::array<std::atomic<std::uint32_t>, 8> seen{};             // by the test's own numbering
  std::array<std::atomic<std::uint32_t>, kBoardPages> holder{};  // who may write the page, counted from 1; 0: nobody
};

// One of the requests that run at once.
class Requester {
 public:
  Requester(std::uint32_t number, std::uint32_t count, const client::Worker& worker, kvtrie_namespace space,
            Board& board);

  const std::uint32_t number;  // from 0
  const std::uint32_t count;
  const client::Worker& worker;
  const kvtrie_namespace space;
  Board& board;

  std::uint32_t below(std::uint32_t bound) { return static_cast<std::uint32_t>(random_() % bound); }
  template <typename Items>
  void shuffle(Items& items) {
    std::shuffle(items.begin(), items.end(), random_);
  }

  // Returns when all requests are here: what follows begins at once. Throws when they do not come.
  void meet();
  // Whether there is another round to do. A loaded machine, or a sanitizer, does fewer of them than `rounds`.
  bool goes_on(std::uint32_t round, std::uint32_t rounds) const {
    return round < rounds && board.complaints.load() == 0 && std::chrono::steady_clock::now() < end_;
  }
  // Between two steps: all requests are under way at a time, also on few cores.
  void let_others() {
    if (count > 1 && below(4) == 0) ::sched_yield();
  }
  void complain(std::string_view what);
  void expect(bool holds, std::string_view what) {
    if (!holds) complain(what);
  }
  void saw(std::size_t what, std::uint32_t times = 1) { board.seen[what].fetch_add(times); }

  // This request may write `page` from now on, and nobody else; and no more.
  void hold(std::uint32_t page);
  void drop(std::uint32_t page);

 private:
  std::minstd_rand random_;
  const std::chrono::steady_clock::time_point end_ = std::chrono::steady_clock::now() + kRoundsFor;
};

// How long to wait for what must come.
std::uint32_t patience_ms();
// Of pages.
client::AllocateOptions patience(std::uint32_t wait_ms = patience_ms());
template <typename Condition>
bool comes(Condition condition) {
  return eventually(condition, std::chrono::milliseconds(patience_ms()));
}

class ConcurrencyTest : public testing::TestWithParam<Setting> {
 protected:
  using Body = std::function<void(Requester&)>;

  ConcurrencyTest();
  ~ConcurrencyTest() override;

  // Starts kvtried; `more` follows the sizes above.
  void serve(std::vector<std::string> more);
  // Runs `body` as each of the requests, and `meanwhile` in this thread as long as one of them runs. Afterwards all are
  // detached, and what they complained about are failures of the test.
  void run_together(const Body& body, const std::function<void()>& meanwhile = {});

  // A worker of the test's own.
  client::Worker attach() const { return attach(plugin(), "the test"); }
  kvtrie_namespace open_space(const client::Worker& worker) const;
  const Segment& segment() const { return *segment_; }
  std::uint64_t pages_in(PageState state) const { return verify(segment()).pages[static_cast<std::size_t>(state)]; }
  std::uint32_t seen(std::size_t what) const { return board_->seen[what].load(); }

  // What no process may leave at any instant.
  void expect_whole() const;
  // Nobody holds anything, nothing is lost: all pages are free or cached, all bookkeeping is exact.
  void expect_at_rest() const;
  // And all of them can be had again.
  void expect_all_pages_can_be_freed() const;

 private:
  const client::Library& plugin() const;
  client::Worker attach(const client::Library& library, const char* name) const;
  void be(std::uint32_t number, const client::Worker& worker, const Body& body) const;
  void run_threads(const Body& body, const std::function<void()>& meanwhile);
  void run_processes(const Body& body, const std::function<void()>& meanwhile);

  TemporaryCache cache_{"concurrency"};
  Board* board_ = nullptr;
  std::unique_ptr<KvtriedProcess> daemon_;
  mutable std::unique_ptr<client::Library> plugin_;  // in this process
  std::unique_ptr<Segment> segment_;
};

}  // namespace kvtrie::test
