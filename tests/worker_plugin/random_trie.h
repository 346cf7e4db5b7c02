// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Random tries in a small segment, made by real workers, and a search in them that trusts nothing but descriptors.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "tests/support/local_cache.h"

namespace kvtrie::test {

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

  // Caches it, if there is room.
  void cache(NamespaceId id, const Prompt& prompt) {
    Sequence sequence;
    BeginReport report;
    PublishReport published;
    ASSERT_TRUE(builder_->begin(LocalCache::name_space(id.value), prompt, {}, sequence, report));
    if (builder_->allocate(sequence, prompt.size(), 0)) {
      ASSERT_TRUE(builder_->publish_incomplete(sequence, prompt.size(), published));
    }
    builder_->release(sequence);
  }
  // Evicts, and uses the pages again for others or for the same.
  void churn() {
    (void)cache_.evict(1 + below(300));
    for (std::uint32_t paths = below(6); paths > 0; --paths) {
      const Prompt prompt = one_in(3) ? new_prompt() : prompts_[below(static_cast<std::uint32_t>(prompts_.size()))];
      cache({static_cast<std::uint16_t>(below(2))}, prompt);
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

}  // namespace kvtrie::test
