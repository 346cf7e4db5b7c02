// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A small valid segment with some of everything, made by the protocol's own operations:
//
//   root -- a (Live) -- b (Live, leased by me) -- c (Live)
//        |           |                         `- pending (Pending, mine)
//        |           `- sibling (Live)
//        |- short (Live, 2 of 5 tokens)                    writing (Writing, mine)
//        `- other_pending (Pending, of the other worker)   a is pinned; sibling leased by the other
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "shm/announce.h"
#include "shm/free_pages.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/process_identity.h"
#include "shm/stripe_index.h"
#include "shm/worker_table.h"
#include "tests/shm/test_support.h"

namespace kvtrie::test {

class CacheFixture : public testing::Test {
 public:
  static constexpr WorkerId kMe{1};
  static constexpr WorkerId kOther{2};

  void SetUp() override {
    fd_ = std::move(*nameless_object(bytes_));
    Result<Segment> segment = build_segment(fd_.get(), geometry_);
    ASSERT_TRUE(segment) << segment.error().what();
    segment_.emplace(std::move(*segment));
    index_ = std::make_unique<StripeIndex>(*segment_);
    block().coordinator_pid.store(static_cast<std::uint32_t>(::getpid()));
    block().coordinator_start_time.store(*own_start_time());
    block().coordinator_state.store(static_cast<std::uint32_t>(CoordinatorState::kServing));
    for (const WorkerId worker : {kMe, kOther})
      attach(worker);
    const Result<OpenNamespace> made = NamespaceTable(*segment_).open("model=m\n", "unit");
    ASSERT_TRUE(made);
    namespace_ = *made;
    a_ = publish(kMe, announce(kMe, std::nullopt, {1, 2, 3, 4, 5}));
    b_ = publish(kMe, announce(kMe, a_, {6, 7, 8, 9, 10}));
    c_ = publish(kMe, announce(kMe, b_, {11, 12, 13, 14, 15}));
    sibling_ = publish(kOther, announce(kOther, a_, {6, 7, 8, 9, 99}));
    short_ = publish(kMe, announce(kMe, std::nullopt, {1, 2}));
    pending_ = announce(kMe, b_, {21, 22, 23, 24, 25});
    other_pending_ = announce(kOther, std::nullopt, {31, 32, 33, 34, 35});
    writing_ = take(kMe);
    lease(kMe, 0, b_);
    lease(kOther, 0, sibling_);
    lease(kCoordinatorSlot, 0, a_);
  }

  Superblock& block() const { return segment_->superblock(); }
  AtomicU64& state(PageIndex page) const { return segment_->descriptor(page).state; }
  StateWord word(PageIndex page) const { return {state(page).load()}; }
  PageIndex free_page() const { return {segment_->page_count() - 1}; }

  void attach(WorkerId worker) const {
    WorkerIdentity identity;
    identity.pid = static_cast<std::uint32_t>(::getpid());
    identity.start_time = *own_start_time();
    identity.name = "fixture";
    const Result<SlotGrant> grant = WorkerTable(*segment_).give(identity);
    ASSERT_TRUE(grant);
    ASSERT_EQ(grant->slot, worker);
    ASSERT_TRUE(WorkerTable(*segment_).confirm(*grant));
  }

  PageIndex take(WorkerId worker) {
    std::vector<PageIndex> pages;
    EXPECT_EQ(FreePages(*segment_).take(worker, 1, PageIndex{~0U}, cursor_, pages), 1U);
    return pages.at(0);
  }

  PageNode node_below(WorkerId worker, std::optional<PageIndex> parent,
                      std::span<const std::uint32_t> tokens) const {
    PageNode node;
    node.parent = parent ? Handle::page(*parent, word(*parent)) : namespace_.root();
    const std::uint64_t above =
        parent ? segment_->descriptor(*parent).prefix_hash.load() : namespace_.hash_seed;
    node.prefix_hash = hash_page(above, tokens);
    node.name_space = namespace_.id;
    node.root_generation = namespace_.root_generation;
    node.depth = parent ? depth_in(segment_->descriptor(*parent).depth_class.load()) + 1 : 1;
    node.publisher = worker;
    return node;
  }

