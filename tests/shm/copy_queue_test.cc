// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/copy_queue.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>

#include "tests/shm/test_support.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

constexpr WorkerId kMe{1};
constexpr std::uint64_t kCacheId[2] = {11, 22};

class CopyQueueTest : public testing::Test {
 protected:
  void SetUp() override {
    geometry_ = test::small_geometry();
    Result<FileDescriptor> fd = test::nameless_object(CopyQueue::size_bytes(geometry_));
    ASSERT_TRUE(fd);
    fd_ = std::move(*fd);
    queue_.emplace(CopyQueue::build(map(), geometry_, kCacheId));
  }
  Mapping map() const {
    Result<Mapping> mapping = Mapping::map(fd_.get(), CopyQueue::size_bytes(geometry_), Access::kReadWrite);
    EXPECT_TRUE(mapping);
    return std::move(*mapping);
  }
  Status submit(const CopyTarget& target, const std::string& text) const {
    return queue_->submit(kMe, target, std::as_bytes(std::span(text)));
  }
  static std::string text(const CopyWork& work) {
    return {reinterpret_cast<const char*>(work.bytes.data()), work.bytes.size()};
  }
  // The ring's words, as somebody who damages them sees them.
  CopyRing& ring(const Mapping& mapping, WorkerId slot) const {
    const auto& header = *reinterpret_cast<const CopyQueueHeader*>(mapping.data());
    return *reinterpret_cast<CopyRing*>(mapping.data() + 4096 + slot.value * header.ring_stride);
  }

  Geometry geometry_;
  FileDescriptor fd_;
  std::optional<CopyQueue> queue_;
};

TEST_F(CopyQueueTest, CopiesComeOutInOrderAndTheRingIsIdleWhenAllAreDone) {
  EXPECT_TRUE(queue_->idle(kMe));
  ASSERT_TRUE(submit({{3}, 0, 0}, "first"));
  ASSERT_TRUE(submit({{4}, 0, 59}, "last!"));
  EXPECT_FALSE(queue_->idle(kMe));
  EXPECT_TRUE(queue_->idle({2})) << "each slot has a ring of its own";
  std::optional<CopyWork> work = queue_->next(kMe);
  ASSERT_TRUE(work);
  EXPECT_EQ(text(*work), "first");
  EXPECT_EQ(work->target.page.value, 3U);
  EXPECT_EQ(text(*queue_->next(kMe)), "first") << "until it is finished";
  queue_->finish(kMe);
  work = queue_->next(kMe);
  ASSERT_TRUE(work);
  EXPECT_EQ(text(*work), "last!");
  EXPECT_EQ(work->target.offset, 59U);
  EXPECT_FALSE(queue_->idle(kMe)) << "under way";
  queue_->finish(kMe);
  EXPECT_FALSE(queue_->next(kMe));
  EXPECT_TRUE(queue_->idle(kMe));
}

TEST_F(CopyQueueTest, TakesEightAndWrapsAround) {
  for (std::uint32_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(submit({{i}, 0, 0}, std::to_string(i)));
    if (i % kCopyRingEntries != kCopyRingEntries - 1) continue;
    EXPECT_EQ(submit({{i}, 0, 0}, "too many").code(), Code::kNotNow);
    for (std::uint32_t back = i - kCopyRingEntries + 1; back <= i; ++back) {
      EXPECT_EQ(text(*queue_->next(kMe)), std::to_string(back));
      queue_->finish(kMe);
    }
  }
}

TEST_F(CopyQueueTest, WhatIsNotInsideAPageIsRefused) {
  const auto code = [&](const CopyTarget& target, std::size_t bytes) {
    return submit(target, std::string(bytes, 'x')).code();
  };
  EXPECT_EQ(code({{0}, 0, 0}, 64), Code::kOk);
  EXPECT_EQ(code({{255}, 0, 64}, 0), Code::kOk);
  EXPECT_EQ(code({{0}, 0, 0}, 65), Code::kInvalid);
  EXPECT_EQ(code({{0}, 0, 65}, 0), Code::kInvalid);
  EXPECT_EQ(code({{0}, 0, ~std::uint64_t{0}}, 2), Code::kInvalid);
  EXPECT_EQ(code({{256}, 0, 0}, 1), Code::kInvalid);
  EXPECT_EQ(code({{0}, geometry_.planes, 0}, 1), Code::kInvalid);
}

