// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Threads for processes: three workers of two threads each begin, allocate, append, publish and release at random on
// a pool that is too small, one thread is the coordinator: it evicts, reaps workers that stop between two calls and
// never come back, and now and then starts anew as if it had died between two passes.
//
// The bytes of a page are ordinary memory and a function of the namespace and the path's tokens. They are compared at
// every hit, before every release and wherever a lease moved; so a page with two owners, evicted under a reader or
// shared between namespaces is a wrong page here, and under the thread sanitizer a data race as well.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "shm/recovery.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;

constexpr std::uint32_t kPages = 128;
constexpr std::uint32_t kTokens = 4;
constexpr std::uint32_t kPageWords = 8;
constexpr std::uint16_t kWorkers = 3;
constexpr int kThreadsPerWorker = 2;
constexpr std::size_t kInFlight = 3;
constexpr std::int64_t kWaitNs = 5'000'000;
constexpr auto kRunFor = std::chrono::seconds(5);

using Random = std::minstd_rand;

std::uint32_t below(Random& random, std::uint32_t bound) {
  return static_cast<std::uint32_t>(random() % bound);
}

// Page bytes; written and read without any synchronisation but the protocol's.
class PageBytes {
 public:
  void write(PageIndex page, std::uint64_t key) {
    for (std::uint32_t i = 0; i < kPageWords; ++i) words_[at(page, i)] = key + i;
  }
  bool hold(PageIndex page, std::uint64_t key) const {
    std::uint64_t different = 0;
    for (std::uint32_t i = 0; i < kPageWords; ++i) different |= words_[at(page, i)] ^ (key + i);
    return different == 0;
  }

 private:
  static std::size_t at(PageIndex page, std::uint32_t word) {
    return std::size_t{page.value} * kPageWords + word;
  }
  std::vector<std::uint64_t> words_ = std::vector<std::uint64_t>(std::size_t{kPages} * kPageWords);
};

struct Request {
  std::uint16_t name_space = 0;
  Sequence sequence;
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint64_t> keys;  // of each full page
  std::uint32_t written = 0;        // positions whose bytes are there

  void add_page(std::uint32_t name) {
    const std::uint64_t parent = keys.empty() ? name_space + 1 : keys.back();
    std::array<std::uint32_t, kTokens> page{};
    for (std::uint32_t i = 0; i < kTokens; ++i) page[i] = name * 100 + i;
    tokens.insert(tokens.end(), page.begin(), page.end());
    keys.push_back(hash_page(parent, page));
  }
};

enum class Life : int { kAlive, kStopping, kDead };

// One worker: its threads share the Worker, and stop together when it "dies".
struct Group {
  WorkerId slot;
  std::unique_ptr<Worker> worker;
  std::atomic<Life> life{Life::kAlive};
  std::atomic<int> stopped{0};
};

struct World {
  LocalCache cache{LocalCacheOptions{.pages = kPages,
                                     .tokens_per_page = kTokens,
                                     .workers = kWorkers,
                                     .leases = 16,
                                     .stripes = 4,
                                     .low_percent = 5,
                                     .high_percent = 15}};
  PageBytes bytes;
  std::array<Group, kWorkers> groups;
  std::atomic<bool> stop{false};
  std::atomic<int> running{kWorkers * kThreadsPerWorker};
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> broken{0};  // calls that answered what they must not
  std::atomic<std::uint64_t> deaths{0};
  std::atomic<std::uint64_t> adoptions{0};
};

class Engine {
 public:
  Engine(World& world, Group& group, unsigned seed)
      : world_(world), group_(group), random_(seed) {}

  void run() {
    for (;;) {
      if (group_.life.load() != Life::kAlive) {
        die();
      } else if (world_.stop.load()) {
        break;
      } else {
        step();
      }
      if (world_.stop.load() && group_.life.load() != Life::kAlive) break;
    }
    // The first worker leaves everything behind: its end is a death, too.
    if (group_.life.load() == Life::kAlive && group_.slot.value != 1) {
      while (!requests_.empty()) release(requests_.size() - 1);
    }
    world_.running.fetch_sub(1);
  }

 private:
  void die() {
    requests_.clear();
    if (group_.stopped.fetch_add(1) + 1 == kThreadsPerWorker) group_.life.store(Life::kDead);
    while (group_.life.load() != Life::kAlive && !world_.stop.load()) std::this_thread::yield();
  }

