// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// On a segment where workers announce, publish, lease, abort and an evictor runs, `verify` finds
// nothing while they run and nothing when they are done.

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "shm/lease.h"
#include "shm/recovery.h"
#include "shm/verify.h"
#include "tests/shm/cache_fixture.h"

namespace kvtrie {
namespace {

using test::CacheFixture;
using Clock = std::chrono::steady_clock;

class VerifyLiveTest : public CacheFixture {
 protected:
  // One request: lease a page (or none: the root), announce a child below it, publish it or give it
  // up.
  void work_once(WorkerId me, std::mt19937_64& random, std::uint32_t& cursor) {
    LeaseSlot& slot = segment_->leases(me)[1];
    std::optional<PageIndex> parent;
    const PageIndex wish{static_cast<std::uint32_t>(random() % geometry_.pages)};
    const StateWord seen = word(wish);
    const bool full = segment_->descriptor(wish).token_count.load() == geometry_.tokens_per_page;
    if (seen.readable() && full) {
      if (acquire_lease(*segment_, slot, Handle::page(wish, seen)) != LeaseOutcome::kLost)
        parent = wish;
    }
    std::vector<PageIndex> pages;
    if (FreePages(*segment_).take(me, 1, PageIndex{~0U}, cursor, pages) == 1) {
      std::array<std::uint32_t, 5> tokens{};
      for (std::uint32_t& token : tokens)
        token = static_cast<std::uint32_t>(random() % 2);
      const AnnounceResult result =
          announce_page(*segment_, StripeIndex(*segment_), me, pages[0], node_below(me, parent, tokens), tokens);
      const bool announced = result.outcome == AnnounceOutcome::kAnnounced;
      if (announced && random() % 4 != 0) {
        slot.handle.store(Handle::page(pages[0], word(pages[0])).raw);  // rule 6
        publish(me, pages[0]);
      } else {
        if (announced) index_->remove(segment_->descriptor(pages[0]).prefix_hash.load(), pages[0]);
        FreePages(*segment_).give_back(me, pages);
      }
    }
    drop_lease(slot);
  }

  bool leased(Handle page) const {
    for (std::uint16_t w = 0; w < segment_->slot_count(); ++w) {
      for (const LeaseSlot& slot : segment_->leases(WorkerId{w})) {
        if (slot.handle.load(std::memory_order_seq_cst) == page.raw) return true;
      }
    }
    return false;
  }
  bool has_child(Handle page) const {
    for (std::uint32_t i = 0; i < geometry_.pages; ++i) {
      const StateWord child = word({i});
      if (child.canonical() && segment_->descriptor({i}).parent.load() == page.raw) return true;
    }
    return false;
  }

  // Rules 10 to 12, for one page.
  void evict_once(PageIndex page) const {
    const PageTable table(*segment_);
    const std::uint32_t counter = segment_->announce_counter(page).load();
    const Handle handle = Handle::page(page, word(page));
    if (word(page).state() != PageState::kLive || has_child(handle)) return;
    if (!table.move(handle, PageState::kLive, PageState::kCondemned)) return;
    if (leased(handle) || segment_->announce_counter(page).load() != counter || has_child(handle)) {
      table.move(handle, PageState::kCondemned, PageState::kLive);
      return;
    }
    if (!table.move(handle, PageState::kCondemned, PageState::kRetiring)) return;
    finish_page(*segment_, page);
  }
};

TEST_F(VerifyLiveTest, FindsNothingWhileAllRun) {
  for (const WorkerId worker : {kMe, kOther})
    segment_->worker(worker).leases_high_water.store(2);
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (const WorkerId worker : {kMe, kOther}) {
    threads.emplace_back([&, worker] {
      std::mt19937_64 random(worker.value);
      std::uint32_t cursor = worker.value;
      while (!done.load())
        work_once(worker, random, cursor);
    });
  }
  threads.emplace_back([&] {
    std::mt19937_64 random(99);
    while (!done.load()) {
      if (FreePages(*segment_).count() > geometry_.pages / 4) {
        std::this_thread::yield();
      } else {
        evict_once({static_cast<std::uint32_t>(random() % geometry_.pages)});
      }
    }
  });
  const auto end = Clock::now() + std::chrono::seconds(3);
  unsigned runs = 0;
  std::uint64_t rechecked = 0;
  for (; Clock::now() < end; ++runs) {
    const VerifyReport report = verify(*segment_);
    rechecked += report.rechecked;
    for (const Finding& finding : report.findings)
      ADD_FAILURE() << to_string(finding);
    if (!report.clean()) break;
  }
  done.store(true);
  for (std::thread& thread : threads)
    thread.join();
  RecordProperty("runs", static_cast<int>(runs));
  RecordProperty("rechecked", static_cast<int>(rechecked));
  std::uint64_t lives = 0;
  for (std::uint32_t i = 0; i < geometry_.pages; ++i)
    lives += word({i}).generation();
  RecordProperty("lives", static_cast<int>(lives));
  EXPECT_GT(lives, geometry_.pages) << "nothing was recycled";
  EXPECT_GT(runs, 2U);
  const VerifyReport report = verify(*segment_, {.at_rest = true});
  for (const Finding& finding : report.findings)
    ADD_FAILURE() << to_string(finding);
}

// Slow is not wrong: a thing that is wrong for a while and then right is no finding.
TEST_F(VerifyLiveTest, WhatIsRightInTheEndIsNoFinding) {
  const StateWord before = word(c_);
  state(c_).store(before.with(PageState::kFree).raw | 0xF);
  std::atomic<bool> looked{false};
  std::thread repairs([&] {
    const auto end = Clock::now() + std::chrono::milliseconds(40);
    while (Clock::now() < end)
      std::this_thread::yield();
    looked.store(true);
    state(c_).store(before.raw);
  });
  const VerifyReport report = verify(*segment_, {.settle_ms = 2000});
  repairs.join();
  EXPECT_TRUE(looked.load());
  EXPECT_GE(report.rechecked, 1U);
  EXPECT_TRUE(report.clean());
}

}  // namespace
}  // namespace kvtrie
