// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Many threads on one attachment: every answer is one that kvtrie.h names, nothing is lost, and no
// handle is believed after its end, however calls race.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <mutex>
#include <random>
#include <thread>

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

constexpr unsigned kThreads = 8;

TestCacheOptions large() {
  TestCacheOptions options;
  options.pages = 512;
  options.leases = 64;
  return options;
}

class CApiThreadsTest : public CApiTest {
 protected:
  CApiThreadsTest() : CApiTest(large()) {}

  static void in_threads(auto body) {
    std::vector<std::jthread> threads;
    for (unsigned t = 0; t < kThreads; ++t)
      threads.emplace_back([t, &body] { body(t); });
  }
};

TEST_F(CApiThreadsTest, RandomCallsLoseNoPageAndNoLease) {
  std::atomic<std::uint64_t> begun_count{0};
  std::atomic<std::uint64_t> wrong{0};
  in_threads([&](unsigned t) {
    std::mt19937 random(t);
    std::vector<kvtrie_sequence> open;
    std::vector<std::uint32_t> pages(16);
    for (int i = 0; i < 3000; ++i) {
      const std::uint32_t what = random() % 8;
      if (open.empty() || (what == 0 && open.size() < 6)) {
        std::vector<std::uint32_t> names;
        for (std::uint32_t depth = 0; depth <= random() % 6; ++depth)
          names.push_back(random() % 4);
        const Begun begun = begin(worker_, space_, path(names));
        if (begun.code != KVTRIE_OK) {
          ++wrong;
          continue;
        }
        ++begun_count;
        open.push_back(begun.sequence);
        continue;
      }
      const std::size_t which = random() % open.size();
      const kvtrie_sequence sequence = open[which];
      std::uint32_t count = 0;
      kvtrie_code code = KVTRIE_OK;
      switch (what) {
        case 1:
        case 2:
          code = kvtrie_allocate(sequence, random() % 40, nullptr);
          break;
        case 3:
        case 4:
          code = kvtrie_publish(sequence, random() % 40, nullptr);
          break;
        case 5: {
          const Tokens more = path({static_cast<std::uint32_t>(random() % 4)});
          code = kvtrie_append(sequence, more.data(), more.size());
          break;
        }
        case 6:
          code = kvtrie_page_count(sequence, &count);
          if (code == KVTRIE_OK) {
            code = kvtrie_get_pages(sequence, 0, std::min(count, 16U), pages.data());
          }
          for (std::uint32_t p = 0; code == KVTRIE_OK && p < std::min(count, 16U); ++p) {
            void* address = nullptr;
            code = kvtrie_page_address(worker_, pages[p], p % 2, &address);
          }
          break;
        default:
          code = kvtrie_release(sequence);
          open.erase(open.begin() + static_cast<std::ptrdiff_t>(which));
      }
      if (code != KVTRIE_OK && code != KVTRIE_E_NOT_NOW) ++wrong;
    }
    for (const kvtrie_sequence sequence : open)
      wrong += kvtrie_release(sequence) == KVTRIE_OK ? 0U : 1U;
  });
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(cache_.leases(), 0U);
  EXPECT_EQ(cache_.count(PageState::kFree) + cache_.count(PageState::kLive), 512U);
  auto counters = sized<kvtrie_counters>();
  ASSERT_EQ(kvtrie_get_counters(worker_, &counters), KVTRIE_OK);
  EXPECT_EQ(counters.lookups, begun_count.load());
  EXPECT_EQ(counters.releases, begun_count.load());
}

TEST_F(CApiThreadsTest, OneOfManyReleasesOfASequenceWins) {
  std::barrier round(kThreads);
  std::atomic<std::uint64_t> shared{0};
  std::atomic<unsigned> released{0};
  std::atomic<unsigned> other{0};
  constexpr unsigned kRounds = 300;
  in_threads([&](unsigned t) {
    for (unsigned i = 0; i < kRounds; ++i) {
      if (t == 0) shared = cache(worker_, space_, path({i % 5, 1})).id;
      round.arrive_and_wait();
      // Some look, some release, all at once.
      const kvtrie_sequence sequence{shared.load()};
      kvtrie_code code = KVTRIE_E_BUSY;
      while (code == KVTRIE_E_BUSY) {
        std::uint32_t count = 0;
        if (t % 2 == 1) (void)kvtrie_page_count(sequence, &count);
        code = kvtrie_release(sequence);
      }
      if (code == KVTRIE_OK) {
        ++released;
      } else if (code != KVTRIE_E_STALE) {
        ++other;
      }
      round.arrive_and_wait();
    }
  });
  EXPECT_EQ(released.load(), kRounds);
  EXPECT_EQ(other.load(), 0U);
  EXPECT_EQ(cache_.leases(), 0U);
}