TEST_F(CopyQueueTest, WaitingEndsWithTheLastCopyOrInTime) {
  EXPECT_TRUE(queue_->wait_idle(kMe, 0));
  ASSERT_TRUE(submit({{0}, 0, 0}, "x"));
  EXPECT_EQ(queue_->wait_idle(kMe, 1'000'000).code(), Code::kTimeout);
  std::jthread engine([&] {
    (void)queue_->next(kMe);
    queue_->finish(kMe);
  });
  EXPECT_TRUE(queue_->wait_idle(kMe, 20'000'000'000));
}

TEST_F(CopyQueueTest, DamagedEntriesAreDroppedAndCounted) {
  const Mapping mapping = map();
  CopyRing& mine = ring(mapping, kMe);
  ASSERT_TRUE(submit({{0}, 0, 0}, "bad page"));
  ASSERT_TRUE(submit({{0}, 0, 0}, "bad bytes"));
  ASSERT_TRUE(submit({{7}, 0, 0}, "good"));
  mine.entries[0].page.store(0xFFFFFFFF);
  mine.entries[1].bytes.store(~std::uint64_t{0});
  const std::optional<CopyWork> work = queue_->next(kMe);
  ASSERT_TRUE(work);
  EXPECT_EQ(text(*work), "good");
  queue_->finish(kMe);
  EXPECT_TRUE(queue_->idle(kMe));
  mine.submitted.store(mine.done.load() + 1'000'000);
  EXPECT_FALSE(queue_->next(kMe)) << "more than a ring holds";
  EXPECT_TRUE(queue_->idle(kMe));
}

TEST_F(CopyQueueTest, OpensOnlyTheQueueOfItsCache) {
  EXPECT_TRUE(CopyQueue::open(map(), geometry_, kCacheId));
  const std::uint64_t other[2] = {11, 23};
  EXPECT_EQ(CopyQueue::open(map(), geometry_, other).error().code(), Code::kCorrupt);
  Geometry larger = geometry_;
  larger.workers += 1;
  EXPECT_EQ(CopyQueue::open(map(), larger, kCacheId).error().code(), Code::kCorrupt);
  Geometry pages = geometry_;
  pages.page_bytes = 32;
  EXPECT_EQ(CopyQueue::open(map(), pages, kCacheId).error().code(), Code::kCorrupt);
}

#ifdef KVTRIE_DEV
TEST_F(CopyQueueTest, HalfASubmitIsNoCopy) {
  ASSERT_TRUE(test::dies_at("copy.before_submitted", [&] { (void)submit({{3}, 0, 0}, "never"); }));
  EXPECT_TRUE(queue_->idle(kMe));
  EXPECT_FALSE(queue_->next(kMe));
  ASSERT_TRUE(submit({{4}, 0, 0}, "next life")) << "of the slot";
  EXPECT_EQ(text(*queue_->next(kMe)), "next life");
}
#endif

// What a killed engine leaves is there for the next one, as it was.
TEST_F(CopyQueueTest, EngineMayDieBetweenBytesAndDone) {
  ASSERT_TRUE(submit({{3}, 0, 0}, "twice"));
  EXPECT_EQ(text(*queue_->next(kMe)), "twice");
  Result<CopyQueue> next = CopyQueue::open(map(), geometry_, kCacheId);
  ASSERT_TRUE(next);
  EXPECT_FALSE(next->idle(kMe));
  const std::optional<CopyWork> again = next->next(kMe);
  ASSERT_TRUE(again);
  EXPECT_EQ(text(*again), "twice");
  next->finish(kMe);
  EXPECT_TRUE(queue_->idle(kMe));
}

}  // namespace
}  // namespace kvtrie
