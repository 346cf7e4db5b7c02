// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// walk() against a search over all descriptors: in random tries whose pages lie in runs of all lengths, with whatever
// else may lie about in a segment. Where that search ends, the walk must end; and when pages are evicted and used again
// in the middle of it, it must find at least those that stay.

#include "worker_plugin/walk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "shm/crash_point.h"
#include "tests/support/local_cache.h"

namespace kvtrie {
namespace {

using test::LocalCache;
using test::LocalCacheOptions;
using Prompt = std::vector<std::uint32_t>;

struct Found {
  std::vector<Handle> path;
  std::vector<Handle> pending;  // any of these comes next
};

// All canonical whole pages by parent: state words, links and tokens, no index, no hash, no guess.
class PlainSearch {
 public:
  explicit PlainSearch(const Segment& segment) : segment_(segment), page_tokens_(segment.tokens_per_page()) {
    for (std::uint32_t page = 0; page < segment.page_count(); ++page) {
      const Descriptor& descriptor = segment.descriptor({page});
      if (!word({page}).canonical() || descriptor.token_count.load() != page_tokens_) continue;
      children_[descriptor.parent.load()].push_back({page});
    }
  }

  Found search(Handle root, std::span<const std::uint32_t> tokens) const {
    Found found;
    for (Handle at = root; tokens.size() >= page_tokens_; tokens = tokens.subspan(page_tokens_)) {
      const std::vector<Handle> next = children(at, tokens);
      const auto readable = [&](Handle page) { return word(page.page_index()).readable(); };
      EXPECT_LE(std::ranges::count_if(next, readable), 1) << "two pages of one key";
      const auto hit = std::ranges::find_if(next, readable);
      if (hit == next.end()) {
        found.pending = next;
        break;
      }
      found.path.push_back(at = *hit);
    }
    return found;
  }

  std::uint32_t announced(Handle pending, std::span<const std::uint32_t> tokens) const {
    std::uint32_t pages = 0;
    for (std::vector<Handle> next{pending}; !next.empty(); ++pages) {
      tokens = tokens.subspan(page_tokens_);
      next = tokens.size() < page_tokens_ ? std::vector<Handle>{} : children(next.front(), tokens);
    }
    return pages;
  }

 private:
  StateWord word(PageIndex page) const { return {segment_.descriptor(page).state.load()}; }
  std::vector<Handle> children(Handle parent, std::span<const std::uint32_t> tokens) const {
    std::vector<Handle> same;
    const auto found = children_.find(parent.raw);
    if (found == children_.end()) return same;
    for (const PageIndex page : found->second) {
      const AtomicU64* words = segment_.token_words(page);
      const auto token = [&](std::uint32_t i) {
        return static_cast<std::uint32_t>(words[i / 2].load() >> 32 * (i % 2));
      };
      std::uint32_t i = 0;
      while (i < page_tokens_ && token(i) == tokens[i]) ++i;
      if (i == page_tokens_) same.push_back(Handle::page(page, word(page)));
    }
    return same;
  }

  const Segment& segment_;
  const std::uint32_t page_tokens_;
  std::map<std::uint64_t, std::vector<PageIndex>> children_;
};

// A full segment: a third worker holds what no other has, and gives back one run of pages after the other, so that
// the next pages of a prompt come to lie wherever that is.
class RandomTrie {
 public:
  RandomTrie(std::uint32_t page_tokens, unsigned seed)
      : page_tokens_(page_tokens), random_(seed), cache_({.pages = kPages, .tokens_per_page = page_tokens}),
        index_(segment()), builder_(cache_.worker(1)), announcer_(cache_.worker(2)), holder_(cache_.worker(3)),
        position_(kPages) {
    BeginReport report;
    EXPECT_TRUE(holder_->begin(LocalCache::name_space(), {}, {.publish = false}, held_, report));
    EXPECT_TRUE(holder_->allocate(held_, std::uint64_t{kPages} * page_tokens, 0));
    for (std::uint32_t i = 0; i < kPages; ++i) position_[held_.page_at(i).value] = i;
    for (std::uint32_t i = 0; i < kPages; ++i) holds_.push_back(i);
    std::ranges::shuffle(holds_, random_);
  }

  const Segment& segment() const { return cache_.segment(); }
  const StripeIndex& index() const { return index_; }
  std::uint32_t below(std::uint32_t end) { return static_cast<std::uint32_t>(random_() % end); }
  bool one_in(std::uint32_t many) { return below(many) == 0; }

