// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a repair keeps, and that its result is sound whatever the bytes. Each violation of verify_violations_test.cc is
// repaired there.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "shm/lease.h"
#include "tests/shm/cache_fixture.h"
#include "tests/shm/repair_support.h"

namespace kvtrie {
namespace {

using test::CacheFixture;
using test::Repaired;
using test::findings_in;
using test::repaired;
using enum PageFate;
using Clock = std::chrono::steady_clock;

class RepairTest : public CacheFixture {
 protected:
  void SetUp() override {
    CacheFixture::SetUp();
    good_.assign(segment_->data(), segment_->data() + bytes_);
  }

  Descriptor& at(PageIndex page) const { return segment_->descriptor(page); }
  std::uint64_t pick(std::uint64_t below) { return random_() % below; }

  static std::pair<std::uint64_t, std::uint64_t> buckets(const IndexPlace& place) {
    return std::minmax({place.bucket[0], place.bucket[1]});
  }

  // Of a page that may stand where `beside` may, below `parent`; Live if it has an entry.
  AnnounceOutcome announce_beside(PageIndex beside, std::optional<PageIndex> parent, PageIndex& page) {
    const auto wanted = buckets(index_->place_of(at(beside).prefix_hash.load()));
    std::vector<std::uint32_t> tokens(5);
    PageNode node;
    do {
      std::ranges::generate(tokens, [this] { return static_cast<std::uint32_t>(random_()); });
      node = node_below(kMe, parent, tokens);
    } while (buckets(index_->place_of(node.prefix_hash)) != wanted);
    page = take(kMe);
    const AnnounceOutcome outcome = announce_page(*segment_, StripeIndex(*segment_), kMe, page, node, tokens).outcome;
    if (outcome == AnnounceOutcome::kAnnounced) (void)publish(kMe, page);
    return outcome;
  }

  // Returns the page that found no room any more; it is Writing, and its node is written.
  PageIndex fill_buckets_of(PageIndex beside) {
    PageIndex page{};
    AnnounceOutcome outcome = AnnounceOutcome::kAnnounced;
    while (outcome == AnnounceOutcome::kAnnounced) outcome = announce_beside(beside, std::nullopt, page);
    EXPECT_EQ(outcome, AnnounceOutcome::kNoRoom);
    return page;
  }

  // Repairs, and expects exactly these pages to go, for these reasons; all other Live ones stay as they were.
  Repaired expect_lost(const std::vector<std::pair<PageIndex, PageFate>>& lost) const {
    Repaired made = repaired(*segment_);
    EXPECT_EQ(findings_in(*made.segment), "");
    EXPECT_EQ(made.plan.pages_lost(), lost.size());
    for (const auto& [page, fate] : lost)
      EXPECT_STREQ(name_of(made.plan.fate[page.value]), name_of(fate)) << "page " << page.value;
    for (const PageIndex page : {a_, b_, c_, sibling_, short_}) {
      const bool gone = std::ranges::find(lost, page, [](const auto& each) { return each.first; }) != lost.end();
      EXPECT_EQ(made.keeps(page), !gone) << "page " << page.value << " " << name_of(made.plan.fate[page.value]);
    }
    return made;
  }

  // Damages and repairs until the time is up.
  template <typename Damage>
  void fuzz(Damage damage) {
    const auto end = Clock::now() + std::chrono::milliseconds(700);
    std::uint64_t rounds = 0;
    std::uint64_t kept = 0;
    for (; Clock::now() < end; ++rounds) {
      std::memcpy(segment_->data(), good_.data(), good_.size());
      damage();
      // The superblock's constant part is checked when it is opened.
      std::memcpy(segment_->data(), good_.data(), offsetof(Superblock, poison_state));
      const std::vector<std::byte> before(segment_->data(), segment_->data() + bytes_);
      const Repaired made = repaired(*segment_);
      ASSERT_EQ(std::memcmp(before.data(), segment_->data(), bytes_), 0) << "written to";
      ASSERT_EQ(findings_in(*made.segment), "") << "round " << rounds;
      kept += made.plan.of(kKept);
      expect_true(*made.segment, made.plan);
      if (HasFailure()) return;
    }
    EXPECT_GT(rounds, 10U);
    EXPECT_GT(kept, rounds) << "damage at some places leaves most of it";
  }

