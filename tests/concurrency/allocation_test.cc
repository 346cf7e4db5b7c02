// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Requests that allocate at once: a page is one request's to write at a time, what a request leases does not change
// under it, all or none, and who waits is served.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/concurrency/support/concurrent_requests.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kPages = 256;
constexpr std::uint32_t kSharedPages = 4;  // at the beginning of a prompt
constexpr std::uint32_t kFamilies = 80;    // of prompts with the same beginning

enum Seen : std::size_t { kHits, kNotServedAtOnce, kGrown, kGivenBack, kServed };

class AllocationTest : public ConcurrencyTest {};

// One request of NoPageIsWrittenByTwo.
class Request {
 public:
  Request(Requester& me, std::uint32_t round) : me_(me), prompt_(path(me, round)), mark_{me.number + 1, round} {}

  void live() {
    if (!begin_and_allocate()) return me_.complain("it waited for pages in vain");
    take_from(cached_);
    check("after allocate");
    me_.let_others();
    grow();
    me_.let_others();
    publish_what_others_share();
    me_.let_others();
    give_back_the_end();
    check("before release");
    for (std::uint32_t i = first_mine_; i < pages_.size(); ++i) me_.drop(pages_[i]);
    me_.expect(sequence_.release() == KVTRIE_OK, "release");
  }

 private:
  // A beginning that others have, too, and an end that nobody else has.
  static Path path(Requester& me, std::uint32_t round) {
    const std::uint32_t family = me.below(kFamilies);
    Path names(kSharedPages, family);
    for (std::uint32_t i = me.below(5); i > 0; --i) names.push_back(1000 + round * me.count + me.number);
    return names;
  }
  std::uint64_t all_tokens(std::uint32_t pages) const { return std::uint64_t{pages} * kTokensPerPage; }

  // As an engine does: at once if there are pages, else with patience, and then without holding anything.
  bool begin_and_allocate() {
    const std::uint32_t pages = prompt_.pages() + me_.below(4);
    client::Begun begun = me_.worker.begin(me_.space, prompt_.tokens);
    if (!begun.outcome) throw std::runtime_error("begin");
    cached_ = begun.result.cached_pages;
    sequence_ = std::move(begun.sequence);
    const client::Outcome got = sequence_.allocate(all_tokens(pages));
    if (!got) {
      me_.expect(got == KVTRIE_E_NOT_NOW, "allocate without patience");
      me_.expect(sequence_.page_count() == cached_, "an allocation that failed left pages");
      me_.saw(kNotServedAtOnce);
      me_.expect(sequence_.release() == KVTRIE_OK, "release after a failed allocation");
      client::Batch one;
      one.add(me_.space, prompt_.tokens, all_tokens(pages));
      const client::AllocateOptions wait = patience();
      if (!one.prepare(me_.worker, &wait)) return false;
      cached_ = static_cast<std::uint32_t>(one.item(0).cached_tokens / kTokensPerPage);
      sequence_ = std::move(one.sequence(0));
    }
    if (cached_ != 0) me_.saw(kHits);
    first_mine_ = cached_;
    pages_ = sequence_.pages();
    me_.expect(pages_.size() == std::max(pages, cached_), "not as many pages as asked for");
    return true;
  }

