// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/page_table.h"

#include <random>
#include <utility>

#include "tests/shm/cache_fixture.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

class PageTableTest : public test::CacheFixture {
 protected:
  PageTable table() const { return PageTable(*segment_); }
  void set(PageIndex page, PageState to) const { state(page).store(word(page).with(to).raw); }
  unsigned entries_of(PageIndex page) const {
    return index_->occurrences(segment_->descriptor(page).prefix_hash.load(), page);
  }
  bool bit(PageIndex page) const {
    return (segment_->free_bits(page.value / kChunkPages).load() >> page.value % kChunkPages & 1) !=
           0;
  }
};

TEST_F(PageTableTest, NewPagesAreFree) {
  const FileDescriptor fd = std::move(*test::nameless_object(bytes_));
  const Result<Segment> fresh = test::build_segment(fd.get(), geometry_);
  ASSERT_TRUE(fresh);
  EXPECT_EQ(PageTable(*fresh).validate(), "");
  EXPECT_EQ(PageTable(*fresh).stats().of(PageState::kFree), geometry_.pages);
}

// Each token decides, wherever the caller's tokens are in memory.
TEST_F(PageTableTest, WordsAreEqualWhenATokenByTokenLoopSaysSo) {
  std::mt19937 random(1);
  alignas(16) AtomicU64 words[kUsualTokens / 2];
  std::uint32_t mine[kUsualTokens + 3];
  unsigned same = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::uint32_t* tokens = mine + random() % 4;
    for (std::size_t i = 0; i < kUsualTokens; ++i) tokens[i] = static_cast<std::uint32_t>(random());
    for (std::size_t i = 0; i < kUsualTokens; i += 2) words[i / 2].store(token_word(tokens + i));
    if (random() % 4 != 0) tokens[random() % kUsualTokens] ^= 1U << random() % 32;
    if (random() % 4 == 0) std::swap(tokens[random() % kUsualTokens], tokens[random() % kUsualTokens]);
    bool equal = true;
    for (std::size_t i = 0; i < kUsualTokens; ++i) {
      equal = equal && static_cast<std::uint32_t>(words[i / 2].load() >> 32 * (i % 2)) == tokens[i];
    }
    ASSERT_EQ(equal_words<kUsualTokens>(words, tokens), equal);
    same += equal ? 1 : 0;
  }
  EXPECT_GT(same, 2'000U);
}

TEST_F(PageTableTest, ValidateNamesThePageOfAnImpossibleWord) {
  EXPECT_EQ(table().validate(), "");
  const std::uint64_t good = state(c_).load();
  state(c_).store(good | 0xF);
  EXPECT_TRUE(table().validate().starts_with("page " + std::to_string(c_.value) + ": impossible"))
      << table().validate();
  state(c_).store(StateWord{good}.with(PageState::kWriting, WorkerId{900}).raw);
  EXPECT_NE(table().validate(), "") << "no such worker slot";
  state(c_).store(good);
  EXPECT_EQ(table().validate(), "");
}

TEST_F(PageTableTest, RecoverEndsWhatAnEvictionBegan) {
  set(c_, PageState::kCondemned);
  set(sibling_, PageState::kRetiring);
  const std::uint64_t generation = word(sibling_).generation();
  const PageRecovery first = table().recover();
  EXPECT_EQ(first.condemned, 1U);
  EXPECT_EQ(first.retiring, 1U);
  EXPECT_EQ(first.orphans, 0U);
  EXPECT_EQ(word(c_).state(), PageState::kLive);
  EXPECT_EQ(entries_of(c_), 1U);
  EXPECT_EQ(word(sibling_), StateWord::make(PageState::kFree, generation + 1));
  EXPECT_EQ(entries_of(sibling_), 0U);
  EXPECT_TRUE(bit(sibling_));
  const PageRecovery second = table().recover();
  EXPECT_EQ(second.condemned + second.retiring + second.orphans, 0U);
}

TEST_F(PageTableTest, RecoverFreesPagesOfNobodyAndOfNobodyElse) {
  const std::uint64_t generation = word(pending_).generation();
  state(pending_).store(word(pending_).with(PageState::kPending, WorkerId{3}).raw);
  EXPECT_EQ(table().recover().orphans, 1U);
  EXPECT_EQ(word(pending_), StateWord::make(PageState::kFree, generation + 1));
  EXPECT_EQ(entries_of(pending_), 0U);
  EXPECT_EQ(word(other_pending_).state(), PageState::kPending);
  EXPECT_EQ(word(writing_).state(), PageState::kWriting);
}

TEST_F(PageTableTest, StatsCountByStateOwnerAndNamespace) {
  state(free_page()).store(0xF);
  const PageStats stats = table().stats();
  EXPECT_EQ(stats.of(PageState::kLive), 5U);
  EXPECT_EQ(stats.of(PageState::kFree), geometry_.pages - 9);
  EXPECT_EQ(stats.impossible, 1U);
  EXPECT_EQ(stats.writing_of.at(kMe.value), 1U);
  EXPECT_EQ(stats.pending_of.at(kMe.value), 1U);
  EXPECT_EQ(stats.pending_of.at(kOther.value), 1U);
  EXPECT_EQ(stats.pages_of_scope.at(namespace_.id.value), 7U);
  EXPECT_EQ(stats.readable_tokens, 22U);
  segment_->descriptor(a_).scope.store(scope_of(NamespaceId{999}, 1));
  EXPECT_EQ(table().stats().scope_unknown, 1U);
  state(writing_).store(word(writing_).with(PageState::kWriting, WorkerId{900}).raw);
  EXPECT_EQ(table().stats().owner_unknown, 1U);
}

#ifdef KVTRIE_DEV
TEST_F(PageTableTest, RecoverCanDieAndRunAgain) {
  for (const char* place : {"finish.after_unindex", "evict.after_free", "adopt.after_page"}) {
    cursor_ = 0;
    SetUp();
    set(c_, PageState::kCondemned);
    set(sibling_, PageState::kRetiring);
    ASSERT_TRUE(test::dies_at(place, [&] { (void)table().recover(); })) << place;
    (void)table().recover();
    FreePages(*segment_).recover();
    EXPECT_EQ(word(c_).state(), PageState::kLive) << place;
    EXPECT_EQ(word(sibling_).state(), PageState::kFree) << place;
    EXPECT_EQ(entries_of(sibling_), 0U) << place;
    EXPECT_TRUE(bit(sibling_)) << place;
  }
}
#endif

}  // namespace
}  // namespace kvtrie