  // Until nothing is left to be given.
  void grow() {
    for (unsigned paths = 0; !holds_.empty(); ++paths) {
      const Prompt prompt = new_prompt();
      const auto id = static_cast<std::uint16_t>(below(2));
      if (one_in(3)) plant_entries(id, prompt);
      if (one_in(6) && pending_.size() < 40) {
        pending_.emplace_back();
        add(*announcer_, id, prompt, pending_.back());
      } else {
        Sequence sequence;
        add(*builder_, id, prompt, sequence);
        builder_->release(sequence);
      }
      prompts_.push_back(prompt);
      spoil_hints();
      if (paths % 40 == 39) segment().name_space({id}).root_generation.fetch_add(1);  // flushed
    }
  }

  // Evicts, and uses the pages again for others or for the same.
  void churn() {
    (void)cache_.evict(1 + below(300));
    for (std::uint32_t paths = below(6); paths > 0; --paths) {
      const Prompt prompt = one_in(3) ? new_prompt() : prompts_[below(static_cast<std::uint32_t>(prompts_.size()))];
      Sequence sequence;
      BeginReport report;
      PublishReport published;
      const NamespaceRef name_space = LocalCache::name_space(static_cast<std::uint16_t>(below(2)));
      ASSERT_TRUE(builder_->begin(name_space, prompt, {}, sequence, report));
      if (builder_->allocate(sequence, prompt.size(), 0)) {
        ASSERT_TRUE(builder_->publish_incomplete(sequence, prompt.size(), published));
      }
      builder_->release(sequence);
    }
  }

  // One that is there, in part or with more behind it.
  Prompt some_prompt() {
    Prompt prompt = prompts_[below(static_cast<std::uint32_t>(prompts_.size()))];
    if (one_in(3)) prompt.resize(below(static_cast<std::uint32_t>(prompt.size()) + 1));
    if (one_in(3) && !prompt.empty()) prompt[below(static_cast<std::uint32_t>(prompt.size()))] ^= 1U << below(32);
    for (std::uint32_t more = one_in(3) ? below(3) : 0; more > 0; --more) append_page(prompt);
    return prompt;
  }
  // Of now, or one that was flushed.
  Handle some_root(NamespaceId id) {
    const std::uint64_t generation = segment().name_space(id).root_generation.load();
    return Handle::root(id, one_in(4) ? 1 + below(static_cast<std::uint32_t>(generation)) : generation);
  }

 private:
  static constexpr std::uint32_t kPages = 1536;
  static constexpr std::uint32_t kFewPages = 4;  // different ones that are used again and again

  void append_page(Prompt& prompt) {
    const std::uint32_t page = one_in(2) ? below(kFewPages) : static_cast<std::uint32_t>(random_());
    for (std::uint32_t i = 0; i < page_tokens_; ++i) prompt.push_back(page * 1000 + i);
  }

  Prompt new_prompt() {
    Prompt prompt;
    if (!prompts_.empty() && !one_in(4)) {
      prompt = prompts_[below(static_cast<std::uint32_t>(prompts_.size()))];
      prompt.resize(below(static_cast<std::uint32_t>(prompt.size() / page_tokens_) + 1) * page_tokens_);
    }
    for (std::uint32_t more = 1 + below(one_in(2) ? 150 : 20); more > 0; --more) append_page(prompt);
    prompt.resize(prompt.size() - below(page_tokens_));
    return prompt;
  }

  // By the announcer: announced and left so.
  void add(Worker& worker, std::uint16_t id, const Prompt& prompt, Sequence& sequence) {
    BeginReport report;
    PublishReport published;
    ASSERT_TRUE(worker.begin(LocalCache::name_space(id), prompt, {}, sequence, report));
    const auto pages = static_cast<std::uint32_t>((prompt.size() + page_tokens_ - 1) / page_tokens_);
    const std::uint32_t run_max = std::vector<std::uint32_t>{1, 2, 5, 13, 14, 30, 100}[below(7)];
    while (sequence.positions() < pages && !holds_.empty()) {
      if (&worker == builder_.get() && one_in(4)) plant_pending(sequence);
      const std::uint32_t run = give_run(std::min(1 + below(run_max), pages - sequence.positions()));
      const std::uint64_t there = (sequence.positions() + run) * std::uint64_t{page_tokens_};
      ASSERT_TRUE(worker.allocate(sequence, there, 0));
      if (&worker == announcer_.get()) continue;
      ASSERT_TRUE(worker.publish_incomplete(sequence, std::min<std::uint64_t>(there, prompt.size()), published));
    }
  }