  // What others will share has the bytes of its tokens; all else has this request's own.
  replay::PathDigest digest(std::uint32_t position) const {
    return position < kSharedPages ? prompt_.digests[position] : mark_;
  }
  void take_from(std::uint32_t position) {
    for (std::uint32_t i = position; i < pages_.size(); ++i) {
      me_.hold(pages_[i]);
      write_page(me_.worker, pages_[i], digest(i), i);
    }
  }
  void check(const char* when) {
    for (std::uint32_t i = 0; i < pages_.size(); ++i) {
      if (page_has(me_.worker, pages_[i], digest(i), i)) continue;
      me_.complain(fmt::format("page {} at position {} ({} cached) changed, {}", pages_[i], i, cached_, when));
    }
  }
  void grow() {
    const auto before = static_cast<std::uint32_t>(pages_.size());
    // Without waiting: who waits while it holds pages waits for itself.
    const client::Outcome got = sequence_.allocate(all_tokens(before + 1 + me_.below(4)));
    if (!got) return me_.expect(got == KVTRIE_E_NOT_NOW, "growing");
    me_.saw(kGrown);
    pages_ = sequence_.pages();
    take_from(before);
  }
  void publish_what_others_share() {
    for (std::uint32_t i = cached_; i < kSharedPages; ++i) me_.drop(pages_[i]);
    first_mine_ = std::max(cached_, kSharedPages);
    const client::Published published = sequence_.publish(all_tokens(kSharedPages));
    me_.expect(published.outcome == KVTRIE_OK, "publish");
  }
  void give_back_the_end() {
    // Of announced pages all those behind must go, too: from the end.
    const auto mine = static_cast<std::uint32_t>(pages_.size()) - first_mine_;
    const std::uint32_t count = std::min(mine, me_.below(3));
    if (count == 0) return;
    const auto first = static_cast<std::uint32_t>(pages_.size()) - count;
    for (std::uint32_t i = first; i < pages_.size(); ++i) {
      me_.expect(page_has(me_.worker, pages_[i], digest(i), i), "a page that is given back had changed");
      me_.drop(pages_[i]);
    }
    sequence_.give_back(first, count);
    me_.saw(kGivenBack);
    pages_.resize(first);
    me_.expect(sequence_.page_count() == first, "what was given back is still there");
  }

  Requester& me_;
  const Prompt prompt_;
  const replay::PathDigest mark_;
  client::Sequence sequence_;
  std::uint32_t cached_ = 0;
  std::uint32_t first_mine_ = 0;  // of the positions that nobody else reads
  std::vector<std::uint32_t> pages_;
};

TEST_P(AllocationTest, NoPageIsWrittenByTwoAndNoneChangesUnderALease) {
  serve({"--pages", std::to_string(kPages), "--low", "5", "--high", "10"});
  const std::uint32_t rounds = 16000 / GetParam().requests;
  run_together([rounds](Requester& me) {
    me.meet();
    for (std::uint32_t round = 0; me.goes_on(round, rounds); ++round) Request(me, round).live();
  });
  expect_at_rest();
  // All of it must have happened, or nothing was shown.
  EXPECT_GT(seen(kHits), 0U);
  EXPECT_GT(seen(kGrown), 0U);
  EXPECT_GT(seen(kGivenBack), 0U);
  if (GetParam().requests == 32) {
    EXPECT_GT(seen(kNotServedAtOnce), 0U);
  }
  EXPECT_GT(segment().total(Counter::kEvictions), 0U);
  expect_all_pages_can_be_freed();
}

// A batch of `items` that together need `pages` pages of their own.
client::Batch batch_of(const Requester& me, std::uint32_t items, std::uint32_t pages) {
  client::Batch batch;
  for (std::uint32_t i = 0; i < items; ++i) {
    const std::uint32_t of_item = pages / items + (i < pages % items ? 1 : 0);
    batch.add(me.space, {}, std::uint64_t{of_item} * kTokensPerPage);
  }
  return batch;
}

void expect_refused(Requester& me, std::uint32_t pages, std::uint32_t wait_ms, kvtrie_code code) {
  client::Batch batch = batch_of(me, 4, pages);
  const client::AllocateOptions wait = patience(wait_ms);
  const client::Outcome outcome = batch.prepare(me.worker, &wait);
  me.expect(outcome == code, fmt::format("{} pages, {} ms: answered {}", pages, wait_ms, int{outcome.code()}));
  for (std::size_t i = 0; i < batch.size(); ++i)
    me.expect(batch.item(i).sequence.id == 0, "a batch that failed has a sequence");
}

