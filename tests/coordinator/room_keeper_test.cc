// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for pages, seen from the coordinator's pass: who asks is heard whatever else happens in the same pass, and
// a waiter that does not come back keeps nobody from pages (C5).

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "shm/futex.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;
using test::path;

constexpr std::int64_t kWaitNs = 10'000'000'000;
constexpr auto kPatience = std::chrono::seconds(2);  // much less than kWaitNs, much more than a pass

class RoomKeeperTest : public ::testing::Test {
 protected:
  Sequence holding(Worker& worker, std::uint32_t pages) {
    Sequence sequence;
    BeginReport report;
    EXPECT_TRUE(worker.begin(LocalCache::name_space(), {}, {}, sequence, report));
    EXPECT_TRUE(worker.allocate(sequence, pages * std::uint64_t{4}, 0));
    return sequence;
  }
  // `count` Live pages that may be evicted, named from `first` on.
  void cache_pages(Worker& worker, std::uint32_t first, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      Sequence sequence;
      BeginReport report;
      PublishReport published;
      const std::vector<std::uint32_t> tokens = path(4, {first + i});
      ASSERT_TRUE(worker.begin(LocalCache::name_space(), tokens, {}, sequence, report));
      ASSERT_TRUE(worker.allocate(sequence, tokens.size(), 0));
      ASSERT_TRUE(worker.publish(sequence, tokens.size(), published));
      worker.release(sequence);
    }
  }
  // A request for `pages` in a thread of its own; `served_` when it has them.
  std::thread waiter(Worker& worker, std::uint32_t pages) {
    return std::thread([this, &worker, pages] {
      Sequence sequence;
      BeginReport report;
      EXPECT_TRUE(worker.begin(LocalCache::name_space(), {}, {}, sequence, report));
      status_ = worker.allocate(sequence, pages * std::uint64_t{4}, kWaitNs);
      served_ = true;
      worker.release(sequence);
    });
  }
  bool eventually(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    return condition();
  }
  WorkerRecord& record(std::uint16_t slot) const { return cache_.segment().worker({slot}); }
  void pass() { (void)cache_.keeper().pass([] { return false; }); }
  // Ends a wait that the test has given up.
  void end_wait(std::thread& thread) {
    cache_.segment().poison(PoisonReason::kOperator);
    while (!served_) {
      record(2).wait_word.fetch_add(1);
      futex_wake_all(record(2).wait_word);
      std::this_thread::yield();
    }
    thread.join();
  }

  LocalCache cache_{LocalCacheOptions{}};
  std::atomic<bool> served_{false};
  Status status_;
};

TEST_F(RoomKeeperTest, AWaitThatBeginsWhileAnEarlierAskIsLookedAfterIsHeard) {
  auto holder = cache_.worker(1);
  auto asker = cache_.worker(2);
  Sequence held = holding(*holder, 60);
  Sequence asked;
  BeginReport report;
  ASSERT_TRUE(asker->begin(LocalCache::name_space(), {}, {}, asked, report));
  ASSERT_EQ(asker->allocate(asked, 32, 0).code(), Code::kNotNow);  // 8 pages of 4, does not wait
  asker->release(asked);

  // While the coordinator looks after that, another thread of the worker begins to wait for as many.
  std::thread thread;
  (void)cache_.keeper().pass([&] {
    if (thread.joinable()) return false;
    const std::uint32_t bell = cache_.segment().superblock().doorbell.word.load();
    thread = waiter(*asker, 8);
    EXPECT_TRUE(eventually([&] {
      return record(2).wait_ticket.load() != 0 && cache_.segment().superblock().doorbell.word.load() != bell;
    }));
    return false;
  });
  ASSERT_TRUE(thread.joinable());
  holder->release(held);
  EXPECT_TRUE(eventually([&] {
    pass();
    return served_.load();
  })) << "64 pages are free and the waiter sleeps";
  end_wait(thread);
}

TEST_F(RoomKeeperTest, AStoppedWaiterKeepsNobodyFromPages) {
  auto holder = cache_.worker(1);
  auto asker = cache_.worker(2);
  Sequence held = holding(*holder, 32);
  cache_pages(*holder, 1, 24);  // 8 are free, 24 may be evicted
  // Worker 3 asked first, and was stopped before it could take what it is woken for.
  record(3).wait_ticket.store(1);
  record(3).pages_wanted.store(8);
  std::thread thread = waiter(*asker, 12);
  EXPECT_TRUE(eventually([&] {
    pass();
    return served_.load();
  })) << "24 pages could be evicted, and the second waiter waits for a stopped process";
  end_wait(thread);
  holder->release(held);
}

}  // namespace
}  // namespace kvtrie