  // Frees up to `most` neighbouring pages; how many.
  std::uint32_t give_run(std::uint32_t most) {
    std::uint32_t given = 0;
    while (given == 0 && !holds_.empty()) {
      std::uint32_t page = holds_.back();
      holds_.pop_back();
      for (; given < most && page < kPages && position_[page] != kGiven; ++given, ++page) {
        EXPECT_TRUE(holder_->give_back(held_, position_[page], 1));
        position_[page] = kGiven;
      }
    }
    return given;
  }

  // What an announcer that died between its two stores leaves, as the neighbour or the hinted child: Pending, the same
  // key as the page that will be announced next, not in the index.
  void plant_pending(const Sequence& sequence) {
    const std::uint32_t at = sequence.positions();
    if (at == 0 || sequence.published != at || at >= sequence.full_positions(page_tokens_)) return;
    const Handle parent = sequence.parent_of(at);
    std::uint32_t page = parent.page_index().value + 1;
    if (one_in(3)) page = below(kPages);
    if (page >= kPages || position_[page] == kGiven) return;
    position_[page] = kGiven;
    const Descriptor& above = segment().descriptor(parent.page_index());
    const auto tokens = sequence.tokens_at(at, page_tokens_);
    PageNode node;
    node.parent = parent;
    node.prefix_hash = hash_page(above.prefix_hash.load(), tokens);
    node.name_space = sequence.name_space;
    node.root_generation = sequence.root_generation;
    node.depth = at + 1;
    node.publisher = holder_->slot();
    PageTable(segment()).write_node({page}, node, tokens);
    AtomicU64& state = segment().descriptor({page}).state;
    state.store(StateWord{state.load()}.with(PageState::kPending, holder_->slot()).raw);
    if (one_in(2)) segment().descriptor(parent.page_index()).child_hint.store(page + 1);
  }

  // Entries of other pages with the tags of this prompt's, before those come.
  void plant_entries(std::uint16_t id, const Prompt& prompt) {
    std::uint64_t hash = segment().name_space({id}).hash_seed.load();
    std::span<const std::uint32_t> tokens = prompt;
    for (; tokens.size() >= page_tokens_; tokens = tokens.subspan(page_tokens_)) {
      hash = hash_page(hash, tokens.first(page_tokens_));
      if (!one_in(8)) continue;
      const IndexPlace place = index_.place_of(hash);
      AtomicU64& entry = segment().bucket(place.bucket[below(2)]).entries[below(kBucketEntries)];
      if (entry.load() == 0) StripeIndex::enter(entry, place, {below(kPages)});
    }
  }

  void spoil_hints() {
    for (std::uint32_t i = 0; i < kPages / 64; ++i) {
      const std::uint32_t page = below(kPages);
      const std::uint32_t some = below(kPages) + 1;
      const std::uint32_t values[] = {0, page + 1, page + 2, some, kPages + 1, 1U << 24, ~0U, ~0U - below(8)};
      segment().descriptor({page}).child_hint.store(values[below(8)]);
    }
  }

  static constexpr std::uint32_t kGiven = ~0U;

  const std::uint32_t page_tokens_;
  std::mt19937 random_;
  LocalCache cache_;
  StripeIndex index_;
  std::unique_ptr<Worker> builder_, announcer_, holder_;
  Sequence held_;
  std::vector<std::uint32_t> position_;  // of a page in held_
  std::vector<std::uint32_t> holds_;     // pages, in the order in which they are given; some are gone already
  std::vector<Prompt> prompts_;
  std::vector<Sequence> pending_;
};

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
// Something else happens after some of the pages that a walk enters.
class Meanwhile {
 public:
  explicit Meanwhile(RandomTrie& trie) {
    trie_ = &trie;
    times_ = 0;
    crash_hook.store([](const char* place) {
      if (std::string(place) != "walk.after_page" || times_ == 2 || !trie_->one_in(12)) return;
      const CrashHook hook = crash_hook.exchange(nullptr);
      ++times_;
      trie_->churn();
      crash_hook.store(hook);
    });
  }
  ~Meanwhile() { crash_hook.store(nullptr); }
  static int times() { return times_; }

 private:
  static inline RandomTrie* trie_ = nullptr;
  static inline int times_ = 0;
};

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
        const Meanwhile meanwhile(trie);
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
