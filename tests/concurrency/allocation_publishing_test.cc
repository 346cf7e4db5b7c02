// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Allocation against publishing: overlapping prompts are begun, allocated, computed in any order, published page by
// page and read back by others, alone and in batches of 4, 8 and 32, in a pool that is too small for all of them. No
// page is wrong, no request is blocked or broken, nothing is lost.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "tests/concurrency/support/concurrent_requests.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kPages = 256;

enum Seen : std::size_t { kRead, kComputed, kDuplicates, kAwaited, kBatches, kBorrowed, kInherited };

// A tree of prompts: two branches a level, up to nine deep, the beginnings in everybody's mouth.
Path some_path(Requester& me) {
  Path path(2 + me.below(8));
  for (std::size_t i = 0; i < path.size(); ++i) path[i] = 10 * static_cast<PageName>(i) + me.below(i < 2 ? 1 : 2);
  if (me.below(4) == 0) path.back() = 1000 + me.below(500);
  return path;
}

// A sequence and what is known of its pages' bytes.
class Request {
 public:
  Request(Requester& me, const Path& path) : me_(me), prompt_(path) {}
  // Of a batch: its pages are there.
  void start(client::Sequence sequence, std::uint64_t cached_tokens) {
    sequence_ = std::move(sequence);
    pages_ = sequence_.pages();
    cached_ = static_cast<std::uint32_t>(cached_tokens / kTokensPerPage);
    computed_.assign(pages_.size(), false);
    std::fill_n(computed_.begin(), cached_, true);
    me_.expect(pages_.size() >= prompt_.pages(), "fewer pages than asked for");
    me_.saw(kRead, cached_);
    check("just begun");
  }

  const Prompt& prompt() const { return prompt_; }
  std::uint32_t cached() const { return cached_; }
  bool begun() const { return bool{sequence_}; }
  const std::vector<std::uint32_t>& pages() const { return pages_; }

  // The positions that are this sequence's to compute and are not yet.
  std::vector<std::uint32_t> to_compute() const {
    std::vector<kvtrie_own_page> own(sequence_.own_pages({}));
    const std::uint32_t count = sequence_.own_pages(own);
    me_.expect(count == own.size(), "own pages came and went");
    std::vector<std::uint32_t> positions;
    for (const kvtrie_own_page& page : own) {
      if (page.position >= prompt_.pages() || computed_[page.position]) continue;
      me_.expect(page.page == pages_[page.position], "another page than before");
      if (page.state == KVTRIE_PAGE_PRIVATE || page.state == KVTRIE_PAGE_ANNOUNCED) positions.push_back(page.position);
    }
    return positions;
  }
  void compute(std::uint32_t position) {
    write_page(me_.worker, pages_[position], prompt_.digests[position], position);
    computed_[position] = true;
    me_.saw(kComputed);
  }
  // All whose bytes are there, from the beginning on. True when everybody can find the whole prompt.
  bool publish() {
    const auto ready = static_cast<std::uint64_t>(std::ranges::find(computed_, false) - computed_.begin());
    const client::Published published =
        sequence_.publish(std::min<std::uint64_t>(ready, prompt_.pages()) * kTokensPerPage);
    me_.expect(published.outcome == KVTRIE_OK, "publish");
    if (published.result.pages_private != 0) me_.saw(kDuplicates);
    return published.result.published_tokens == prompt_.tokens.size();
  }
  // What others computed for it is there once the whole path is published.
  void take_borrowed() { std::fill_n(computed_.begin(), prompt_.pages(), true); }