  void step() {
    const std::uint32_t what = below(random_, 16);
    if (requests_.size() < kInFlight && (requests_.empty() || what < 4)) return begin();
    const std::size_t which = below(random_, static_cast<std::uint32_t>(requests_.size()));
    Request& request = *requests_[which];
    if (what < 8) return allocate(request);
    if (what < 12) return publish(request);
    if (what < 14 && request.keys.size() < 12) return append(request);
    release(which);
  }

  void begin() {
    auto request = std::make_unique<Request>();
    request->name_space = static_cast<std::uint16_t>(below(random_, 2));
    const std::uint32_t depth = 1 + below(random_, 10);
    // Most paths share their beginnings; the further down, the more they differ.
    for (std::uint32_t i = 0; i < depth; ++i) {
      request->add_page(below(random_, 8) < i ? below(random_, 12) : below(random_, 2));
    }
    for (std::uint32_t i = below(random_, kTokens); i > 0; --i) request->tokens.push_back(i);
    BeginReport report;
    const Status status = group_.worker->begin(LocalCache::name_space(request->name_space),
                                               request->tokens, {}, request->sequence, report);
    if (!status) {
      if (status.code() != Code::kFull) ++world_.broken;
      return;
    }
    request->written = report.cached_pages;
    check(*request);
    requests_.push_back(std::move(request));
  }

  // Tokens that the engine generated: a page of them, after what was left of the prompt.
  void append(Request& request) {
    const std::size_t tail = request.tokens.size() % kTokens;
    if (tail != 0) return;  // such a request keeps its incomplete page
    const std::size_t before = request.tokens.size();
    request.add_page(below(random_, 3));
    group_.worker->append(request.sequence, std::span(request.tokens).subspan(before));
  }

  void allocate(Request& request) {
    const std::uint64_t tokens = request.tokens.size() + below(random_, 2 * kTokens);
    const Status status = group_.worker->allocate(request.sequence, tokens,
                                                  below(random_, 2) == 0 ? 0 : kWaitNs);
    if (!status) {
      if (status.code() != Code::kNotNow && status.code() != Code::kTimeout) ++world_.broken;
      return;
    }
    const std::uint32_t full = full_positions(request);
    for (; request.written < full; ++request.written) {
      world_.bytes.write(request.sequence.page_at(request.written), request.keys[request.written]);
    }
    // What lies beyond the known tokens is this sequence's alone as well.
    for (std::uint32_t i = full; i < request.sequence.positions(); ++i) {
      world_.bytes.write(request.sequence.page_at(i), ~std::uint64_t{0});
    }
  }

  void publish(Request& request) {
    const std::uint64_t tokens = std::uint64_t{1 + below(random_, 12)} * kTokens;
    PublishReport report;
    const std::uint64_t ready = std::min<std::uint64_t>(tokens, std::uint64_t{request.written} * kTokens);
    if (!group_.worker->publish(request.sequence, ready, report)) ++world_.broken;
    check(request);
  }

  void release(std::size_t which) {
    check(*requests_[which]);
    group_.worker->release(requests_[which]->sequence);
    requests_[which] = std::move(requests_.back());
    requests_.pop_back();
  }

  static std::uint32_t full_positions(const Request& request) {
    return std::min(request.sequence.positions(), static_cast<std::uint32_t>(request.keys.size()));
  }

  void check(const Request& request) {
    const Sequence& sequence = request.sequence;
    for (std::uint32_t i = 0; i < request.written; ++i) {
      if (!world_.bytes.hold(sequence.page_at(i), request.keys[i])) ++world_.wrong;
    }
    // Pages of others that this sequence was linked to are protected by its lease like those that it matched.
    for (std::uint32_t i = 0; i < std::min(sequence.published, request.written); ++i) {
      if (!world_.bytes.hold(sequence.node_at(i).page_index(), request.keys[i])) ++world_.wrong;
    }
  }

  World& world_;
  Group& group_;
  Random random_;
  std::vector<std::unique_ptr<Request>> requests_;
};

