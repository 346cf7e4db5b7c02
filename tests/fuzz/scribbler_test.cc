// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker that writes over all that it has in the segment (its slot, its row of leases) and over the descriptors of
// free pages, as long as it lives, beside a real kvtried that evicts and two workers that go on. Then it is killed.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <vector>

#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/segment.h"
#include "shm/worker_table.h"
#include "tests/support/attached_worker.h"
#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"
#include "worker_plugin/kvtrie.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie::fuzz {
namespace {

using test::Child;
using test::eventually;
using test::KvtriedProcess;
using test::Line;
using test::TemporaryCache;
using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kPages = 256;
constexpr std::uint32_t kPageTokens = 16;
constexpr std::uint32_t kPageBytes = 1024;
constexpr auto kScribbles = std::chrono::milliseconds(1200);
constexpr std::uint32_t kStatesWrittenOver = 32;  // of free pages; each is lost to everybody then

// Exit statuses of the processes.
enum : int { kWrong = 40, kStopped = 41, kNotAttached = 42 };

CoordinatorAddress address_of(const TemporaryCache& cache) { return {cache.directory(), cache.name()}; }

// A function of all tokens up to the end of the page.
std::uint64_t word_of(const std::vector<std::uint32_t>& tokens, std::uint32_t position) {
  return hash_bytes(1, tokens.data(), std::size_t{position + 1} * kPageTokens * sizeof tokens[0]);
}

// One request: what is matched has the right bytes; the rest is written and published. False: something is wrong.
bool one_request(kvtrie_worker worker, kvtrie_namespace name_space, std::mt19937_64& random, std::uint64_t& done) {
  std::vector<std::uint32_t> tokens;
  for (std::uint32_t depth = 0; depth < 4 + random() % 8; ++depth) {  // more paths than the pool has room for
    const auto number = static_cast<std::uint32_t>(random() % (depth < 3 ? 2 : 12));
    for (std::uint32_t i = 0; i < kPageTokens; ++i)
      tokens.push_back(number * 100 + i);
  }
  kvtrie_begin_result hit{};
  hit.size = sizeof hit;
  kvtrie_sequence sequence{};
  if (kvtrie_begin(worker, name_space, tokens.data(), tokens.size(), nullptr, &hit, &sequence) != KVTRIE_OK)
    return false;
  const auto page_count = static_cast<std::uint32_t>(tokens.size() / kPageTokens);
  std::vector<std::uint64_t> bytes(kPageBytes / 8);
  bool right = true;
  for (std::uint32_t p = 0; p < hit.cached_pages; ++p) {
    right = right &&
            kvtrie_copy_out(sequence, std::uint64_t{p} * kPageTokens, kPageTokens, 0, nullptr, bytes.data()) ==
                KVTRIE_OK &&
            std::ranges::all_of(bytes, [&](std::uint64_t word) { return word == word_of(tokens, p); });
  }
  kvtrie_allocate_options options{};
  options.size = sizeof options;
  options.wait_ms = 200;
  const kvtrie_code allocated = kvtrie_allocate(sequence, tokens.size(), &options);
  if (allocated == KVTRIE_OK) {
    for (std::uint32_t p = hit.cached_pages; p < page_count; ++p) {
      std::ranges::fill(bytes, word_of(tokens, p));
      (void)kvtrie_copy_in(sequence, std::uint64_t{p} * kPageTokens, kPageTokens, 0, nullptr, bytes.data());
    }
    right = right && kvtrie_publish(sequence, tokens.size(), nullptr) == KVTRIE_OK;
    ++done;
  } else {
    right = right && (allocated == KVTRIE_E_TIMEOUT || allocated == KVTRIE_E_NOT_NOW);
  }
  (void)kvtrie_release(sequence);
  return right;
}

// Goes on until it hears something. Exit status 0: all was right, and it was never stopped.
int work(const TemporaryCache& cache, const Line& line, std::uint64_t seed) {
  test::AttachedWorker attached(address_of(cache));
  if (!attached.attached()) return kNotAttached;
  const kvtrie_namespace name_space = attached.open("m");
  std::mt19937_64 random(seed);
  line.say();
  std::uint64_t done = 0;
  const auto start = Clock::now();
  while (Clock::now() - start < kScribbles) {
    if (!one_request(attached.worker(), name_space, random, done)) return kWrong;
  }
  return done > 100 ? 0 : kStopped;
}

class Scribbler {
 public:
  Scribbler(const Segment& segment, WorkerId slot, bool over_its_word)
      : segment_(segment), slot_(slot), word_(over_its_word) {}

  [[noreturn]] void run(const Line& line) {
    for (std::uint64_t round = 0;; ++round) {
      own_slots();
      free_pages();
      if (round == 100) line.say();  // has begun
    }
  }

