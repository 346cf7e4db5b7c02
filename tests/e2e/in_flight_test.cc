// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The owner of announced pages is killed while three processes wait for them: how soon each of them wakes, that one
// takes over, and that the others wait for that one.
//
// Each wait is measured from just before the SIGKILL to the return of kvtrie_wait_pending, so it has the end of the
// process in it, the coordinator's work and the waiter's being scheduled. The median must be below 10 ms (C5). A
// single wait may be longer where the host runs something else on all its cores, so of the longest only a sign of
// life is asked; both are printed. On a machine of two cores that was idle: median 0.1 ms, longest 0.4 ms.
//   KVTRIE_WAKE_ROUNDS   deaths (25)

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <iostream>
#include <vector>

#include "shm/segment.h"
#include "tests/support/kvtried_process.h"
#include "worker_plugin/kvtrie_policy.hpp"

namespace kvtrie::test {
namespace {

using namespace kvtrie::client;

constexpr std::uint32_t kTokens = 1024;  // of a prompt: 64 pages
constexpr std::uint32_t kPromptPages = 64;
constexpr std::uint32_t kWaiters = 3;
constexpr std::uint32_t kRoundsMax = 1000;

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::vector<std::uint32_t> prompt_of(std::uint32_t round) {
  std::vector<std::uint32_t> tokens(kTokens);
  for (std::uint32_t i = 0; i < kTokens; ++i)
    tokens[i] = round * kTokens + i;
  return tokens;
}

struct Board {
  std::atomic<std::uint32_t> round{0};                                       // 1 and up: under way
  std::atomic<std::uint32_t> announced{0};                                   // by the owner, for that round
  std::array<std::atomic<std::uint32_t>, kWaiters> waits{}, woke{}, done{};  // the round
  std::array<std::array<std::int64_t, kRoundsMax + 1>, kWaiters> woke_ns{};
  std::array<std::array<std::uint32_t, kRoundsMax + 1>, kWaiters> computed{};  // pages
  std::atomic<std::uint32_t> wrong{0};
};

class OwnerDeathTest : public testing::Test {
 protected:
  OwnerDeathTest() {
    void* const memory = ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board_ = new (memory) Board;
  }
  ~OwnerDeathTest() override {
    for (const pid_t pid : children_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    ::munmap(board_, sizeof(Board));
  }

  template <typename Life>
  pid_t start(Life life) {
    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid != 0) {
      children_.push_back(pid);
      return pid;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    try {
      const Library library = Library::linked();
      AttachOptions options;
      options.cache = cache_.name().c_str();
      options.directory = cache_.directory().c_str();
      const Worker worker(library, options);
      const kvtrie_field field{"model", "in-flight"};
      life(worker, worker.open_namespace({&field, 1}));
      ::_exit(0);
    } catch (const std::exception& error) {
      std::cerr << error.what() << '\n';
      ::_exit(1);
    }
  }
  void end(pid_t pid) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    std::erase(children_, pid);
  }

  // Announces a prompt, and does nothing any more.
  void own(const Worker& worker, kvtrie_namespace name_space, std::uint32_t round) {
    Begun begun = worker.begin(name_space, prompt_of(round));
    if (!begun.sequence.allocate(kTokens)) ::_exit(1);
    board_->announced.store(round);
    for (;;)
      ::pause();
  }