// The coordinator: one thread, as there.
void coordinate(World& world) {
  const Segment& segment = world.cache.segment();
  Random random(7);
  auto keeper = std::make_unique<RoomKeeper>(segment, Watermarks{5, 15});
  std::uint32_t tick = 1;
  const auto end = std::chrono::steady_clock::now() + kRunFor;
  while (world.running.load() > 0) {
    if (std::chrono::steady_clock::now() >= end || world.wrong.load() != 0) world.stop.store(true);
    for (Group& group : world.groups) {
      if (group.life.load() != Life::kDead) continue;
      (void)reap_worker(segment, group.slot);
      group.worker = world.cache.worker(group.slot.value);
      group.stopped.store(0);
      group.life.store(Life::kAlive);
      ++world.deaths;
    }
    (void)keeper->pass([&] { return below(random, 200) == 0; });
    if (below(random, 8) == 0) world.cache.set_tick(++tick);
    if (below(random, 32) == 0) (void)world.cache.evict(1 + below(random, 24));
    if (below(random, 256) == 0) {
      (void)adopt_pages(segment);
      keeper = std::make_unique<RoomKeeper>(segment, Watermarks{5, 15});
      ++world.adoptions;
    }
    if (below(random, 128) == 0 && !world.stop.load()) {
      Life alive = Life::kAlive;
      world.groups[below(random, kWorkers)].life.compare_exchange_strong(alive, Life::kStopping);
    }
    std::this_thread::yield();
  }
}

StateWord word_of(const Segment& segment, PageIndex page) {
  return {segment.descriptor(page).state.load()};
}

// Every page is Free or Live, nothing is held or leased, and what is Live hangs together (C1, C2, I1, F2).
void expect_whole(const Segment& segment) {
  const StripeIndex index(segment);
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const StateWord word = word_of(segment, {i});
    ASSERT_TRUE(word.well_formed()) << i;
    const Descriptor& descriptor = segment.descriptor({i});
    const bool bit = (segment.free_bits(i / kChunkPages).load() >> i % kChunkPages & 1) != 0;
    const unsigned entries = index.occurrences(descriptor.prefix_hash.load(), {i});
    if (word.state() == PageState::kFree) {
      EXPECT_TRUE(bit) << "page " << i << " is Free and cannot be found";
      EXPECT_EQ(entries, 0U) << "page " << i << " is Free and in the index";
      continue;
    }
    ASSERT_EQ(word.state(), PageState::kLive) << "page " << i << " is " << name_of(word.state());
    EXPECT_EQ(entries, 1U) << "page " << i;
    const Handle parent{descriptor.parent.load()};
    if (!parent.is_page()) continue;
    const StateWord above = word_of(segment, parent.page_index());
    EXPECT_TRUE(above.state() == PageState::kLive && parent.same_life(above))
        << "page " << i << " has no parent any more";
  }
  for (std::uint16_t slot = 1; slot < segment.slot_count(); ++slot) {
    for (std::uint32_t chunk = 0; chunk < segment.chunk_count(); ++chunk) {
      EXPECT_EQ(segment.held_count({slot}, chunk).load(), 0U) << "worker " << slot;
    }
    for (const LeaseSlot& lease : segment.leases({slot})) EXPECT_EQ(lease.handle.load(), 0U);
  }
}

TEST(ThreadsTest, NoPageIsWrongOrLostWhileWorkersDieAndPagesAreEvicted) {
  World world;
  std::vector<std::thread> threads;
  for (std::uint16_t i = 0; i < kWorkers; ++i) {
    Group& group = world.groups[i];
    group.slot = {static_cast<std::uint16_t>(i + 1)};
    group.worker = world.cache.worker(group.slot.value);
  }
  for (unsigned i = 0; i < kWorkers * kThreadsPerWorker; ++i) {
    threads.emplace_back([&world, i] { Engine(world, world.groups[i % kWorkers], i + 1).run(); });
  }
  threads.emplace_back([&world] { coordinate(world); });
  for (std::thread& thread : threads) thread.join();

  const Segment& segment = world.cache.segment();
  for (const Group& group : world.groups) {
    if (group.life.load() != Life::kAlive || group.slot.value == 1) {
      (void)reap_worker(segment, group.slot);
    }
  }
  EXPECT_EQ(world.wrong.load(), 0U) << "pages with bytes of another path";
  EXPECT_EQ(world.broken.load(), 0U) << "calls that failed without a reason";
  expect_whole(segment);
  // All of it must have happened, or nothing was shown.
  EXPECT_GT(segment.total(Counter::kPagesHit), 0U);
  EXPECT_GT(segment.total(Counter::kEvictions), 0U);
  EXPECT_GT(segment.total(Counter::kDuplicates), 0U);
  EXPECT_GT(world.deaths.load(), 0U);
  EXPECT_GT(world.adoptions.load(), 0U);
  RecordProperty("lookups", static_cast<int>(segment.total(Counter::kLookups)));

  EXPECT_EQ(world.cache.evict(kPages), kPages - FreePages(segment).count());
  EXPECT_EQ(world.cache.count_state(PageState::kFree), kPages);
  EXPECT_EQ(FreePages(segment).count(), kPages);
}

}  // namespace
}  // namespace kvtrie
