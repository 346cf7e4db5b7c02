// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for pages: who asks is heard whatever else happens in the same pass; the oldest is served first, also before
// those who would not have to wait; and nobody holds others up for good (C5, C6, C7; shm/waiting.h).

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "shm/futex.h"
#include "shm/waiting.h"
#include "tests/support/local_cache.h"
#include "tests/support/party.h"

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
  bool eventually(const std::function<bool()>& condition,
                  std::chrono::steady_clock::duration patience = kPatience) {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    return condition();
  }
  WorkerRecord& record(std::uint16_t slot) const { return cache_.segment().worker({slot}); }
  void pass() { (void)cache_.keeper().pass([] { return false; }); }
  // Somebody who waits and lives, as far as others can see.
  void waits(std::uint16_t slot, std::uint32_t pages) {
    record(slot).wait_ticket.store(1);
    record(slot).pages_wanted.store(pages);
    comes_round(slot);
  }
  void comes_round(std::uint16_t slot) { record(slot).wait_seen.store(monotonic_ns()); }
  // Pages for a request that has none yet, without waiting.
  bool newcomer_takes(Worker& worker, std::uint32_t pages) {
    Sequence sequence;
    BeginReport report;
    EXPECT_TRUE(worker.begin(LocalCache::name_space(), {}, {}, sequence, report));
    const Status status = worker.allocate(sequence, pages * std::uint64_t{4}, 0);
    worker.release(sequence);
    return status.ok();
  }
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
  waits(3, 8);
  std::thread thread = waiter(*asker, 12);
  EXPECT_TRUE(eventually([&] {
    pass();
    return served_.load();
  })) << "24 pages could be evicted, and the second waiter waits for a stopped process";
  end_wait(thread);
  holder->release(held);
}

TEST_F(RoomKeeperTest, AStoppedWaiterThatWasNotCalledKeepsNobodyFromPages) {
  auto holder = cache_.worker(1);
  auto asker = cache_.worker(2);
  Sequence held = holding(*holder, 44);
  waits(3, 40);  // 20 are free
  std::thread thread = waiter(*asker, 12);
  EXPECT_TRUE(eventually([&] {
    pass();
    return served_.load();
  })) << "20 pages are free, and the second waiter waits for a stopped process";
  EXPECT_TRUE(eventually([&] { return newcomer_takes(*asker, 12); }));
  end_wait(thread);
  holder->release(held);
}

TEST_F(RoomKeeperTest, OneThatComesNewLeavesTheFreePagesToAWaiter) {
  auto holder = cache_.worker(1);
  auto newcomer = cache_.worker(2);
  Sequence held = holding(*holder, 44);
  waits(3, 18);
  pass();
  comes_round(3);
  EXPECT_FALSE(newcomer_takes(*newcomer, 4)) << "20 are free, 18 of them for who waits";
  EXPECT_TRUE(newcomer_takes(*newcomer, 2)) << "nobody waits for these two";
  record(3).pages_wanted.store(0);
  EXPECT_TRUE(newcomer_takes(*newcomer, 4)) << "nobody waits any more";
  holder->release(held);
}

TEST_F(RoomKeeperTest, WhoHasPagesGoesOnBesideAWaiter) {
  auto holder = cache_.worker(1);
  auto newcomer = cache_.worker(2);
  Sequence held = holding(*holder, 44);
  waits(3, 40);
  pass();
  comes_round(3);
  EXPECT_FALSE(newcomer_takes(*newcomer, 1));
  EXPECT_TRUE(holder->allocate(held, 45 * 4, 0)) << "the waiter waits for its 44 pages";
  holder->release(held);
}

