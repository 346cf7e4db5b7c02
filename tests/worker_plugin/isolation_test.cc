// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// C8: what one tenant gets from every call of kvtrie.h does not depend on what another tenant has. A tenant's whole
// conversation with the cache (every code, result, page, state, count and error text) is written down beside two
// neighbours, each with a real kvtried of its own: one has used the very same tokens in every way there is, the other
// has done the same with other tokens. The two must be equal, word for word. A neighbour in the tenant's own namespace
// must show: else nothing was written down that could.
//
// Time is isolation_timing_test.cc.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/kvtried_process.h"
#include "tests/support/temporary_cache.h"
#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kPages = 512;
constexpr std::uint32_t kPrompts = 7;  // each is used in its own way, below

// Prompt `which`, the same in every namespace that asks for it.
Tokens prompt(std::uint32_t which, std::uint32_t from) {
  Tokens tokens;
  for (std::uint32_t i = 0; i < 5 * kPageTokens + 2; ++i) tokens.push_back(from + which * 1000 + i);
  return tokens;
}

class Tenant {
 public:
  Tenant(const TemporaryCache& cache, const char* salt) {
    auto options = sized<kvtrie_attach_options>();
    options.cache = cache.name().c_str();
    options.directory = cache.directory().c_str();
    options.name = salt;
    EXPECT_EQ(kvtrie_attach(&options, &worker), KVTRIE_OK) << kvtrie_last_error();
    const kvtrie_field fields[] = {{"model", "m"}, {"salt", salt}};
    EXPECT_EQ(kvtrie_open_namespace(worker, fields, 2, salt, &space), KVTRIE_OK) << kvtrie_last_error();
  }
  ~Tenant() {
    if (worker.id != 0) (void)kvtrie_detach(worker);
  }
  Tenant(const Tenant&) = delete;
  Tenant& operator=(const Tenant&) = delete;

  std::vector<std::uint64_t> hashes(const Tokens& tokens) const {
    std::vector<std::uint64_t> hashes(tokens.size() / kPageTokens);
    std::size_t count = 0;
    EXPECT_EQ(kvtrie_hash_tokens(worker, space, tokens.data(), tokens.size(), hashes.data(), hashes.size(), &count),
              KVTRIE_OK);
    return hashes;
  }

  kvtrie_worker worker{0};
  kvtrie_namespace space{0};
};

// Uses each prompt in a way of its own: published; published and held; announced; with an incomplete page; forked;
// twice in a batch; published again.
void use_all(const Tenant& me, std::uint32_t from) {
  (void)kvtrie_release(cache(me.worker, me.space, prompt(0, from)));
  (void)cache(me.worker, me.space, prompt(1, from));
  const Begun coming = begin(me.worker, me.space, prompt(2, from));
  EXPECT_EQ(kvtrie_allocate(coming.sequence, prompt(2, from).size(), nullptr), KVTRIE_OK);
  const Begun incomplete = begin(me.worker, me.space, prompt(3, from));
  EXPECT_EQ(kvtrie_allocate(incomplete.sequence, prompt(3, from).size(), nullptr), KVTRIE_OK);
  EXPECT_EQ(kvtrie_publish_incomplete(incomplete.sequence, prompt(3, from).size(), nullptr), KVTRIE_OK);
  const kvtrie_sequence forked = cache(me.worker, me.space, prompt(4, from));
  kvtrie_sequence child{0};
  EXPECT_EQ(kvtrie_fork(forked, nullptr, &child), KVTRIE_OK) << kvtrie_last_error();
  const Tokens twice = prompt(5, from);
  std::array<kvtrie_batch_item, 2> items{sized<kvtrie_batch_item>(), sized<kvtrie_batch_item>()};
  for (kvtrie_batch_item& item : items) {
    item.name_space = me.space;
    item.tokens = twice.data();
    item.token_count = item.total_tokens = twice.size();
  }
  EXPECT_EQ(kvtrie_prepare_batch(me.worker, items.data(), items.size(), nullptr), KVTRIE_OK);
  (void)kvtrie_release(cache(me.worker, me.space, prompt(6, from)));
}

