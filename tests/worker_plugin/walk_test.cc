// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// walk() against a search over all descriptors: in random tries whose pages lie in runs of all lengths, with whatever
// else may lie about in a segment. Where that search ends, the walk must end; and when pages are evicted and used again
// in the middle of it, it must find at least those that stay.

#include "worker_plugin/walk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "shm/crash_point.h"
#include "tests/worker_plugin/random_trie.h"

namespace kvtrie {
namespace {

using test::Found;
using test::LocalCache;
using test::PlainSearch;
using test::Prompt;
using test::RandomTrie;

class WalkTest : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  struct Seen {
    std::uint64_t pages = 0, jumps = 0, pending = 0, announced = 0, resumed = 0;
  };

  // Walks from the root or from a page of the path that is expected.
  void compare(RandomTrie& trie, const PlainSearch& plain) {
    const NamespaceId id{static_cast<std::uint16_t>(trie.below(2))};
    const Handle root = trie.some_root(id);
    const Prompt prompt = trie.some_prompt();
    const Found expected = plain.search(root, prompt);
    const std::size_t depth = expected.path.size();
    const std::size_t from = trie.one_in(3) ? trie.below(static_cast<std::uint32_t>(depth) + 1) : 0;
    std::vector<Handle> path(expected.path.begin(), expected.path.begin() + static_cast<std::ptrdiff_t>(from));
    const std::span<const std::uint32_t> all = prompt;
    const std::span<const std::uint32_t> tokens = all.subspan(from * GetParam());
    const WalkStart start{from == 0 ? root : path.back(), trie.segment().name_space(id).hash_seed.load()};
    const WalkEnd end = walk(trie.segment(), trie.index(), start, tokens, path);
    ASSERT_EQ(path, expected.path) << "from " << from << ", " << path.size() << " of " << depth << " pages";
    ASSERT_FALSE(end.corrupt);
    // One without an entry is found or not: it depends on where it lies.
    if (end.pending.none()) {
      for (const Handle page : expected.pending) ASSERT_EQ(entries_of(trie, page), 0U);
      ASSERT_EQ(end.pending_pages, 0U);
    } else {
      ASSERT_NE(std::ranges::find(expected.pending, end.pending), expected.pending.end());
      ASSERT_EQ(end.pending_pages, plain.announced(end.pending, all.subspan(depth * GetParam())));
    }
    seen_.pages += depth - from;
    for (std::size_t i = from + 1; i < depth; ++i) {
      seen_.jumps += path[i].page_index().value != path[i - 1].page_index().value + 1;
    }
    seen_.pending += !end.pending.none();
    seen_.announced += end.pending_pages;
    seen_.resumed += from != 0 && depth > from;
  }

  static unsigned entries_of(const RandomTrie& trie, Handle page) {
    return trie.index().occurrences(trie.segment().descriptor(page.page_index()).prefix_hash.load(), page.page_index());
  }