  void check(const char* when) const {
    for (std::uint32_t i = 0; i < prompt_.pages(); ++i) {
      if (!computed_[i] || page_has(me_.worker, pages_[i], prompt_.digests[i], i)) continue;
      me_.complain(fmt::format("wrong page {} at position {} ({} cached), {}", pages_[i], i, cached_, when));
    }
  }
  // As an engine that begins anew would see it, through the library's own copy.
  void read_back() const {
    client::Begun again = me_.worker.begin(me_.space, prompt_.tokens);
    if (!again.outcome) return me_.complain("begin to read back");
    me_.expect(again.result.cached_pages == prompt_.pages(), "what is published is not matched");
    std::vector<std::uint64_t> words(kPageBytes / sizeof(std::uint64_t));
    for (std::uint32_t i = 0; i < again.result.cached_pages; ++i) {
      const OrderedByKvtried bytes;
      for (std::uint32_t plane = 0; plane < kPlanes; ++plane) {
        again.sequence.copy_out(std::uint64_t{i} * kTokensPerPage, kTokensPerPage, plane, nullptr, words.data());
        if (replay::first_wrong_word(words, prompt_.digests[i], i, plane) != replay::npos)
          me_.complain(fmt::format("wrong page at position {} is read back", i));
      }
    }
    me_.saw(kRead, again.result.cached_pages);
    me_.expect(again.sequence.release() == KVTRIE_OK, "release of what was read back");
  }
  void release() {
    check("before release");
    me_.expect(sequence_.release() == KVTRIE_OK, "release");
  }

 private:
  Requester& me_;
  Prompt prompt_;
  client::Sequence sequence_;
  std::vector<std::uint32_t> pages_;
  std::uint32_t cached_ = 0;
  std::vector<bool> computed_;  // by position: its bytes must be right from now on
};

void expect_published(Requester& me, Request& request) {
  const bool all = comes([&] { return me.board.complaints.load() != 0 || request.publish(); });
  me.expect(all, "a prompt could not be published: somebody blocks it");
  if (me.board.complaints.load() == 0) request.read_back();
}

// One request alone.
void live_alone(Requester& me) {
  Request request(me, some_path(me));
  const std::vector<std::uint32_t>& tokens = request.prompt().tokens;
  const std::uint64_t total = tokens.size() + me.below(2 * kTokensPerPage);
  client::Begun begun = me.worker.begin(me.space, tokens);
  if (!begun.outcome) return me.complain("begin");
  if (begun.result.pending_pages != 0 && me.below(2) == 0) {
    const client::Waited waited = begun.sequence.wait_pending(me.below(3));
    me.expect(waited.outcome == KVTRIE_OK || waited.outcome == KVTRIE_E_TIMEOUT, "wait_pending");
    if (waited.result.cached_pages > begun.result.cached_pages) me.saw(kAwaited);
    begun.result = waited.result;
  }
  if (begun.sequence.allocate(total)) {
    request.start(std::move(begun.sequence), begun.result.cached_tokens);
  } else {
    begun.sequence = {};
    client::Batch one;
    one.add(me.space, tokens, total);
    const client::AllocateOptions wait = patience();
    if (!one.prepare(me.worker, &wait)) return me.complain("it waited for pages in vain");
    request.start(std::move(one.sequence(0)), one.item(0).cached_tokens);
  }
  std::vector<std::uint32_t> order = request.to_compute();
  me.shuffle(order);  // of layers and streams that end as they like
  for (const std::uint32_t position : order) {
    request.compute(position);
    (void)request.publish();
    me.let_others();
  }
  expect_published(me, request);
  request.release();
}

// Who computes what, as the batch says it, is what the pages say.
void expect_shares(Requester& me, const client::Batch& batch, std::size_t i, const Request& request,
                   const std::vector<std::uint32_t>& computed_by, const std::vector<Request>& all) {
  const std::uint64_t shared_tokens = batch.item(i).cached_tokens + batch.item(i).shared_tokens;
  const auto shared_until = static_cast<std::uint32_t>(shared_tokens / kTokensPerPage);
  for (std::uint32_t position = 0; position < request.prompt().pages(); ++position) {
    const std::uint32_t by = computed_by[position];
    if (position < request.cached()) {
      me.expect(by == KVTRIE_CACHED, "somebody computes a cached page");
    } else if (position < shared_until) {
      me.expect(by < i && all[by].pages()[position] == request.pages()[position], "a shared page of nobody before it");
      me.saw(kBorrowed);
    } else {
      me.expect(by == i, "somebody else computes an own page");
    }
  }
}

