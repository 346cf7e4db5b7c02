// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The trie that concurrent requests leave: just the prefixes that they published, each once, each below its parent;
// and a part of them that is closed upwards when the pool was too small for all.

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/concurrency/support/concurrent_requests.h"

namespace kvtrie::test {
namespace {

constexpr PageName kNeverPublished = 999'999;

enum Seen : std::size_t { kForked, kPublishedByAnother, kChecked };

// What a request publishes: a path, and after `fork_at` pages of it another end beside it (0: no fork).
struct Plan {
  Path path;
  std::uint32_t fork_at = 0;
  Path other_end;

  Path other_path() const {
    Path other(path.begin(), path.begin() + fork_at);
    other.insert(other.end(), other_end.begin(), other_end.end());
    return other;
  }
};

// The plans of a request, the same wherever they are asked for.
std::vector<Plan> plans_of(std::uint32_t request) {
  std::minstd_rand random(request * 7 + 1);
  const auto below = [&](std::uint32_t bound) { return static_cast<std::uint32_t>(random() % bound); };
  std::vector<Plan> plans;
  plans.push_back({{10, 11, 12, 13, 14, 15}, 0, {}});  // of all of them
  plans.push_back({{10, 11, 12, 13, 14, 15}, 0, {}});
  for (int i = 0; i < 8; ++i) {  // a binary tree, entered anywhere
    Path bits(2 + below(6));
    for (PageName& bit : bits) bit = 100 + below(2);
    plans.push_back({bits, 0, {}});
  }
  Path chain(4 + below(28));
  for (std::uint32_t i = 0; i < chain.size(); ++i) chain[i] = 200 + i;
  plans.push_back({chain, 0, {}});
  for (int i = 0; i < 6; ++i) plans.push_back({{300, 301 + below(48)}, 0, {}});  // many siblings
  for (int i = 0; i < 4; ++i) {  // forks
    Path stem{400, 410 + below(2), 420 + below(2)};
    stem.push_back(500 + below(3));
    plans.push_back({stem, 3, {510 + below(3), 520 + below(2)}});
  }
  std::ranges::shuffle(plans, random);
  return plans;
}

// Every prefix that N requests publish in whole pages.
std::set<Path> union_of(std::uint32_t requests) {
  std::set<Path> all;
  const auto enter = [&all](const Path& path) {
    Path prefix;
    for (const PageName name : path) {
      prefix.push_back(name);
      all.insert(prefix);
    }
  };
  for (std::uint32_t i = 0; i < requests; ++i) {
    for (const Plan& plan : plans_of(i)) {
      enter(plan.path);
      if (plan.fork_at != 0) enter(plan.other_path());
    }
  }
  return all;
}

// Pages of the path that a lookup finds.
std::uint32_t found(const client::Worker& worker, kvtrie_namespace space, const Path& path) {
  const client::Probed probed = worker.probe(space, Prompt(path).tokens);
  return probed.outcome == KVTRIE_OK ? probed.result.cached_pages : kNeverPublished;
}

class Publisher {
 public:
  // Under pressure what was published may be evicted at any time after, and a fork may get no pages.
  Publisher(Requester& me, bool pressure) : me_(me), pressure_(pressure) {}

  void publish(const Plan& plan) {
    const std::span first(plan.path.data(), plan.fork_at != 0 ? plan.fork_at : plan.path.size());
    Prompt prompt(first);
    client::Batch one;  // of one, since it holds nothing while it waits
    one.add(me_.space, prompt.tokens, prompt.tokens.size());
    const client::AllocateOptions wait = patience();
    if (const client::Outcome got = one.prepare(me_.worker, &wait); !got)
      return me_.complain(fmt::format("no pages for a path: {}", int{got.code()}));
    client::Sequence sequence = std::move(one.sequence(0));
    finish(sequence, prompt, static_cast<std::uint32_t>(one.item(0).cached_tokens / kTokensPerPage));
    if (plan.fork_at != 0) {
      client::Forked forked = sequence.fork();
      me_.saw(kForked);
      if (!forked.outcome) return me_.complain("a fork that has nothing to copy");
      Prompt other = prompt;
      go_on(forked.child, other, plan.other_end);
      go_on(sequence, prompt, std::span(plan.path).subspan(plan.fork_at));
    }
    me_.let_others();
    me_.expect(sequence.release() == KVTRIE_OK, "release");
  }

 private:
  void go_on(client::Sequence& sequence, Prompt& prompt, std::span<const PageName> end) {
    const std::uint32_t before = prompt.pages();
    prompt.extend(end);
    sequence.append(client::Tokens(prompt.tokens).subspan(before * kTokensPerPage));
    // Not for long: it holds its stem, for which others may wait.
    const client::AllocateOptions wait = patience(pressure_ ? 5 : patience_ms());
    if (const client::Outcome got = sequence.allocate(prompt.tokens.size(), &wait); !got)
      return me_.expect(pressure_, fmt::format("no pages to go on with: {}", int{got.code()}));
    finish(sequence, prompt, before);
  }