// All that a tenant is told, line by line.
class Conversation {
 public:
  Conversation(const Tenant& me, const std::vector<std::vector<std::uint64_t>>& hashes_of_the_other)
      : me_(me), foreign_(hashes_of_the_other) {}

  std::vector<std::string> run() {
    for (const std::uint32_t flags : {0U, unsigned{KVTRIE_PARTIAL}, unsigned{KVTRIE_NO_READ}}) {
      for (std::uint32_t which = 0; which < kPrompts; ++which) {
        look(which);
        begin_and_leave(which, flags);
      }
    }
    for (std::uint32_t which = 0; which < kPrompts; ++which) compute(which);
    batch();
    for (std::uint32_t which = 0; which < kPrompts; ++which) look(which);
    evict_and_flush();
    wrong_calls();
    count();
    return std::move(lines_);
  }

 private:
  template <typename... Values>
  void say(const char* what, kvtrie_code code, const Values&... values) {
    lines_.push_back(fmt::format("{}: {} {}{}", what, kvtrie_code_name(code),
                                 fmt::join(std::vector<std::uint64_t>{std::uint64_t{values}...}, " "),
                                 code == KVTRIE_OK ? "" : std::string(" ") + kvtrie_last_error()));
  }
  static Tokens mine(std::uint32_t which) { return prompt(which, 1); }

  void look(std::uint32_t which) {
    const Tokens tokens = mine(which);
    auto probed = sized<kvtrie_probe_result>();
    kvtrie_code code = kvtrie_probe(me_.worker, me_.space, tokens.data(), tokens.size(), &probed);
    say("probe", code, probed.cached_tokens, probed.cached_pages, probed.pending_pages);
    for (const std::vector<std::uint64_t>& hashes : {me_.hashes(tokens), foreign_[which]}) {
      code = kvtrie_probe_hashes(me_.worker, me_.space, hashes.data(), hashes.size(), &probed);
      say("probe_hashes", code, probed.cached_tokens, probed.cached_pages, probed.pending_pages);
    }
  }

  Begun begin_one(std::uint32_t which, std::uint32_t flags) {
    Begun begun = begin(me_.worker, me_.space, mine(which), flags);
    say_begun("begin", begun.code, begun.result);
    return begun;
  }
  void say_begun(const char* what, kvtrie_code code, const kvtrie_begin_result& result) {
    say(what, code, result.cached_tokens, result.cached_pages, result.pending_pages, result.pending_age_ticks,
        result.partial_tokens, result.partial_page);
  }

  void begin_and_leave(std::uint32_t which, std::uint32_t flags) {
    const Begun begun = begin_one(which, flags);
    auto waited = sized<kvtrie_begin_result>();
    const kvtrie_code code = kvtrie_wait_pending(begun.sequence, 1, &waited);
    say_begun("wait_pending", code, waited);
    say("release", kvtrie_release(begun.sequence));
  }

  void pages(kvtrie_sequence sequence) {
    std::uint32_t count = 0;
    say("page_count", kvtrie_page_count(sequence, &count), count);
    std::vector<std::uint32_t> all(count);
    say("get_pages", kvtrie_get_pages(sequence, 0, count, all.data()));
    for (const std::uint32_t page : all) {
      void* address = nullptr;
      say("page", kvtrie_page_address(me_.worker, page, 0, &address), page);
    }
    std::array<kvtrie_own_page, 8> own{};
    say("own_pages", kvtrie_own_pages(sequence, own.data(), own.size(), &count), count);
    for (std::uint32_t i = 0; i < std::min<std::uint32_t>(count, own.size()); ++i)
      say("own", KVTRIE_OK, own[i].position, own[i].page, static_cast<std::uint32_t>(own[i].state));
  }