  // As an engine: waits, looks again when another one was first, computes what is left.
  std::uint32_t take_over(const Worker& worker, kvtrie_namespace name_space, Sequence sequence, std::uint32_t round) {
    for (;;) {
      while (!sequence.allocate(kTokens))
        ::sched_yield();
      if (!announced_by_another(sequence, kTokens, 16)) break;
      Begun again = worker.begin(name_space, prompt_of(round));
      sequence = std::move(again.sequence);
      if (!sequence.wait_pending(20'000).outcome) return kPromptPages;
    }
    std::vector<kvtrie_own_page> own(kPromptPages);
    own.resize(sequence.own_pages(own));
    for (const kvtrie_own_page& page : own) {
      for (std::byte& byte : worker.page(page.page, 0))
        byte = std::byte(round);
    }
    if (!sequence.publish(kTokens).outcome) return kPromptPages;
    for (const std::uint32_t page : sequence.pages())
      board_->wrong += worker.page(page, 0)[5] != std::byte(round);
    return static_cast<std::uint32_t>(own.size());
  }

  void wait_on_rounds(const Worker& worker, kvtrie_namespace name_space, std::uint32_t number, std::uint32_t rounds) {
    for (std::uint32_t round = 1; round <= rounds; ++round) {
      if (!eventually([&] { return board_->announced.load() >= round; })) ::_exit(1);
      Begun begun = worker.begin(name_space, prompt_of(round));
      if (begun.result.pending_pages != kPromptPages) ::_exit(1);
      board_->waits[number].store(round);
      const Waited waited = begun.sequence.wait_pending(20'000);
      board_->woke_ns[number][round] = now_ns();
      if (!waited.outcome || waited.result.pending_pages != 0) ::_exit(1);
      board_->woke[number].store(round);
      if (!eventually([&] { return all(board_->woke, round); })) ::_exit(1);  // each has seen the death
      board_->computed[number][round] = take_over(worker, name_space, std::move(begun.sequence), round);
      board_->done[number].store(round);
    }
  }

  static bool all(const std::array<std::atomic<std::uint32_t>, kWaiters>& words, std::uint32_t round) {
    return std::ranges::all_of(words, [&](const auto& word) { return word.load() >= round; });
  }

  TemporaryCache cache_{"in-flight"};
  Board* board_ = nullptr;
  std::vector<pid_t> children_;
};

TEST_F(OwnerDeathTest, WakesAllWithinTenMillisecondsAndOneTakesOver) {
  const char* text = std::getenv("KVTRIE_WAKE_ROUNDS");
  const auto rounds =
      static_cast<std::uint32_t>(std::clamp(text == nullptr ? 25L : std::atol(text), 1L, long{kRoundsMax}));
  KvtriedProcess daemon(cache_, {"--pages", "1024", "--page-bytes", "256", "--metrics", "off", "--workers", "8"});
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
  ASSERT_TRUE(segment);
  for (std::uint32_t number = 0; number < kWaiters; ++number) {
    start([&, number](const Worker& worker, kvtrie_namespace ns) { wait_on_rounds(worker, ns, number, rounds); });
  }
  std::vector<std::int64_t> wakes;
  for (std::uint32_t round = 1; round <= rounds; ++round) {
    const std::uint64_t slept = segment->total(Counter::kPendingWaits);
    const pid_t owner = start([&, round](const Worker& worker, kvtrie_namespace ns) { own(worker, ns, round); });
    ASSERT_TRUE(eventually(
        [&] { return all(board_->waits, round) && segment->total(Counter::kPendingWaits) >= slept + kWaiters; }));
    const std::int64_t killed = now_ns();
    end(owner);
    ASSERT_TRUE(eventually([&] { return all(board_->done, round); })) << "round " << round;
    std::uint32_t took_over = 0;
    for (std::uint32_t number = 0; number < kWaiters; ++number) {
      wakes.push_back(board_->woke_ns[number][round] - killed);
      if (board_->computed[number][round] > 0) ++took_over;
    }
    EXPECT_EQ(took_over, 1U) << "round " << round;
  }
  EXPECT_EQ(board_->wrong.load(), 0U);
  std::ranges::sort(wakes);
  const std::int64_t median = wakes[wakes.size() / 2] / 1000;
  std::cout << wakes.size() << " waiters woken by " << rounds << " deaths: us median " << median << ", 95 % "
            << wakes[wakes.size() * 95 / 100] / 1000 << ", longest " << wakes.back() / 1000 << '\n';
  EXPECT_LT(median, 10'000);
  EXPECT_LT(wakes.back() / 1000, 1'000'000);
}

}  // namespace
}  // namespace kvtrie::test