  // Computes positions from `first` on and publishes, page by page, until others find all of it. Where another one
  // announced first, that is when that one published.
  void finish(client::Sequence& sequence, const Prompt& prompt, std::uint32_t first) {
    const std::vector<std::uint32_t> pages = sequence.pages();
    client::Published published;
    for (std::uint32_t i = first; i < pages.size(); ++i) {
      write_page(me_.worker, pages[i], prompt.digests[i], i);
      me_.let_others();
      published = sequence.publish(std::uint64_t{i + 1} * kTokensPerPage);
      if (published.result.pages_private != 0) me_.saw(kPublishedByAnother);
    }
    const bool all = comes([&] {
      if (published.result.published_tokens == prompt.tokens.size()) return true;
      published = sequence.publish(prompt.tokens.size());
      return published.outcome != KVTRIE_OK;
    });
    me_.expect(all && published.outcome == KVTRIE_OK,
               fmt::format("only {} of {} tokens could be published", published.result.published_tokens,
                           prompt.tokens.size()));
    // It stays while this sequence has it, and nothing is below it that nobody published.
    const client::Probed probed = me_.worker.probe(me_.space, prompt.tokens);
    me_.expect(probed.result.cached_pages == prompt.pages(), "what was published is not found");
    Prompt beyond = prompt;
    beyond.extend(std::array{kNeverPublished});
    const client::Probed below = me_.worker.probe(me_.space, beyond.tokens);
    me_.expect(below.result.cached_pages == prompt.pages(), "more than was published is found");
    me_.saw(kChecked);
  }

  Requester& me_;
  bool pressure_;
};

class StructureTest : public ConcurrencyTest {
 protected:
  void publish_all(bool pressure, int rounds) {
    std::uint32_t looks = 0;
    run_together(
        [pressure, rounds](Requester& me) {
          std::vector<Plan> plans = plans_of(me.number);
          me.meet();
          for (int round = 0; round < rounds; ++round) {
            for (const Plan& plan : plans) {
              if (me.board.complaints.load() == 0) Publisher(me, pressure).publish(plan);
            }
            me.shuffle(plans);
          }
        },
        [&] {
          expect_whole();
          ++looks;
        });
    EXPECT_GT(looks, 0U) << "nobody looked meanwhile";
    EXPECT_GT(seen(kForked), 0U);
    EXPECT_GT(seen(kChecked), 0U);
    if (GetParam().requests == 32) {
      EXPECT_GT(seen(kPublishedByAnother), 0U);
    }
  }
};

TEST_P(StructureTest, HoldsWhatWasPublishedAndEachPrefixOnce) {
  serve({"--pages", "4096"});
  publish_all(false, 1);
  expect_at_rest();
  const std::set<Path> published = union_of(GetParam().requests);
  EXPECT_EQ(pages_in(PageState::kLive), published.size());
  const client::Worker worker = attach();
  const kvtrie_namespace space = open_space(worker);
  std::map<Path, std::uint32_t> page_of;
  std::set<std::uint32_t> pages;
  for (const Path& path : published) {  // a parent comes before its children
    const Prompt prompt(path);
    EXPECT_EQ(found(worker, space, path), path.size());
    const client::Begun begun = worker.begin(space, prompt.tokens);
    ASSERT_EQ(begun.result.cached_pages, path.size());
    const std::vector<std::uint32_t> on_path = begun.sequence.pages();
    EXPECT_TRUE(pages.insert(on_path.back()).second) << "page " << on_path.back() << " is of two prefixes";
    page_of[path] = on_path.back();
    for (std::uint32_t i = 0; i < on_path.size(); ++i) {
      EXPECT_EQ(on_path[i], page_of.at(Path(path.begin(), path.begin() + i + 1))) << "a prefix has two pages";
      EXPECT_TRUE(page_has(worker, on_path[i], prompt.digests[i], i)) << "wrong bytes";
    }
    Path beyond = path;
    beyond.push_back(kNeverPublished);
    EXPECT_EQ(found(worker, space, beyond), path.size());
    Path beside = path;
    beside.back() = kNeverPublished;
    EXPECT_EQ(found(worker, space, beside), path.size() - 1);
  }
}

TEST_P(StructureTest, WhatEvictionLeavesIsATree) {
  serve({"--pages", "96", "--low", "5", "--high", "15"});
  publish_all(true, 3);
  expect_at_rest();
  const std::set<Path> published = union_of(GetParam().requests);
  const client::Worker worker = attach();
  const kvtrie_namespace space = open_space(worker);
  // All that is there is of a path that was published, once, and can be reached.
  const auto reachable = [&] {
    return static_cast<std::uint64_t>(
        std::ranges::count_if(published, [&](const Path& path) { return found(worker, space, path) == path.size(); }));
  };
  std::uint64_t live = 0;
  const bool equal = comes([&] { return (live = pages_in(PageState::kLive)) == reachable(); });  // it may still evict
  EXPECT_TRUE(equal) << live << " pages are there, of which " << reachable() << " can be reached";
  if (published.size() > 150) {
    EXPECT_GT(segment().total(Counter::kEvictions), 0U);
  }
  expect_all_pages_can_be_freed();
}

INSTANTIATE_TEST_SUITE_P(, StructureTest, all_settings(), setting_name);

}  // namespace
}  // namespace kvtrie::test
