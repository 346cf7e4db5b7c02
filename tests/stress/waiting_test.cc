// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Waiting for pages between real processes: two that each need 60 % of the pool, several that take and release a few
// pages without ever having to wait, and a coordinator that makes its passes. The large requests are served, oldest
// first; the coordinator's death and a stopped waiter hold nobody up for good (shm/waiting.h).
//
// KVTRIE_WAITING_ROUNDS: rounds of each large process beside small ones; 25 when not set, some thousands for a long run.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <iostream>
#include <memory>
#include <new>
#include <vector>

#include "shm/futex.h"
#include "shm/waiting.h"
#include "tests/support/eventually.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::eventually;
using test::LocalCache;
using test::LocalCacheOptions;

constexpr std::uint32_t kPages = 64;
constexpr std::uint32_t kTokens = 4;
constexpr std::uint32_t kLarge = 39;  // 60 %
constexpr std::uint32_t kBatch = 3;   // requests of a batch, which share it
constexpr std::uint32_t kSmall = 10;
constexpr std::size_t kHeldBySmall = 3;  // sequences of a churning process at a time: two of them fill the pool
constexpr std::uint64_t kFilled = 2 * kHeldBySmall;
constexpr std::uint16_t kLargeProcesses = 2;
constexpr std::uint16_t kSmallProcesses = 2;
constexpr std::size_t kRoundsMax = 20'000;
constexpr std::int64_t kWaitNs = 10'000'000'000;
// A called waiter that the machine does not let run in 5 ms is passed by; more is out of order.
constexpr std::uint64_t kOrderSlackNs = 20'000'000;

struct Wait {
  std::uint64_t ticket;  // when it began
  std::uint64_t end;
  bool served;
};

// What the processes tell each other.
struct Board {
  std::atomic<bool> stop{false};
  std::atomic<bool> small_run{false};
  std::array<std::atomic<std::uint64_t>, 8> progress{};  // calls that ended well, by slot
  std::array<std::atomic<std::uint32_t>, kLargeProcesses> rounds{};
  std::array<std::array<Wait, kRoundsMax>, kLargeProcesses> waits;
};

std::size_t rounds_wanted() {
  const char* text = std::getenv("KVTRIE_WAITING_ROUNDS");
  const std::size_t rounds = text == nullptr ? 25 : std::strtoul(text, nullptr, 10);
  return std::clamp<std::size_t>(rounds, 1, kRoundsMax);
}