void live_in_a_batch(Requester& me, std::size_t size) {
  std::vector<Request> requests;
  for (std::size_t i = 0; i < size; ++i) requests.emplace_back(me, some_path(me));
  std::vector<std::vector<std::uint32_t>> computed_by(size);
  client::Batch batch;
  for (std::size_t i = 0; i < size; ++i) {
    const std::vector<std::uint32_t>& tokens = requests[i].prompt().tokens;
    computed_by[i].resize(requests[i].prompt().pages());
    batch.add(me.space, tokens, tokens.size(), nullptr, computed_by[i].data());
  }
  const client::AllocateOptions wait = patience();
  if (const client::Outcome got = batch.prepare(me.worker, &wait); !got)
    return me.complain(fmt::format("a batch of {} waited in vain: {}", size, int{got.code()}));
  me.saw(kBatches);
  for (std::size_t i = 0; i < size; ++i) {
    requests[i].start(std::move(batch.sequence(i)), batch.item(i).cached_tokens);
    expect_shares(me, batch, i, requests[i], computed_by[i], requests);
  }

  std::vector<std::size_t> order(size);
  std::iota(order.begin(), order.end(), std::size_t{0});
  me.shuffle(order);
  // Some are cancelled before they computed anything: what others needed of them, the next one has to compute.
  for (std::size_t i = 0; i < size; ++i) {
    if (me.below(8) == 0) requests[i].release();
  }
  std::erase_if(order, [&](std::size_t i) { return !requests[i].begun(); });
  for (const std::size_t i : order) {
    std::vector<std::uint32_t> positions = requests[i].to_compute();
    for (const std::uint32_t position : positions) {
      if (computed_by[i][position] != i) me.saw(kInherited);
    }
    me.shuffle(positions);
    for (const std::uint32_t position : positions) {
      requests[i].compute(position);
      (void)requests[i].publish();
      me.let_others();
    }
  }
  // Parents first is not the caller's care: each may be published as soon as what it shares is.
  me.shuffle(order);
  const bool all = comes([&] {
    bool done = true;
    for (const std::size_t i : order) {
      requests[i].take_borrowed();
      done &= requests[i].publish();
    }
    return done || me.board.complaints.load() != 0;
  });
  me.expect(all, fmt::format("a batch of {} could not be published", size));
  if (me.board.complaints.load() != 0) return;
  // A page stays for all that share it, whoever of them ends first.
  for (const std::size_t i : order) {
    requests[i].read_back();
    requests[i].release();
    me.let_others();
  }
}

class AllocationPublishingTest : public ConcurrencyTest {
 protected:
  void expect_all_well() {
    expect_at_rest();
    EXPECT_GT(seen(kRead), 0U);
    EXPECT_GT(seen(kComputed), 0U);
    EXPECT_GT(segment().total(Counter::kEvictions), 0U);
    expect_all_pages_can_be_freed();
  }
};

TEST_P(AllocationPublishingTest, RequestsThatOverlapReadEachOthersPages) {
  serve({"--pages", "128", "--low", "10", "--high", "20"});
  const std::uint32_t rounds = 20000 / GetParam().requests;
  run_together([rounds](Requester& me) {
    me.meet();
    for (std::uint32_t round = 0; me.goes_on(round, rounds); ++round) live_alone(me);
  });
  if (GetParam().requests == 32) {
    EXPECT_GT(seen(kDuplicates), 0U);
    EXPECT_GT(seen(kAwaited), 0U);
  }
  expect_all_well();
}

TEST_P(AllocationPublishingTest, BatchesShareWhatTheyCompute) {
  serve({"--pages", std::to_string(kPages), "--low", "20", "--high", "40"});
  const std::uint32_t rounds = std::max(6U, 400 / GetParam().requests);
  run_together([rounds](Requester& me) {
    me.meet();
    for (std::uint32_t round = 0; me.goes_on(round, rounds); ++round) {
      for (const std::size_t size : {4U, 8U, 32U}) {
        if (me.board.complaints.load() == 0) live_in_a_batch(me, size);
      }
    }
  });
  EXPECT_GT(seen(kBorrowed), 0U);
  if (seen(kBatches) > 200) {
    EXPECT_GT(seen(kInherited), 0U);
  }
  expect_all_well();
}

INSTANTIATE_TEST_SUITE_P(, AllocationPublishingTest, all_settings(), setting_name);

}  // namespace
}  // namespace kvtrie::test