  void publish(kvtrie_sequence sequence, std::uint64_t tokens, bool incomplete) {
    auto published = sized<kvtrie_publish_result>();
    const kvtrie_code code = incomplete ? kvtrie_publish_incomplete(sequence, tokens, &published)
                                        : kvtrie_publish(sequence, tokens, &published);
    say("publish", code, published.published_tokens, published.pages_published, published.pages_private,
        published.incomplete_tokens);
  }

  // The life of a request on a prompt that the neighbour may have.
  void compute(std::uint32_t which) {
    const Tokens tokens = mine(which);
    const kvtrie_sequence sequence = begin_one(which, which % 2 == 0 ? 0U : unsigned{KVTRIE_PARTIAL}).sequence;
    say("allocate", kvtrie_allocate(sequence, tokens.size(), nullptr));
    pages(sequence);
    std::array<std::uint64_t, 64> bytes{};
    say("copy_in", kvtrie_copy_in(sequence, 0, kPageTokens, 0, nullptr, bytes.data()));
    publish(sequence, kPageTokens, false);
    look(which);
    begin_and_leave(which, 0);
    say("copy_out", kvtrie_copy_out(sequence, 0, kPageTokens, 0, nullptr, bytes.data()));
    kvtrie_sequence child{0};
    say("fork", kvtrie_fork(sequence, nullptr, &child));
    const std::uint32_t more[] = {7, 8, 9};
    say("append", kvtrie_append(child, more, 3));
    say("allocate", kvtrie_allocate(child, tokens.size() + 3, nullptr));
    publish(child, tokens.size() + 3, true);
    pages(child);
    publish(sequence, tokens.size(), true);
    say("give_back", kvtrie_give_back(sequence, 5, 1));
    pages(sequence);
    say("release", kvtrie_release(child));
    say("release", kvtrie_release(sequence));
  }

  void batch() {
    std::vector<Tokens> prompts;
    for (std::uint32_t which = 0; which < kPrompts; ++which) {
      prompts.push_back(mine(which));
      prompts.back().resize(8 * kPageTokens, 3);  // beyond what was computed
    }
    std::vector<kvtrie_batch_item> items(kPrompts, sized<kvtrie_batch_item>());
    for (std::uint32_t which = 0; which < kPrompts; ++which) {
      items[which].name_space = me_.space;
      items[which].tokens = prompts[which].data();
      items[which].token_count = items[which].total_tokens = prompts[which].size();
    }
    say("prepare_batch", kvtrie_prepare_batch(me_.worker, items.data(), items.size(), nullptr));
    for (const kvtrie_batch_item& item : items) {
      say("item", KVTRIE_OK, item.cached_tokens, item.shared_tokens, item.partial_tokens, item.partial_page);
      pages(item.sequence);
      say("release", kvtrie_release(item.sequence));
    }
  }

  void evict_and_flush() {
    std::uint64_t evicted = 0;
    kvtrie_code code = kvtrie_evict(me_.worker, me_.space, 3, &evicted);
    say("evict", code, evicted);
    look(0);
    const kvtrie_sequence held = begin_one(1, 0).sequence;
    code = kvtrie_evict(me_.worker, me_.space, 0, &evicted);
    say("evict", code, evicted);
    // All that anybody can let go. How many that is says no more than the count of free pages.
    code = kvtrie_evict(me_.worker, {0}, 0, &evicted);
    say("evict all", code, evicted);
    // kvtried takes the flushed pages in its own time, so nothing that is said from here on depends on free pages.
    say("flush", kvtrie_flush(me_.worker, me_.space));
    say("allocate", kvtrie_allocate(held, 10 * kPageTokens, nullptr));
    publish(held, 10 * kPageTokens, false);
    say("release", kvtrie_release(held));
    for (std::uint32_t which = 0; which < kPrompts; ++which) {
      look(which);
      begin_and_leave(which, KVTRIE_PARTIAL);
    }
  }