  PageIndex announce(WorkerId worker, std::optional<PageIndex> parent,
                     const std::vector<std::uint32_t>& tokens) {
    const PageIndex page = take(worker);
    const AnnounceResult result =
        announce_page(*segment_, StripeIndex(*segment_), worker, page, node_below(worker, parent, tokens), tokens);
    EXPECT_EQ(result.outcome, AnnounceOutcome::kAnnounced);
    return page;
  }

  PageIndex publish(WorkerId worker, PageIndex page) const {
    state(page).store(word(page).with(PageState::kLive).raw);
    FreePages(*segment_).drop_held(worker, std::span(&page, 1));
    return page;
  }

  void lease(WorkerId worker, std::uint32_t slot, PageIndex page) const {
    segment_->worker(worker).leases_high_water.store(slot + 1);
    segment_->leases(worker)[slot].handle.store(Handle::page(page, word(page)).raw);
  }

  // A second canonical page of the same key, in the index too: what rule 9 forbids.
  PageIndex copy_of(PageIndex page) {
    const PageIndex copy = take(kMe);
    const Descriptor& d = segment_->descriptor(page);
    std::vector<std::uint32_t> tokens(d.token_count.load());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::uint64_t pair = segment_->token_words(page)[i / 2].load();
      tokens[i] = static_cast<std::uint32_t>(pair >> (i % 2 * 32));
    }
    const Handle parent{d.parent.load()};
    const auto above = parent.is_page() ? std::optional(parent.page_index()) : std::nullopt;
    const PageNode node = node_below(kMe, above, tokens);
    PageTable(*segment_).write_node(copy, node, tokens);
    state(copy).store(word(copy).with(PageState::kPending, kMe).raw);
    enter_somewhere(node.prefix_hash, copy);
    if (parent.is_page()) segment_->announce_counter(parent.page_index()).fetch_add(1);
    return publish(kMe, copy);
  }

  // Enters the page where `hash` belongs; returns the bucket.
  std::uint64_t enter_somewhere(std::uint64_t hash, PageIndex page) const {
    const IndexPlace place = index_->place_of(hash);
    for (const std::uint64_t b : place.bucket) {
      for (AtomicU64& slot : segment_->bucket(b).entries) {
        if (slot.load() != 0) continue;
        StripeIndex::enter(slot, place, page);
        return b;
      }
    }
    ADD_FAILURE() << "both buckets are full";
    return 0;
  }

  // The bucket where the page's entry stands.
  std::uint64_t bucket_of(std::uint64_t hash, PageIndex page) const {
    const IndexPlace place = index_->place_of(hash);
    for (const std::uint64_t b : place.bucket) {
      for (const AtomicU64& slot : segment_->bucket(b).entries) {
        if (slot.load() == (place.tagged | page.value)) return b;
      }
    }
    ADD_FAILURE() << "no entry";
    return 0;
  }

  std::uint64_t other_bucket(const IndexPlace& place) const {
    std::uint64_t b = 0;
    while (b == place.bucket[0] || b == place.bucket[1])
      ++b;
    return b;
  }

  static Geometry geometry() {
    Geometry g = small_geometry(250);  // the last chunk is not full
    g.tokens_per_page = 5;             // the last token word is not full
    return g;
  }

  const Geometry geometry_ = geometry();
  const std::uint64_t bytes_ = layout_of(geometry_).segment_bytes;
  FileDescriptor fd_;
  std::optional<Segment> segment_;
  std::unique_ptr<StripeIndex> index_;
  OpenNamespace namespace_;
  std::uint32_t cursor_ = 0;
  PageIndex a_, b_, c_, sibling_, short_, pending_, other_pending_, writing_;
};

}  // namespace kvtrie::test