class WaitingTest : public ::testing::Test {
 protected:
  WaitingTest() {
    void* memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    board_ = new (memory) Board;
  }
  ~WaitingTest() override {
    board_->stop.store(true);
    for (const pid_t pid : children_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    ::munmap(board_, sizeof(Board));
  }

  // A process of its own with its own mapping.
  pid_t start(const std::function<void(const Segment&)>& work) {
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid != 0) {
      children_.push_back(pid);
      return pid;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    const std::unique_ptr<Segment> segment = cache_.map_again();
    work(*segment);
    ::_exit(0);
  }
  void end(pid_t pid, int signal_number) {
    ::kill(pid, signal_number);
    ::waitpid(pid, nullptr, 0);
    std::erase(children_, pid);
  }

  pid_t start_coordinator() {
    return start([this](const Segment& segment) {
      RoomKeeper keeper(segment, {.low_percent = 0, .high_percent = 0});
      WakeWord& bell = segment.superblock().doorbell;
      while (!board_->stop.load()) {
        const std::uint32_t seen = bell.word.load();
        (void)keeper.pass([] { return false; });
        const std::int64_t poll_ms = keeper.poll_after_ms();
        (void)wait_on(bell, seen, (poll_ms < 0 ? 50 : poll_ms) * 1'000'000);
      }
    });
  }

  // Takes and releases a few pages at a time; never waits.
  pid_t start_churn(std::uint16_t slot) {
    board_->small_run.store(true);
    return start([this, slot](const Segment& segment) {
      Worker worker(segment, WorkerId{slot});
      std::deque<Sequence> held;
      while (!board_->stop.load()) {
        Sequence sequence;
        if (take(worker, sequence, kSmall, 0)) {
          ++board_->progress[slot];
          held.push_back(std::move(sequence));
          if (held.size() < kHeldBySmall) continue;
        } else {
          worker.release(sequence);
          ::sched_yield();
        }
        if (held.empty()) continue;
        worker.release(held.front());
        held.pop_front();
      }
      for (Sequence& sequence : held) worker.release(sequence);
    });
  }

  // Waits for 60 % of the pool, `rounds` times, each time when the small ones have filled it again.
  pid_t start_large(std::uint16_t number, std::size_t rounds) {
    return start([this, number, rounds](const Segment& segment) {
      const auto slot = static_cast<std::uint16_t>(number + 1);
      Worker worker(segment, WorkerId{slot});
      for (std::size_t round = 0; round < rounds && !board_->stop.load(); ++round) {
        const std::uint64_t before = small_served();
        if (!eventually([&] { return !board_->small_run.load() || small_served() >= before + kFilled; })) ::_exit(1);
        Sequence sequence;
        const std::uint64_t called = monotonic_ns();
        const bool served = take(worker, sequence, kLarge, kWaitNs);
        const std::uint64_t end = monotonic_ns();
        const std::uint64_t ticket = segment.worker({slot}).wait_ticket.load();
        board_->waits[number][round] = {std::max(ticket, called), end, served};
        worker.release(sequence);
        board_->rounds[number].store(static_cast<std::uint32_t>(round + 1));
      }
    });
  }

  // Batches of 60 % of the pool, of prompts that nobody else has; each is published, so the next one needs evictions.
  pid_t start_batches(std::uint16_t number, std::uint32_t rounds) {
    return start([this, number, rounds](const Segment& segment) {
      Worker worker(segment, WorkerId{static_cast<std::uint16_t>(number + 1)});
      std::array<Sequence, kBatch> sequences;
      std::array<std::vector<std::uint32_t>, kBatch> tokens;
      for (std::uint32_t round = 0; round < rounds; ++round) {
        std::array<BatchItem, kBatch> items;
        for (std::uint32_t i = 0; i < kBatch; ++i) {
          tokens[i].assign(kLarge / kBatch * kTokens, (round * kLargeProcesses + number) * kBatch + i);
          items[i] = {LocalCache::name_space(), tokens[i], {}, tokens[i].size(), &sequences[i]};
        }
        if (!worker.prepare_batch(items, kWaitNs)) ::_exit(1);
        for (Sequence& sequence : sequences) {
          PublishReport report;
          if (!worker.publish(sequence, kLarge / kBatch * kTokens, report) || report.pages_private != 0) ::_exit(1);
          worker.release(sequence);
        }
        board_->rounds[number].store(round + 1);
      }
    });
  }

  static bool take(Worker& worker, Sequence& sequence, std::uint32_t pages, std::int64_t wait_ns) {
    BeginReport report;
    if (!worker.begin(LocalCache::name_space(), {}, {}, sequence, report)) ::_exit(1);
    return worker.allocate(sequence, std::uint64_t{pages} * kTokens, wait_ns).ok();
  }

  std::uint64_t small_served() const {
    std::uint64_t sum = 0;
    for (std::uint16_t i = 0; i < kSmallProcesses; ++i) sum += board_->progress[kLargeProcesses + 1 + i].load();
    return sum;
  }
  std::uint64_t progress(std::uint16_t slot) const { return board_->progress[slot].load(); }
  bool goes_on(std::uint16_t slot) const {
    const std::uint64_t before = progress(slot);
    return eventually([&] { return progress(slot) > before + 10; });
  }

  LocalCache cache_{LocalCacheOptions{.pages = kPages, .tokens_per_page = kTokens, .workers = 5}};
  Board* board_ = nullptr;
  std::vector<pid_t> children_;
};

TEST_F(WaitingTest, LargeRequestsAreServedInOrderBesideSmallOnesThatNeverWait) {
  const std::size_t rounds = rounds_wanted();
  (void)start_coordinator();
  for (std::uint16_t i = 0; i < kSmallProcesses; ++i)
    (void)start_churn(static_cast<std::uint16_t>(kLargeProcesses + 1 + i));
  EXPECT_TRUE(goes_on(kLargeProcesses + 1));
  for (std::uint16_t i = 0; i < kLargeProcesses; ++i) (void)start_large(i, rounds);
  const auto all_done = [&] {
    return std::ranges::all_of(board_->rounds, [&](const auto& done) { return done.load() == rounds; });
  };
  ASSERT_TRUE(eventually(all_done, std::chrono::seconds(60) + rounds * std::chrono::seconds(1)));

  std::size_t timed_out = 0, overtaken = 0;
  std::uint64_t longest = 0;
  std::vector<std::uint64_t> times;
  for (std::uint16_t i = 0; i < kLargeProcesses; ++i) {
    std::size_t other = 0;
    for (std::size_t round = 0; round < rounds; ++round) {
      const Wait& wait = board_->waits[i][round];
      timed_out += wait.served ? 0 : 1;
      times.push_back(wait.end - wait.ticket);
      longest = std::max(longest, times.back());
      // Somebody who began later and was served while this one waited.
      const auto& others = board_->waits[1 - i];
      while (other < rounds && others[other].end < wait.ticket) ++other;
      for (std::size_t k = other; k < rounds && others[k].end + kOrderSlackNs < wait.end; ++k) {
        overtaken += others[k].ticket > wait.ticket + kOrderSlackNs ? 1 : 0;
      }
    }
  }
  std::ranges::sort(times);
  std::cout << times.size() << " waits for " << kLarge << " of " << kPages << " pages: " << timed_out
            << " timed out, " << overtaken << " overtaken; us median " << times[times.size() / 2] / 1000
            << ", 99 % " << times[times.size() * 99 / 100] / 1000 << ", longest " << longest / 1000
            << "; small requests served " << small_served() << '\n';
  EXPECT_EQ(timed_out, 0U);
  EXPECT_EQ(overtaken, 0U);
  EXPECT_TRUE(goes_on(kLargeProcesses + 1)) << "nobody waits, and small requests get no pages";
}

TEST_F(WaitingTest, TwoBatchesThatNeedSixtyPercentEachBothAlwaysFinish) {
  constexpr std::uint32_t kRounds = 10'000;
  (void)start_coordinator();
  for (std::uint16_t i = 0; i < kLargeProcesses; ++i) (void)start_batches(i, kRounds);
  for (std::uint16_t i = 0; i < kLargeProcesses; ++i) {
    EXPECT_TRUE(eventually([&] { return board_->rounds[i].load() == kRounds; }, std::chrono::seconds(200)))
        << "process " << i << " ended or hangs after round " << board_->rounds[i].load();
  }
}

TEST_F(WaitingTest, WithoutACoordinatorTheReservationEnds) {
  const pid_t coordinator = start_coordinator();
  auto holder = cache_.worker(5);
  Sequence held;
  ASSERT_TRUE(take(*holder, held, 40, 0));  // for the whole test, so the large one is never served
  (void)start_large(0, 1);
  const std::uint16_t small = kLargeProcesses + 1;
  ASSERT_TRUE(eventually([&] { return cache_.segment().superblock().reserved_until.load() != 0; }));
  (void)start_churn(small);
  ::kill(coordinator, SIGSTOP);  // so that it is killed while the reservation stands
  end(coordinator, SIGKILL);
  EXPECT_NE(cache_.segment().superblock().reserved_until.load(), 0U);
  EXPECT_TRUE(goes_on(small)) << "24 pages are free";
  EXPECT_EQ(board_->rounds[0].load(), 0U) << "the large one still waits";
  // The next coordinator takes the order up again, and both are served.
  (void)start_coordinator();
  holder->release(held);
  EXPECT_TRUE(eventually([&] { return board_->rounds[0].load() == 1; }));
  EXPECT_TRUE(board_->waits[0][0].served);
  EXPECT_TRUE(goes_on(small));
}

TEST_F(WaitingTest, AStoppedWaiterHoldsUpNobody) {
  (void)start_coordinator();
  auto holder = cache_.worker(5);
  Sequence held;
  ASSERT_TRUE(take(*holder, held, kPages, 0));
  const pid_t stopped = start_large(0, 1);
  ASSERT_TRUE(eventually([&] { return cache_.segment().worker({1}).pages_wanted.load() == kLarge; }));
  ::kill(stopped, SIGSTOP);
  (void)start_large(1, 5);
  ASSERT_TRUE(eventually([&] { return cache_.segment().worker({2}).pages_wanted.load() == kLarge; }));
  holder->release(held);
  EXPECT_TRUE(eventually([&] { return board_->rounds[1].load() == 5; })) << "behind a stopped process";
  (void)start_churn(kLargeProcesses + 1);
  EXPECT_TRUE(goes_on(kLargeProcesses + 1)) << "beside a stopped process";
  ::kill(stopped, SIGCONT);
  EXPECT_TRUE(eventually([&] { return board_->rounds[0].load() == 1; })) << "it lost nothing";
  EXPECT_TRUE(board_->waits[0][0].served);
}

}  // namespace
}  // namespace kvtrie
