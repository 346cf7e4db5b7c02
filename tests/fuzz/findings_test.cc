// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What fuzzing found, told without a fuzzer: each case once crashed, did not end, or gave out something wrong.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/admin.h"
#include "coordinator/reaper.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "shm/worker_table.h"
#include "tests/fuzz/world.h"

namespace kvtrie::fuzz {
namespace {

class FindingsTest : public ::testing::Test {
 protected:
  FindingsTest() { world_.reset(); }

  World& world_ = World::get();
  const Segment& segment_ = world_.segment();
};

// It looked at the slot again and again.
TEST_F(FindingsTest, AdoptingAnImpossibleSlotEnds) {
  const LogSink log = [](std::string_view) {};
  for (const std::uint64_t word : {std::uint64_t{0x107}, ~std::uint64_t{0}}) {
    world_.reset();
    segment_.worker({2}).slot_state.store(word);
    Reaper reaper(segment_, world_.device(), log);
    ASSERT_FALSE(reaper.start());
    Reaper::AdoptSlots slots;
    EXPECT_FALSE(reaper.adopt(slots));
    EXPECT_EQ(slots.alive, 2U);
    EXPECT_TRUE(segment_.poisoned());
  }
}

// The page was then matched below its own child, twice in one sequence.
TEST_F(FindingsTest, ALinkThatLeadsBackIsNotFollowed) {
  Worker worker(segment_, {1});
  const std::vector<std::uint32_t> tokens = tokens_of({4, 5, 4, 5, 4});
  Sequence sequence;
  BeginReport report;
  const std::vector<std::uint32_t> first = tokens_of({4});
  ASSERT_TRUE(worker.begin(world_.name_space(0), first, {}, sequence, report));
  ASSERT_EQ(report.cached_pages, 1U);
  const Handle top = sequence.shared.at(0);
  Sequence below;
  ASSERT_TRUE(worker.begin(world_.name_space(0), tokens_of({4, 5}), {}, below, report));
  ASSERT_EQ(report.cached_pages, 2U);
  const Handle child = below.shared.at(1);
  segment_.descriptor(top.page_index()).parent.store(child.raw);
  segment_.descriptor(child.page_index()).child_hint.store(top.page_index().value + 1);
  worker.append(sequence, std::span(tokens).subspan(kTokens));
  // What is below the child is another page of the same tokens; it goes, so that only the bent link is left.
  for (std::uint32_t i = 0; i < kPages; ++i) {
    AtomicU64& state = segment_.descriptor({i}).state;
    if (segment_.descriptor({i}).parent.load() == child.raw && PageIndex{i} != top.page_index()) state.store(0);
  }
  ASSERT_TRUE(worker.wait_for_pending(sequence, 0, report));
  EXPECT_EQ(report.cached_pages, 2U);
  worker.release(sequence);
  worker.release(below);
}

// Each was done to the page of whoever had it by then.
TEST_F(FindingsTest, APageThatIsSomebodyElsesByNowIsLeftAlone) {
  const StateWord theirs = StateWord::make(PageState::kPending, 9, {2});
  for (const char* call : {"announce", "publish", "give back"}) {
    world_.reset();
    Worker worker(segment_, {1});
    Sequence sequence;
    BeginReport report;
    PublishReport published;
    std::vector<std::uint32_t> tokens = tokens_of({6});
    if (std::string(call) == "announce") tokens.pop_back();  // not full yet
    ASSERT_TRUE(worker.begin(world_.name_space(0), tokens, {}, sequence, report));
    ASSERT_TRUE(worker.allocate(sequence, kTokens, 0));
    AtomicU64& state = segment_.descriptor(sequence.page_at(0)).state;
    state.store(theirs.raw);
    if (std::string(call) == "announce") worker.append(sequence, std::vector<std::uint32_t>{1});
    if (std::string(call) == "give back") {
      EXPECT_TRUE(worker.give_back(sequence, 0, 1));
    } else {
      EXPECT_EQ(worker.publish(sequence, kTokens, published).code(), Code::kCorrupt) << call;
    }
    EXPECT_TRUE(worker.distrusts()) << call;
    worker.release(sequence);
    EXPECT_EQ(state.load(), theirs.raw) << call;
  }
}

// The engine was told of more tokens than a page has.
TEST_F(FindingsTest, AnIncompletePageHasNoMoreTokensThanAPage) {
  Worker worker(segment_, {1});
  Sequence sequence;
  BeginReport report;
  PublishReport published;
  const std::vector<std::uint32_t> tokens = tokens_of({6});
  ASSERT_TRUE(worker.begin(world_.name_space(0), std::span(tokens).first(2), {}, sequence, report));
  ASSERT_TRUE(worker.allocate(sequence, kTokens, 0));
  ASSERT_TRUE(worker.publish_incomplete(sequence, 2, published));
  segment_.descriptor(sequence.page_at(0)).token_count.store(0xFFFF);
  ASSERT_TRUE(worker.publish_incomplete(sequence, 2, published));
  EXPECT_EQ(published.incomplete_tokens, kTokens);
  worker.release(sequence);
}

// They were read again after they had been checked.
TEST_F(FindingsTest, ConstantsAreThoseOfTheSuperblockThatWasChecked) {
  Superblock& block = segment_.superblock();
  const std::uint32_t expiry = expiry_tick_after(segment_, 1);
  block.tick_ns = 0;
  std::memset(block.cache_name, 'x', sizeof block.cache_name);
  EXPECT_EQ(expiry_tick_after(segment_, 1), expiry);
  EXPECT_TRUE(stats_json(segment_).starts_with(R"({"cache":"fuzz",)"));
}

// The copy engine, which is there for all, looked for the next copy of one ring as long as that went on.
TEST_F(FindingsTest, WhoQueuesWhatDoesNotFitKeepsNobody) {
  const std::span<std::byte> bytes = world_.queue_bytes();
  const std::size_t stride = (bytes.size() - 4096) / world_.queue().ring_count();
  CopyRing& ring = *reinterpret_cast<CopyRing*>(bytes.data() + 4096 + stride);
  for (CopyEntry& entry : ring.entries)
    entry.page.store(~0U);
  const std::jthread queues([&](const std::stop_token& stop) {
    while (!stop.stop_requested())
      ring.submitted.store(ring.done.load() + kCopyRingEntries);
  });
  for (int look = 0; look < 100; ++look)
    EXPECT_FALSE(world_.queue().next({1}));
}

}  // namespace
}  // namespace kvtrie::fuzz