 private:
  void own_slots() {
    WorkerRecord& record = segment_.worker(slot_);
    auto* const words = reinterpret_cast<AtomicU64*>(&record);
    constexpr std::size_t kIdentityWords = 2;  // the slot's word, and when its process started
    for (std::size_t i = word_ ? 0 : kIdentityWords; i < sizeof record / 8; ++i)
      words[i].store(random_());
    for (LeaseSlot& lease : segment_.leases(slot_)) {
      const PageIndex page{static_cast<std::uint32_t>(random_() % kPages)};
      lease.handle.store(random_() % 2 == 0 ? random_() : Handle::page(page, PageTable(segment_).state(page)).raw);
      lease.since_tick.store(static_cast<std::uint32_t>(random_()));
    }
  }

  void free_pages() {
    for (std::uint32_t i = 0; i < kPages; ++i) {
      const PageIndex page{i};
      Descriptor& descriptor = segment_.descriptor(page);
      StateWord word = PageTable(segment_).state(page);
      if (word.state() != PageState::kFree || word.generation() > 1'000'000) continue;
      auto* const words = reinterpret_cast<AtomicU64*>(&descriptor);
      // Not one that somebody takes in between: that one is not free.
      for (std::size_t w = 1; w < segment_.layout().descriptor_stride / 8; ++w) {
        if (PageTable(segment_).state(page) == word) words[w].store(random_());
      }
      if (states_ == kStatesWrittenOver || random_() % 16 != 0) continue;
      if (descriptor.state.compare_exchange_strong(word.raw, random_())) ++states_;
    }
  }

  const Segment& segment_;
  const WorkerId slot_;
  const bool word_;
  std::mt19937_64 random_{1};
  std::uint32_t states_ = 0;
};

int scribble(const TemporaryCache& cache, const Line& line, bool over_its_word) {
  test::AttachedWorker attached(address_of(cache));
  if (!attached.attached()) return kNotAttached;
  std::uint64_t id = 0;
  if (kvtrie_worker_id(attached.worker(), &id) != KVTRIE_OK) return kNotAttached;
  const Result<Segment> segment = open_segment(cache.name(), Access::kReadWrite);
  if (!segment) return kNotAttached;
  Scribbler(*segment, WorkerTag{id}.grant().slot, over_its_word).run(line);
}

class ScribblerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(daemon_.ready()) << daemon_.err();
    Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
    ASSERT_TRUE(segment);
    segment_.emplace(std::move(*segment));
  }

  // Two workers beside a scribbler: nobody stops, crashes or sees a wrong page.
  void work_beside(Child& scribbler) {
    ASSERT_EQ(scribbler.line().hear(), '+');
    Child one([&](const Line& line) { return work(cache_, line, 1); });
    Child two([&](const Line& line) { return work(cache_, line, 2); });
    EXPECT_EQ(one.wait(), 0);
    EXPECT_EQ(two.wait(), 0);
    EXPECT_TRUE(scribbler.alive());
    EXPECT_GT(segment_->total(Counter::kEvictions), 100U);
    scribbler.kill();
  }

  TemporaryCache cache_{"scribbler"};
  KvtriedProcess daemon_{cache_,
                         {"--pages", std::to_string(kPages), "--page-bytes", std::to_string(kPageBytes), "--workers",
                          "4", "--leases", "16", "--metrics", "off", "--stripes", "4"}};
  std::optional<Segment> segment_;
};

TEST_F(ScribblerTest, StopsNobodyAndGoesWithItsDeath) {
  Child scribbler([&](const Line& line) { return scribble(cache_, line, false); });
  work_beside(scribbler);
  const WorkerTable table(*segment_);
  EXPECT_TRUE(eventually([&] {
    return std::ranges::all_of(std::vector<std::uint16_t>{1, 2, 3, 4},
                               [&](std::uint16_t slot) { return table.word({slot}).state() == SlotState::kFree; });
  }));
  EXPECT_FALSE(segment_->poisoned());
  for (std::uint16_t slot = 1; slot <= 4; ++slot) {
    for (const LeaseSlot& lease : segment_->leases({slot}))
      EXPECT_EQ(lease.handle.load(), 0U) << slot;
  }
  // Who comes next works as if nothing had been.
  Child next([&](const Line& line) { return work(cache_, line, 3); });
  EXPECT_EQ(next.wait(), 0);
}

// Then nobody can tell any more who has the slot: it is said, and there is a successor.
TEST_F(ScribblerTest, OverItsSlotsWordIsReportedWhenItDies) {
  Child scribbler([&](const Line& line) { return scribble(cache_, line, true); });
  work_beside(scribbler);
  EXPECT_TRUE(daemon_.logs("event=corrupt worker="));
  EXPECT_TRUE(daemon_.logs("event=successor")) << daemon_.err();
  EXPECT_TRUE(segment_->poisoned());
  EXPECT_TRUE(eventually([&] {
    Child next([&](const Line& line) { return work(cache_, line, 3); });
    return next.wait() == 0;
  }));
}

}  // namespace
}  // namespace kvtrie::fuzz