TEST_F(RoomKeeperTest, TheOldestOfThreeIsServedFirst) {
  auto holder = cache_.worker(1);
  Sequence held = holding(*holder, 64);
  std::mutex mutex;
  std::vector<std::uint32_t> served;
  std::vector<std::thread> threads;
  std::vector<std::unique_ptr<Worker>> workers;
  std::uint16_t slot = 2;
  for (const std::uint32_t pages : {40U, 30U, 10U}) {
    workers.push_back(cache_.worker(slot));
    threads.emplace_back([&, pages, worker = workers.back().get()] {
      Sequence sequence;
      BeginReport report;
      EXPECT_TRUE(worker->begin(LocalCache::name_space(), {}, {}, sequence, report));
      EXPECT_TRUE(worker->allocate(sequence, pages * std::uint64_t{4}, kWaitNs)) << pages;
      {
        const std::scoped_lock lock(mutex);
        served.push_back(pages);
      }
      worker->release(sequence);
    });
    EXPECT_TRUE(eventually([&] { return record(slot).pages_wanted.load() == pages; }));
    ++slot;
  }
  pass();
  holder->release(held);
  EXPECT_TRUE(eventually([&] {
    pass();
    const std::scoped_lock lock(mutex);
    return served.size() == 3;
  }, std::chrono::seconds(20)));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(served.front(), 40U) << "64 pages came free at once";
}

#ifdef KVTRIE_DEV
TEST_F(RoomKeeperTest, WhoGivesUpWaitingRingsForThoseBehindIt) {
  auto holder = cache_.worker(1);
  auto asker = cache_.worker(2);
  Sequence held = holding(*holder, 64);
  Sequence sequence;
  BeginReport report;
  ASSERT_TRUE(asker->begin(LocalCache::name_space(), {}, {}, sequence, report));
  test::Party party([&] {
    EXPECT_EQ(asker->allocate(sequence, 4, 20'000'000).code(), Code::kTimeout);
  });
  ASSERT_TRUE(party.run_to("wait.after_end"));
  const std::uint32_t bell = cache_.segment().superblock().doorbell.word.load();
  party.finish();
  EXPECT_EQ(cache_.segment().superblock().doorbell.word.load(), bell + 1);
  asker->release(sequence);
  holder->release(held);
}
#endif

TEST_F(RoomKeeperTest, AReservationEndsWithoutACoordinator) {
  auto holder = cache_.worker(1);
  auto newcomer = cache_.worker(2);
  Sequence held = holding(*holder, 44);
  waits(3, 40);
  pass();  // the last one
  comes_round(3);
  EXPECT_FALSE(newcomer_takes(*newcomer, 4));
  EXPECT_TRUE(eventually([&] {
    comes_round(3);
    return newcomer_takes(*newcomer, 4);
  })) << "20 pages are free, and nobody will ever serve the waiter";
  holder->release(held);
}

TEST_F(RoomKeeperTest, AReservationThatLeadsNowhereIsLifted) {
  auto holder = cache_.worker(1);
  auto newcomer = cache_.worker(2);
  Sequence held = holding(*holder, 44);  // for ever: it waits for something that the newcomer has
  waits(3, 40);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_TRUE(eventually([&] {
    comes_round(3);
    pass();
    return newcomer_takes(*newcomer, 4);
  }, std::chrono::seconds(20)));
  EXPECT_GT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_TRUE(eventually([&] {
    comes_round(3);
    pass();
    return !newcomer_takes(*newcomer, 4);
  })) << "it is taken up again";
  holder->release(held);
}

TEST_F(RoomKeeperTest, ImpossibleWishesAndTimesBindNobody) {
  auto newcomer = cache_.worker(2);
  Superblock& block = cache_.segment().superblock();
  waits(3, 65);  // more than the pool
  block.reserved_until.store(monotonic_ns() + kReservedForNs);
  EXPECT_TRUE(newcomer_takes(*newcomer, 64));
  waits(3, 64);
  block.reserved_until.store(~std::uint64_t{0});
  EXPECT_TRUE(newcomer_takes(*newcomer, 64)) << "until the end of time";
  block.reserved_until.store(monotonic_ns() + 3600'000'000'000);
  EXPECT_TRUE(newcomer_takes(*newcomer, 64)) << "for an hour";
  block.reserved_until.store(monotonic_ns() + kReservedForNs);
  record(3).wait_seen.store(~std::uint64_t{0});
  EXPECT_TRUE(newcomer_takes(*newcomer, 64)) << "seen in the future";
}

}  // namespace
}  // namespace kvtrie