  Seen seen_;
};

TEST_P(WalkTest, FindsWhatASearchOverAllPagesFinds) {
  for (unsigned seed = 1; seed <= 12 && !HasFailure(); ++seed) {
    RandomTrie trie(GetParam(), seed);
    trie.grow();
    const PlainSearch plain(trie.segment());
    for (int i = 0; i < 1000 && !HasFatalFailure(); ++i) compare(trie, plain);
  }

  EXPECT_GT(seen_.pages, 10'000U);
  EXPECT_GT(seen_.jumps, seen_.pages / 20);
  EXPECT_GT(seen_.pending, 50U);
  EXPECT_GT(seen_.announced, 2 * seen_.pending);
  EXPECT_GT(seen_.resumed, 100U);
}

#ifdef KVTRIE_DEV
// Something else happens after some of the pages that a walk enters, at most twice.
class Meanwhile {
 public:
  Meanwhile(RandomTrie& trie, std::function<void()> what) {
    trie_ = &trie;
    what_ = std::move(what);
    times_ = 0;
    crash_hook.store([](const char* place) {
      if (std::string(place) != "walk.after_page" || times_ == 2 || !trie_->one_in(12)) return;
      const CrashHook hook = crash_hook.exchange(nullptr);
      ++times_;
      what_();
      crash_hook.store(hook);
    });
  }
  ~Meanwhile() { crash_hook.store(nullptr); }
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;

 private:
  static inline RandomTrie* trie_ = nullptr;
  static inline std::function<void()> what_;
  static inline int times_ = 0;
};

// What was not there yet when it was looked for ahead.
TEST_P(WalkTest, FindsWhatIsPublishedBeforeItIsReached) {
  std::uint64_t came = 0;
  for (unsigned seed = 1; seed <= 4 && !HasFailure(); ++seed) {
    RandomTrie trie(GetParam(), seed);
    trie.grow();
    for (int i = 0; i < 100 && !HasFailure(); ++i) {
      trie.churn();
      const NamespaceId id{static_cast<std::uint16_t>(trie.below(2))};
      const Handle root = Handle::root(id, trie.segment().name_space(id).root_generation.load());
      const Prompt prompt = trie.some_prompt();
      const std::size_t before = PlainSearch(trie.segment()).search(root, prompt).path.size();
      std::vector<Handle> path;
      {
        const Meanwhile meanwhile(trie, [&] { trie.cache(id, prompt); });
        const WalkStart start{root, trie.segment().name_space(id).hash_seed.load()};
        (void)walk(trie.segment(), trie.index(), start, prompt, path);
      }
      // Unless nothing happened: then it ends where it did before.
      const Found after = PlainSearch(trie.segment()).search(root, prompt);
      ASSERT_EQ(path, after.path) << before << " pages were there before";
      came += path.size() - before;
    }
  }
  EXPECT_GT(came, 30U);
}

TEST_P(WalkTest, FindsWhatStaysWhateverHappensMeanwhile) {
  std::uint64_t stayed = 0, came = 0, lost = 0;
  for (unsigned seed = 1; seed <= 4 && !HasFailure(); ++seed) {
    RandomTrie trie(GetParam(), seed);
    trie.grow();
    for (int i = 0; i < 150 && !HasFailure(); ++i) {
      const NamespaceId id{static_cast<std::uint16_t>(trie.below(2))};
      const Handle root = Handle::root(id, trie.segment().name_space(id).root_generation.load());
      const Prompt prompt = trie.some_prompt();
      const Found before = PlainSearch(trie.segment()).search(root, prompt);
      std::vector<Handle> path;
      {
        const Meanwhile meanwhile(trie, [&] { trie.churn(); });
        const WalkStart start{root, trie.segment().name_space(id).hash_seed.load()};
        ASSERT_FALSE(walk(trie.segment(), trie.index(), start, prompt, path).corrupt);
      }
      const Found after = PlainSearch(trie.segment()).search(root, prompt);
      const auto same = std::ranges::mismatch(before.path, after.path).in1 - before.path.begin();
      ASSERT_GE(std::ranges::mismatch(path, after.path).in1 - path.begin(), same) << "a page that stayed was missed";
      // A lease would hold the deepest page that still is what it was: then all above it is right (rule 1).
      const auto lives = [&](Handle page) {
        const StateWord word{trie.segment().descriptor(page.page_index()).state.load()};
        return word.readable() && page.same_life(word);
      };
      while (!path.empty() && !lives(path.back())) {
        path.pop_back();
        ++lost;
      }
      ASSERT_LE(path.size(), after.path.size());
      ASSERT_TRUE(std::equal(path.begin(), path.end(), after.path.begin())) << "a page of another path";
      stayed += static_cast<std::uint64_t>(same);
      came += path.size() - static_cast<std::size_t>(same);
    }
  }
  EXPECT_GT(stayed, 1000U);
  EXPECT_GT(came, 30U);
  EXPECT_GT(lost, 30U);
}
#endif

// Words of other pages, small changes and garbage, in what leads from page to page.
void damage(RandomTrie& trie) {
  const Segment& segment = trie.segment();
  const PageIndex page{trie.below(segment.page_count())}, other{trie.below(segment.page_count())};
  Descriptor& here = segment.descriptor(page);
  const Descriptor& there = segment.descriptor(other);
  const std::uint64_t garbage = std::uint64_t{trie.below(~0U)} << 32 | trie.below(~0U);
  switch (trie.below(8)) {
    case 0: return here.state.store(trie.one_in(2) ? garbage : here.state.load() ^ 1U << trie.below(32));
    case 1: return here.parent.store(Handle::page(other, StateWord{there.state.load()}).raw);
    case 2: return here.prefix_hash.store(trie.one_in(2) ? there.prefix_hash.load() : garbage);
    case 3: return here.depth_class.store(trie.one_in(2) ? there.depth_class.load() : trie.below(~0U));
    case 4: return here.child_hint.store(trie.one_in(2) ? page.value : trie.below(~0U));
    case 5: return here.token_count.store(static_cast<std::uint16_t>(trie.below(1 << 16)));
    case 6: return segment.token_words(page)->store(segment.token_words(other)->load());
    default: {
      AtomicU64& entry = segment.bucket(trie.below(static_cast<std::uint32_t>(segment.layout().bucket_count)))
                             .entries[trie.below(kBucketEntries)];
      return entry.store(trie.one_in(2) ? garbage : (entry.load() & ~kIndexMask) | other.value);
    }
  }
}

TEST_P(WalkTest, EndsWithPagesOfTheSegmentWhateverItsBytes) {
  std::uint64_t corrupt = 0, pages = 0;
  for (unsigned seed = 1; seed <= 8 && !HasFailure(); ++seed) {
    RandomTrie trie(GetParam(), seed);
    trie.grow();
    for (int i = 0; i < 400 && !HasFailure(); ++i) {
      damage(trie);
      const NamespaceId id{static_cast<std::uint16_t>(trie.below(2))};
      const Prompt prompt = trie.some_prompt();
      std::vector<Handle> path;
      const WalkStart start{trie.some_root(id), trie.segment().name_space(id).hash_seed.load()};
      const WalkEnd end = walk(trie.segment(), trie.index(), start, prompt, path);
      ASSERT_LE(path.size() + end.pending_pages, prompt.size() / GetParam());
      ASSERT_TRUE(end.pending.none() || trie.segment().has(end.pending.page_index()));
      for (const Handle page : path) ASSERT_TRUE(trie.segment().has(page.page_index()));
      corrupt += end.corrupt;
      pages += path.size();
      std::ranges::sort(path, {}, &Handle::raw);
      ASSERT_EQ(std::ranges::adjacent_find(path), path.end()) << "a page twice";
    }
  }
  EXPECT_GT(corrupt, 10U);
  EXPECT_GT(pages, 1000U);
}

// What the index names was announced, so an impossible word there is corrupt; a neighbour or a hinted page may be
// anybody's, and whatever stands there stops nobody (C7).
TEST_P(WalkTest, OnlyAnImpossibleWordThatTheIndexNamesIsCorrupt) {
  LocalCache cache({.tokens_per_page = GetParam()});
  const StripeIndex index(cache.segment());
  const std::unique_ptr<Worker> worker = cache.worker(1);
  Prompt prompt = test::path(GetParam(), {1, 2, 3});
  Sequence sequence;
  BeginReport report;
  PublishReport published;
  ASSERT_TRUE(worker->begin(LocalCache::name_space(), prompt, {}, sequence, report));
  ASSERT_TRUE(worker->allocate(sequence, prompt.size(), 0));
  ASSERT_TRUE(worker->publish(sequence, prompt.size(), published));
  const Prompt more = test::path(GetParam(), {4, 5});
  prompt.insert(prompt.end(), more.begin(), more.end());
  const auto begin = [&](std::vector<Handle>& path) {
    const WalkStart start{Handle::root({}, 1), cache.segment().name_space({}).hash_seed.load()};
    return walk(cache.segment(), index, start, prompt, path);
  };
  Descriptor& last = cache.segment().descriptor(sequence.page_at(2));
  const std::uint32_t neighbour = sequence.page_at(2).value + 1;
  ASSERT_LT(neighbour + 1, cache.segment().page_count());
  cache.segment().descriptor({neighbour}).state.store(~0ULL);
  cache.segment().descriptor({neighbour + 1}).state.store(~0ULL);
  for (const std::uint32_t hinted : {neighbour, neighbour + 1}) {
    last.child_hint.store(hinted + 1);
    std::vector<Handle> path;
    EXPECT_FALSE(begin(path).corrupt);
    EXPECT_EQ(path.size(), 3U);
  }
  const std::uint64_t hash = hash_page(last.prefix_hash.load(), std::span(more).first(GetParam()));
  const IndexPlace place = index.place_of(hash);
  AtomicU64* slot = index.vacancy(worker->slot(), place);
  ASSERT_NE(slot, nullptr);
  StripeIndex::enter(*slot, place, {neighbour});
  std::vector<Handle> path;
  EXPECT_TRUE(begin(path).corrupt);
  worker->release(sequence);
}

INSTANTIATE_TEST_SUITE_P(TokensOfAPage, WalkTest, ::testing::Values(1, 3, 16, 17),
                         [](const auto& tokens) { return std::to_string(tokens.param); });

}  // namespace
}  // namespace kvtrie