TEST_P(AllocationTest, MoreThanThereIsLeavesNothingHeld) {
  constexpr std::uint32_t kMost = kPages * 6 / 10;
  serve({"--pages", std::to_string(kPages)});
  run_together([](Requester& me) {
    client::Batch held = batch_of(me, 8, kMost);
    if (me.number == 0) me.expect(held.prepare(me.worker) == KVTRIE_OK, "a batch that fits");
    me.meet();
    expect_refused(me, kPages + 1, 0, KVTRIE_E_NEVER);
    expect_refused(me, kPages + 1, patience_ms(), KVTRIE_E_NEVER);
    expect_refused(me, kMost, 0, KVTRIE_E_NOT_NOW);
    expect_refused(me, kMost, 10, KVTRIE_E_TIMEOUT);
    client::Begun alone = me.worker.begin(me.space, {});
    me.expect(alone.sequence.allocate((kPages + 1) * kTokensPerPage) == KVTRIE_E_NEVER, "allocate more than there is");
    const client::AllocateOptions soon = patience(10);
    me.expect(alone.sequence.allocate(kMost * kTokensPerPage, &soon) == KVTRIE_E_TIMEOUT, "allocate more than is free");
    me.expect(alone.sequence.page_count() == 0, "an allocation that failed left pages");
    me.meet();
    // To the last page: nobody holds one, and no wish is left that binds them.
    if (me.number == 0) {
      client::Batch rest = batch_of(me, 3, kPages - kMost);
      me.expect(rest.prepare(me.worker) == KVTRIE_OK, "failed allocations hold pages");
      for (std::size_t i = 0; i < held.size(); ++i) held.sequence(i) = {};
    }
    me.meet();
    // One after the other, since none leaves room for a second.
    client::Batch mine = batch_of(me, 8, kMost);
    const client::AllocateOptions wait = patience();
    for (int round = 0; round < 3; ++round) {
      const client::Outcome outcome = mine.prepare(me.worker, &wait);
      if (!outcome) return me.complain(fmt::format("a batch was not served: {}", int{outcome.code()}));
      for (std::size_t i = 0; i < mine.size(); ++i) {
        for (const std::uint32_t page : mine.sequence(i).pages()) me.hold(page);
      }
      me.let_others();
      for (std::size_t i = 0; i < mine.size(); ++i) {
        for (const std::uint32_t page : mine.sequence(i).pages()) me.drop(page);
        mine.sequence(i) = {};
      }
    }
  });
  expect_at_rest();
  EXPECT_EQ(pages_in(PageState::kFree), kPages);
  expect_all_pages_can_be_freed();
}

TEST_P(AllocationTest, WhoWaitsIsServed) {
  serve({"--pages", std::to_string(kPages)});
  const client::Worker keeper = attach();
  client::Begun all = keeper.begin(open_space(keeper), {});
  ASSERT_TRUE(all.sequence.allocate(kPages * kTokensPerPage) == KVTRIE_OK);
  // Threads of one worker are one waiter at a time, the others come after it.
  const std::uint32_t waiters = GetParam().apart == Apart::kThreads ? 1 : GetParam().requests;
  bool let = false;
  run_together(
      [](Requester& me) {
        me.meet();
        client::Begun begun = me.worker.begin(me.space, {});
        // Not all at once: they are served in turn, each by who came before.
        const client::AllocateOptions wait = patience();
        const std::uint32_t pages = kPages / 2 - me.number % 3;
        const client::Outcome got = begun.sequence.allocate(std::uint64_t{pages} * kTokensPerPage, &wait);
        if (!got) return me.complain(fmt::format("it waited in vain: {}", int{got.code()}));
        for (const std::uint32_t page : begun.sequence.pages()) me.hold(page);
        me.let_others();
        for (const std::uint32_t page : begun.sequence.pages()) me.drop(page);
        me.saw(kServed);
      },
      [&] {
        if (let || segment().total(Counter::kWaits) < waiters) return;
        let = true;
        EXPECT_EQ(seen(kServed), 0U);
        EXPECT_TRUE(all.sequence.release() == KVTRIE_OK);
      });
  EXPECT_TRUE(let);
  EXPECT_EQ(seen(kServed), GetParam().requests);
  expect_at_rest();
}

INSTANTIATE_TEST_SUITE_P(, AllocationTest, all_settings(), setting_name);

}  // namespace
}  // namespace kvtrie::test