  // No page says anything that it did not say before the damage.
  void expect_true(const Segment& made, const RepairPlan& plan) const {
    const std::size_t stride = segment_->layout().descriptor_stride;
    const std::byte* descriptors = reinterpret_cast<const std::byte*>(&at({0})) - segment_->data() + good_.data();
    for (std::uint32_t i = 0; i < made.page_count(); ++i) {
      if (!plan.keeps({i})) continue;
      const auto& was = *reinterpret_cast<const Descriptor*>(descriptors + i * stride);
      const Descriptor& is = made.descriptor({i});
      EXPECT_EQ(is.parent.load(), was.parent.load()) << i;
      EXPECT_EQ(is.prefix_hash.load(), was.prefix_hash.load()) << i;
      EXPECT_EQ(is.token_count.load(), was.token_count.load()) << i;
      EXPECT_EQ(std::memcmp(reinterpret_cast<const std::byte*>(&is) + sizeof is,
                            descriptors + i * stride + sizeof is, was.token_count.load() * 4), 0) << i;
    }
  }

  std::vector<std::byte> good_;
  std::mt19937_64 random_{20'261'128};
};

TEST_F(RepairTest, OfASoundSegmentLosesNothing) {
  segment_->count(kMe, Counter::kLookups, 77);
  segment_->name_space(namespace_.id).child_hint.store(a_.value + 1);
  at(a_).child_hint.store(b_.value + 1);
  at(b_).child_hint.store(sibling_.value + 1);  // not a child of it
  at(c_).touch.store(TouchWord::make(9, 8, 7, 0).raw);
  segment_->pins()[0].expiry_tick.store(55);
  std::strcpy(segment_->pins()[0].reason, "kept");
  const Repaired made = expect_lost({});
  EXPECT_EQ(made.plan.of(kUnfinished), 3U);
  const Segment& s = *made.segment;
  for (const PageIndex page : {a_, b_, c_, sibling_, short_})
    EXPECT_EQ(s.descriptor(page).state.load(), word(page).raw);
  for (const PageIndex page : {pending_, other_pending_, writing_})
    EXPECT_EQ(s.descriptor(page).state.load(), word(page).recycled().raw) << "handles of the dead stay stale";
  EXPECT_EQ(s.descriptor(free_page()).state.load(), word(free_page()).raw);
  EXPECT_EQ(s.total(Counter::kLookups), 77U);
  EXPECT_EQ(s.name_space(namespace_.id).child_hint.load(), a_.value + 1);
  EXPECT_EQ(s.descriptor(a_).child_hint.load(), b_.value + 1);
  EXPECT_EQ(s.descriptor(b_).child_hint.load(), 0U);
  EXPECT_EQ(s.descriptor(c_).touch.load(), at(c_).touch.load());
  EXPECT_EQ(s.announce_counter(b_).load(), segment_->announce_counter(b_).load());
  const std::vector<Pin> pins = PinTable(s).list();
  ASSERT_EQ(pins.size(), 1U);
  EXPECT_EQ(pins[0].page, Handle::page(a_, word(a_)));
  EXPECT_EQ(pins[0].reason, "kept");
  EXPECT_EQ(pins[0].expiry_tick, 55U);
  for (std::uint64_t b = 0; b < s.layout().bucket_count; ++b) {
    for (std::uint32_t i = 0; i < kBucketEntries; ++i) {
      const std::uint64_t entry = s.bucket(b).entries[i].load();
      EXPECT_TRUE(entry == 0 || entry == segment_->bucket(b).entries[i].load()) << "entries stay where they were";
    }
  }
  const std::vector<std::uint32_t> tokens = {11, 12, 13, 14, 15};
  EXPECT_TRUE(PageTable(s).matches(c_, Handle::page(b_, word(b_)), tokens));
  EXPECT_TRUE(find_namespace(s, "model=m\n"));
  EXPECT_EQ(s.worker(kMe).slot_state.load() & 0xFF, 0U);
  EXPECT_EQ(s.worker(kMe).slot_state.load() >> 8, 1U) << "its incarnations go on";
  EXPECT_EQ(s.superblock().cache_id[1], 22U);
}

TEST_F(RepairTest, DamageInAPageTakesItAndWhatIsBelow) {
  at(b_).prefix_hash.fetch_xor(1);
  const Repaired made = expect_lost({{b_, kHash}, {c_, kBelow}});
  EXPECT_EQ(made.segment->descriptor(b_).state.load(), word(b_).recycled().raw);
  EXPECT_EQ(made.plan.examples[static_cast<std::size_t>(kHash)], std::vector<std::uint32_t>{b_.value});
  EXPECT_EQ(made.plan.namespaces[namespace_.id.value].pages_lost, 2U);
}

TEST_F(RepairTest, PinOfALostPageGoes) {
  segment_->token_words(a_)[0].fetch_xor(4);
  const Repaired made = expect_lost({{a_, kHash}, {b_, kBelow}, {c_, kBelow}, {sibling_, kBelow}});
  ASSERT_EQ(made.plan.pins.size(), 1U);
  EXPECT_FALSE(made.plan.pins[0].kept);
  EXPECT_FALSE(PinTable(*made.segment).any());
}

TEST_F(RepairTest, OfDuplicatesTheOneInTheIndexStays) {
  const PageIndex copy = copy_of(sibling_);
  ASSERT_GT(copy, sibling_);
  expect_lost({{copy, kDuplicate}});
  ASSERT_TRUE(index_->remove(at(sibling_).prefix_hash.load(), sibling_));
  expect_lost({{sibling_, kDuplicate}});
}

TEST_F(RepairTest, LostIndexIsMadeAgain) {
  for (std::uint64_t b = 0; b < segment_->layout().bucket_count; ++b)
    std::memset(static_cast<void*>(&segment_->bucket(b)), 0, sizeof(IndexBucket));
  expect_lost({});
}

TEST_F(RepairTest, FreePageThatLooksCondemnedStaysFree) {
  // As an eviction leaves it: only its word, its bit and the missing entry say that it is free.
  ASSERT_TRUE(index_->remove(at(c_).prefix_hash.load(), c_));
  FreePages(*segment_).free_retired(c_);
  state(c_).store(word(c_).with(PageState::kCondemned).raw);  // one bit
  expect_lost({{c_, kSaysFree}});
}

TEST_F(RepairTest, CondemnedPagesLiveOnRetiringOnesDoNot) {
  state(c_).store(word(c_).with(PageState::kCondemned).raw);
  state(sibling_).store(word(sibling_).with(PageState::kRetiring).raw);
  const Repaired made = repaired(*segment_);
  EXPECT_EQ(findings_in(*made.segment), "");
  EXPECT_EQ(made.segment->descriptor(c_).state.load(), word(c_).with(PageState::kLive).raw);
  EXPECT_EQ(made.plan.fate[sibling_.value], kUnfinished);
}

TEST_F(RepairTest, FlushedPagesDoNotComeBack) {
  const Result<std::uint64_t> next = NamespaceTable(*segment_).flush(namespace_.id, namespace_.fields_hash);
  ASSERT_TRUE(next);
  {
    const Repaired made = repaired(*segment_);
    EXPECT_EQ(made.plan.of(kFlushed), 5U);
    EXPECT_EQ(made.plan.pages_lost(), 0U);
  }
  // A page of the new generation, then the record goes back to the old one.
  namespace_.root_generation = *next;
  const PageIndex page = publish(kMe, announce(kMe, std::nullopt, {1, 2, 3, 4, 5}));
  segment_->name_space(namespace_.id).root_generation.store(*next - 1);
  const Repaired made = repaired(*segment_);
  EXPECT_EQ(findings_in(*made.segment), "");
  EXPECT_EQ(made.plan.of(kKept), 0U) << "pages that were flushed";
  EXPECT_EQ(made.plan.fate[page.value], kFlushed);
  EXPECT_TRUE(made.plan.namespaces[namespace_.id.value].kept);
  EXPECT_EQ(made.segment->name_space(namespace_.id).root_generation.load(), *next + 1);
}

TEST_F(RepairTest, LostNamespaceTakesItsPagesOthersStay) {
  const Result<OpenNamespace> other = NamespaceTable(*segment_).open("model=other\n", "o");
  ASSERT_TRUE(other);
  segment_->name_space(namespace_.id).fields[6] ^= 1;
  const Repaired made = repaired(*segment_);
  EXPECT_EQ(findings_in(*made.segment), "");
  EXPECT_EQ(made.plan.of(kNamespace), 5U);
  EXPECT_TRUE(made.plan.namespaces[namespace_.id.value].lost());
  EXPECT_FALSE(find_namespace(*made.segment, "model=m\n"));
  EXPECT_TRUE(find_namespace(*made.segment, "model=other\n"));
}

TEST_F(RepairTest, WhoFindsNoRoomInTheIndexGoes) {
  const PageIndex page = fill_buckets_of(short_);
  expect_lost({});
  publish(kMe, page);  // Live all the same, without an entry
  const PageIndex child = publish(kMe, announce(kMe, page, {1, 2, 3, 4, 5}));
  expect_lost({{page, kIndexFull}, {child, kBelow}});
}

TEST_F(RepairTest, NoEntryIsWrittenOver) {
  PageIndex deeper{};
  ASSERT_EQ(announce_beside(short_, a_, deeper), AnnounceOutcome::kAnnounced);
  const PageIndex page = publish(kMe, fill_buckets_of(short_));
  expect_lost({{deeper, kIndexFull}});  // it is looked at last; one of them had to go
  EXPECT_NE(page, deeper);
}

TEST_F(RepairTest, WhoHasNoEntryTakesNobodysPlace) {
  ASSERT_TRUE(index_->remove(at(short_).prefix_hash.load(), short_));
  for (int i = 0; i < 3; ++i) {
    PageIndex deeper{};
    ASSERT_EQ(announce_beside(short_, a_, deeper), AnnounceOutcome::kAnnounced);
  }
  const Repaired made = expect_lost({});
  for (const std::uint64_t b : index_->place_of(at(short_).prefix_hash.load()).bucket) {
    for (std::uint32_t i = 0; i < kBucketEntries; ++i) {
      const std::uint64_t before = segment_->bucket(b).entries[i].load();
      EXPECT_TRUE(before == 0 || before == made.segment->bucket(b).entries[i].load());
    }
  }
}

TEST_F(RepairTest, PagesOfAnotherNamespaceOrBelowAnIncompleteOneGo) {
  const Result<OpenNamespace> other = NamespaceTable(*segment_).open("model=other\n", "o");
  ASSERT_TRUE(other);
  at(c_).scope.store(scope_of(other->id, other->root_generation));
  const PageIndex child = publish(kMe, announce(kMe, short_, {1, 2, 3, 4, 5}));
  expect_lost({{c_, kScope}, {child, kParent}});
}

TEST_F(RepairTest, OfNamespacesWithTheSameFieldsTheFirstStays) {
  AtomicU64& hash = segment_->name_space(namespace_.id).fields_hash;
  hash.fetch_xor(1);  // not found, so it is made again
  const Result<OpenNamespace> twin = NamespaceTable(*segment_).open("model=m\n", "twin");
  hash.fetch_xor(1);
  ASSERT_TRUE(twin);
  ASSERT_NE(twin->id, namespace_.id);
  const Repaired made = expect_lost({});
  EXPECT_TRUE(made.plan.namespaces[twin->id.value].lost());
}

TEST_F(RepairTest, CyclesEnd) {
  at(b_).parent.store(Handle::page(c_, word(c_)).raw);
  at(a_).parent.store(Handle::page(a_, word(a_)).raw);
  expect_lost({{a_, kParent}, {b_, kBelow}, {c_, kBelow}, {sibling_, kBelow}});
}

TEST_F(RepairTest, ImpossibleCountsAreNotTakenOver) {
  segment_->worker(kMe).counters[0].store(~std::uint64_t{0});
  segment_->announce_counter(a_).store(~0U);
  segment_->worker(kMe).slot_state.store(~std::uint64_t{0});
  const Repaired made = expect_lost({});
  EXPECT_EQ(made.segment->worker(kMe).counters[0].load(), 0U) << "nothing counts that far";
  EXPECT_EQ(made.segment->announce_counter(a_).load(), 2U);
  EXPECT_EQ(made.segment->worker(kMe).slot_state.load(), 0U);
}

TEST_F(RepairTest, RandomBytesAnywhere) {
  fuzz([&] {
    for (std::uint64_t n = 1 + pick(64); n > 0; --n)
      segment_->data()[pick(bytes_)] = static_cast<std::byte>(random_());
  });
}

TEST_F(RepairTest, PlausibleWordsInUsedDescriptorsAndTheIndex) {
  fuzz([&] {
    for (std::uint64_t n = 1 + pick(6); n > 0; --n) {
      auto* words = reinterpret_cast<AtomicU64*>(&at({static_cast<std::uint32_t>(pick(12))}));
      const PageIndex page{static_cast<std::uint32_t>(pick(12))};
      const std::uint64_t choices[] = {
          StateWord::make(static_cast<PageState>(pick(7)), pick(3)).raw, Handle::page(page, pick(3)).raw,
          Handle::root({static_cast<std::uint16_t>(pick(5))}, pick(3)).raw, pick(16), std::uint64_t{1} << pick(64),
          random_()};
      words[pick(pick(2) == 0 ? 2 : 11)].store(choices[pick(6)]);
      const std::uint64_t entry = StripeIndex::kValid | (random_() & StripeIndex::kTagMask) | page.value;
      if (pick(3) == 0) segment_->bucket(pick(segment_->layout().bucket_count)).entries[pick(8)].store(entry);
    }
  });
}

TEST_F(RepairTest, GarbageInWholeAreas) {
  fuzz([&] {
    const AreaEntry& area = segment_->layout().areas[pick(segment_->layout().area_count)];
    const bool descriptors = area.kind == static_cast<std::uint32_t>(AreaKind::kDescriptors) ||
                             area.kind == static_cast<std::uint32_t>(AreaKind::kNamespaces);
    if (descriptors && pick(8) != 0) return;
    for (std::uint64_t i = 0; i < area.stride * area.count; ++i)
      segment_->data()[area.offset + i] = static_cast<std::byte>(random_());
  });
}

}  // namespace
}  // namespace kvtrie