// Threads use worker, namespace and sequence handles while others detach and attach.
TEST_F(CApiThreadsTest, CallsRaceWithDetachAndAttach) {
  struct Handles {
    kvtrie_worker worker{0};
    kvtrie_namespace space{0};
  };
  std::mutex mutex;
  Handles current{worker_, space_};
  std::atomic<bool> stop{false};
  std::atomic<bool> rest{false};
  std::atomic<unsigned> wrong{0};
  std::atomic<std::uint64_t> good{0}, stale{0};
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < 3; ++t) {  // detach needs a moment with none of them inside
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      while (!stop.load()) {
        Handles use;
        {
          const std::lock_guard<std::mutex> lock(mutex);
          use = current;
        }
        rest.wait(true);  // the handles are old then
        std::vector<kvtrie_code> codes;
        void* address = nullptr;
        codes.push_back(kvtrie_page_address(use.worker, random() % 512, 0, &address));
        const Begun begun = begin(use.worker, use.space, path({t, t}));
        codes.push_back(begun.code);
        if (begun.code == KVTRIE_OK) {
          codes.push_back(kvtrie_allocate(begun.sequence, 8, nullptr));
          codes.push_back(kvtrie_publish(begun.sequence, 8, nullptr));
          if (random() % 2 == 0) codes.push_back(kvtrie_release(begun.sequence));
        }
        for (const kvtrie_code code : codes) {
          good += code == KVTRIE_OK ? 1U : 0U;
          stale += code == KVTRIE_E_STALE ? 1U : 0U;
          const bool expected = code == KVTRIE_OK || code == KVTRIE_E_STALE ||
                                code == KVTRIE_E_NOT_NOW || code == KVTRIE_E_FULL;
          if (!expected) ++wrong;
        }
      }
    });
  }
  unsigned detached = 0;
  unsigned busy = 0;
  while (detached < 20 || good.load() < 500 || stale.load() < 10) {
    const kvtrie_code code = kvtrie_detach(current.worker);
    if (code == KVTRIE_E_BUSY) {
      // They are nearly always inside: give way, as an engine that detaches would.
      if (++busy % 3 == 0) rest = true;
      std::this_thread::yield();
      continue;
    }
    rest = false;
    rest.notify_all();
    ASSERT_EQ(code, KVTRIE_OK) << kvtrie_last_error();
    ++detached;
    EXPECT_EQ(cache_.reap_leavers(), 1U);
    Handles next;
    next.worker = cache_.attach();
    next.space = cache_.open(next.worker, {{"model", "a"}});
    const std::lock_guard<std::mutex> lock(mutex);
    current = next;
  }
  stop = true;
  threads.clear();
  worker_ = current.worker;
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(kvtrie_detach(worker_), KVTRIE_OK);
  cache_.reap_leavers();
  EXPECT_EQ(cache_.leases(), 0U);
  EXPECT_EQ(cache_.count(PageState::kFree) + cache_.count(PageState::kLive), 512U);
}

TEST_F(CApiThreadsTest, OneOfManyDetachesWins) {
  for (int i = 0; i < 50; ++i) {
    std::atomic<unsigned> won{0}, other{0};
    in_threads([&](unsigned) {
      kvtrie_code code = KVTRIE_E_BUSY;
      while (code == KVTRIE_E_BUSY)
        code = kvtrie_detach(worker_);
      won += code == KVTRIE_OK ? 1U : 0U;
      other += code != KVTRIE_OK && code != KVTRIE_E_STALE ? 1U : 0U;
    });
    EXPECT_EQ(won.load(), 1U);
    EXPECT_EQ(other.load(), 0U);
    EXPECT_EQ(cache_.reap_leavers(), 1U);
    worker_ = cache_.attach();
  }
}

}  // namespace
}  // namespace kvtrie::test