  void wrong_calls() {
    const kvtrie_sequence sequence = begin_one(2, 0).sequence;
    say("allocate", kvtrie_allocate(sequence, std::uint64_t{kPages} * kPageTokens + 1, nullptr));
    auto at_once = sized<kvtrie_allocate_options>();
    at_once.flags = KVTRIE_NO_WAIT;
    say("allocate", kvtrie_allocate(sequence, std::uint64_t{kPages} * kPageTokens, &at_once));
    std::uint32_t page = 0;
    say("get_pages", kvtrie_get_pages(sequence, 3, 1, &page));
    say("give_back", kvtrie_give_back(sequence, 0, 1));
    say("release", kvtrie_release(sequence));
    say("release", kvtrie_release(sequence));
    void* address = nullptr;
    say("page_address", kvtrie_page_address(me_.worker, kPages, 0, &address));
    say("drive_clock", kvtrie_drive_clock(me_.worker, 2));
  }

  void count() {
    auto counters = sized<kvtrie_counters>();
    const kvtrie_code code = kvtrie_get_counters(me_.worker, &counters);
    const auto* const values = &counters.lookups;
    for (std::size_t i = 0; i < (sizeof counters - sizeof counters.size) / sizeof counters.lookups; ++i)
      say("counter", code, i, values[i]);
  }

  const Tenant& me_;
  const std::vector<std::vector<std::uint64_t>>& foreign_;
  std::vector<std::string> lines_;
};

// What a tenant is told beside a neighbour that has used prompts from token `from` on.
std::vector<std::string> told_beside(const char* salt_of_neighbour, std::uint32_t from) {
  const TemporaryCache cache("isolation");
  KvtriedProcess daemon(cache, {"--pages", std::to_string(kPages), "--page-bytes", "512", "--tokens-per-page",
                                std::to_string(kPageTokens), "--workers", "4", "--metrics", "off", "--clock",
                                "driven"});
  EXPECT_TRUE(daemon.ready()) << daemon.err();
  const Tenant neighbour(cache, salt_of_neighbour);
  use_all(neighbour, from);
  const Tenant me(cache, "mine");
  std::vector<std::vector<std::uint64_t>> foreign;
  std::uint32_t equal = 0;
  for (std::uint32_t which = 0; which < kPrompts; ++which) {
    foreign.push_back(neighbour.hashes(prompt(which, from)));
    const std::vector<std::uint64_t> own = me.hashes(prompt(which, from));
    for (std::size_t i = 0; i < own.size(); ++i) equal += own[i] == foreign.back()[i] ? 1 : 0;
  }
  std::vector<std::string> told = Conversation(me, foreign).run();
  for (std::string& line : told) {
    const std::size_t named = line.find(cache.name());  // each run's cache has one of its own
    if (named != std::string::npos) line.replace(named, cache.name().size(), "CACHE");
    const std::size_t handle = line.find(" 0x");  // a number of this process
    if (handle != std::string::npos) line.resize(handle);
    const std::size_t free = line.find(", about ");  // pages are free, at this moment
    if (free != std::string::npos) line.resize(free);
  }
  told.push_back(fmt::format("equal hashes: {}", equal));
  // And the neighbour has what it had: not evicted, not flushed.
  EXPECT_TRUE(std::string(salt_of_neighbour) == "mine" ||
              hits(neighbour.worker, neighbour.space, prompt(1, from)) == 5);
  return told;
}

TEST(IsolationTest, NoCallTellsWhatAnotherNamespaceHas) {
  const std::vector<std::string> beside_the_same = told_beside("others", 1);
  const std::vector<std::string> beside_another = told_beside("others", 1'000'000);
  ASSERT_EQ(beside_the_same.size(), beside_another.size());
  for (std::size_t i = 0; i < beside_the_same.size(); ++i)
    ASSERT_EQ(beside_the_same[i], beside_another[i]) << "line " << i;
  EXPECT_EQ(std::ranges::count(beside_the_same, "equal hashes: 0"), 1);

  const std::vector<std::string> in_one_namespace = told_beside("mine", 1);
  EXPECT_NE(beside_the_same, in_one_namespace) << "what is written down would not show it";
  EXPECT_EQ(std::ranges::count(in_one_namespace, "equal hashes: 35"), 1);
}

}  // namespace
}  // namespace kvtrie::test
