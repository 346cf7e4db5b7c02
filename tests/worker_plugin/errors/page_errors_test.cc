// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Pages, leases, worker slots, namespaces and attachments of which there are not enough.

#include <sys/mman.h>

#include <csignal>
#include <cstdlib>

#include "shm/namespace_table.h"
#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {
namespace {

kvtrie_code allocate(kvtrie_sequence sequence, std::uint64_t tokens, std::uint32_t wait_ms) {
  auto options = sized<kvtrie_allocate_options>();
  options.wait_ms = wait_ms;
  return kvtrie_allocate(sequence, tokens, &options);
}

kvtrie_code batch(ErrorWorld& world, std::uint64_t tokens, std::uint32_t wait_ms) {
  const Tokens first = prompt(1, 1);
  auto item = sized<kvtrie_batch_item>();
  item.name_space = world.space;
  item.tokens = first.data();
  item.token_count = first.size();
  item.total_tokens = tokens;
  auto options = sized<kvtrie_allocate_options>();
  options.wait_ms = wait_ms;
  const kvtrie_code code = kvtrie_prepare_batch(world.worker, &item, 1, &options);
  EXPECT_TRUE(code == KVTRIE_OK || (item.sequence.id == 0 && item.cached_tokens == 0));
  return code;
}

kvtrie_code fork(kvtrie_sequence sequence, std::uint32_t wait_ms) {
  auto options = sized<kvtrie_fork_options>();
  options.wait_ms = wait_ms;
  kvtrie_sequence child{7};
  const kvtrie_code code = kvtrie_fork(sequence, &options, &child);
  EXPECT_TRUE(code == KVTRIE_OK || child.id == 0);
  return code;
}

// Tokens that lie half in one memory page and half in the next, of which only one can be read at a time. So each look
// at them is a fault, and at each fault the namespace is flushed: between begin's two looks at its root, every time.
class TokensThatFlush {
 public:
  explicit TokensThatFlush(NamespaceRecord& record) {
    memory_ = static_cast<std::byte*>(::mmap(nullptr, 2 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(static_cast<void*>(memory_), MAP_FAILED);
    record_ = &record;
    struct sigaction action {};
    action.sa_sigaction = &flush;
    action.sa_flags = SA_SIGINFO;
    EXPECT_EQ(::sigaction(SIGSEGV, &action, &before_), 0);
  }
  TokensThatFlush(const TokensThatFlush&) = delete;
  TokensThatFlush& operator=(const TokensThatFlush&) = delete;
  ~TokensThatFlush() {
    EXPECT_EQ(::sigaction(SIGSEGV, &before_, nullptr), 0);
    ::munmap(memory_, 2 * kBytes);
  }
  const std::uint32_t* tokens() const {
    return reinterpret_cast<const std::uint32_t*>(memory_ + kBytes - kPageTokens / 2 * sizeof(std::uint32_t));
  }

 private:
  static constexpr std::size_t kBytes = 4096;

  static void flush(int, siginfo_t* info, void*) {
    std::byte* const at = static_cast<std::byte*>(info->si_addr);
    if (at < memory_ || at >= memory_ + 2 * kBytes) std::abort();
    record_->root_generation.fetch_add(1, std::memory_order_seq_cst);
    const bool second = at >= memory_ + kBytes;
    ::mprotect(memory_ + (second ? 0 : kBytes), kBytes, PROT_NONE);
    ::mprotect(memory_ + (second ? kBytes : 0), kBytes, PROT_READ);
  }

  inline static std::byte* memory_ = nullptr;
  inline static NamespaceRecord* record_ = nullptr;
  struct sigaction before_ {};
};

kvtrie_code begin_flushed(ErrorWorld& world) {
  const Result<OpenNamespace> there = find_namespace(world.segment(), "model=flushed\n");
  EXPECT_TRUE(there);
  if (!there) return KVTRIE_OK;
  const TokensThatFlush memory(world.segment().name_space(there->id));
  auto result = sized<kvtrie_begin_result>();
  kvtrie_sequence begun{7};
  const kvtrie_code code =
      kvtrie_begin(world.worker, world.space, memory.tokens(), kPageTokens, nullptr, &result, &begun);
  EXPECT_EQ(begun.id, 0U);
  return code;
}

}  // namespace

ErrorCases page_cases() {
  return {
      {"kvtrie_allocate", KVTRIE_E_NOT_NOW,
       "not enough free pages*release something*of 16 a page; 64 pages, about 0 free",
       [](ErrorWorld& world) { return allocate(world.sequence, 4 * kPageTokens, 0); }},
      {"kvtrie_allocate", KVTRIE_E_TIMEOUT, "came free in the time given*about 0 free",
       [](ErrorWorld& world) { return allocate(world.sequence, 4 * kPageTokens, 20); }},
      {"kvtrie_allocate", KVTRIE_E_NEVER, "more pages than this cache has: make it larger*64 pages",
       [](ErrorWorld& world) { return allocate(world.sequence, 65 * kPageTokens, 60'000); }},
      {"kvtrie_prepare_batch", KVTRIE_E_NOT_NOW, "not enough free pages*release something*64 pages, about 0 free",
       [](ErrorWorld& world) { return batch(world, 4 * kPageTokens, 0); }},
      {"kvtrie_prepare_batch", KVTRIE_E_TIMEOUT, "came free in the time given*about 0 free",
       [](ErrorWorld& world) { return batch(world, 4 * kPageTokens, 20); }},
      {"kvtrie_prepare_batch", KVTRIE_E_NEVER, "more pages than this cache has: make it larger*64 pages",
       [](ErrorWorld& world) { return batch(world, 66 * kPageTokens, 60'000); }},
      {"kvtrie_fork", KVTRIE_E_NOT_NOW, "not enough free pages*release something*about 0 free",
       [](ErrorWorld& world) { return fork(world.sequence, 0); }},
      {"kvtrie_fork", KVTRIE_E_TIMEOUT, "came free in the time given*about 0 free",
       [](ErrorWorld& world) { return fork(world.sequence, 20); }},
      {"kvtrie_wait_pending", KVTRIE_E_TIMEOUT, "the pages that another worker computes did not come in the time given",
       [](ErrorWorld& world) {
         const kvtrie_sequence late = world.begin(world.worker, world.space, prompt(5, 3));
         auto result = sized<kvtrie_begin_result>();
         const kvtrie_code code = kvtrie_wait_pending(late, 5, &result);
         EXPECT_EQ(result.pending_pages, 2U) << "the result is filled";
         const std::string text = kvtrie_last_error();
         EXPECT_EQ(kvtrie_release(late), KVTRIE_OK);
         EXPECT_EQ(kvtrie_last_error(), text) << "success leaves the text of the last failure";
         return code;
       }},
  };
}

ErrorCases flush_storm_cases() {
  return {{"kvtrie_begin", KVTRIE_E_NOT_NOW, "cache '*': the namespace is flushed again and again: ask again",
           begin_flushed}};
}

ErrorCases full_leases_cases() {
  const auto with = [](ErrorWorld& world) { return Handles{world.worker, world.space, world.sequence}; };
  return cases_of(
      KVTRIE_E_FULL, "cache '*': no free lease slot*release sequences, or start kvtried with more --leases",
      [](const EveryCall& one) {
        return is_any_of(one.name, {"kvtrie_begin", "kvtrie_prepare_batch", "kvtrie_fork", "kvtrie_allocate"});
      },
      with);
}

ErrorCases full_cache_cases() {
  return {
      {"kvtrie_attach", KVTRIE_E_FULL,
       "all 2 worker slots are taken: detach workers, or make the cache anew with more --workers",
       [](ErrorWorld& world) {
         const kvtrie_attach_options where = world.options();
         kvtrie_worker one_more{7};
         const kvtrie_code code = kvtrie_attach(&where, &one_more);
         EXPECT_EQ(one_more.id, 0U);
         return code;
       }},
      {"kvtrie_open_namespace", KVTRIE_E_FULL,
       "all 1 namespaces are taken and have pages: make the cache anew with more --namespaces",
       [](ErrorWorld& world) {
         const kvtrie_field field{"model", "another"};
         kvtrie_namespace opened{7};
         const kvtrie_code code = kvtrie_open_namespace(world.worker, &field, 1, nullptr, &opened);
         EXPECT_EQ(opened.id, 0U);
         return code;
       }},
  };
}

namespace {

TEST(AbiErrorsTest, FewerPagesThanAreAskedFor) {
  ErrorWorld world;
  const kvtrie_worker other = world.attach();
  // All pages have an owner or a lease: three are the sequence's, two another worker's.
  const kvtrie_namespace same = world.open(other, "model");
  (void)world.allocated(other, same, prompt(5, 2));
  (void)world.allocated(other, same, prompt(6, kWorldPages - 3 - 2));
  world.run(page_cases());
}

TEST(AbiErrorsTest, NamespaceThatIsFlushedAllTheTime) {
  ErrorWorld world;
  world.space = world.open(world.worker, "flushed");
  world.run(flush_storm_cases());
}

TEST(AbiErrorsTest, FewerLeaseSlotsThanSequences) {
  ErrorWorld world({"--leases", "2"});
  // One whose last page is incomplete and published, so that going on needs a lease, too.
  EXPECT_EQ(kvtrie_release(world.sequence), KVTRIE_OK);
  const Tokens tokens = {1, 2, 3};
  world.sequence = world.allocated(world.worker, world.space, tokens);
  auto done = sized<kvtrie_publish_result>();
  EXPECT_EQ(kvtrie_publish_incomplete(world.sequence, tokens.size(), &done), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(done.incomplete_tokens, tokens.size());
  world.run(full_leases_cases());
}

TEST(AbiErrorsTest, FewerPlacesThanWorkersAndNamespaces) {
  ErrorWorld world({"--workers", "2", "--namespaces", "1"});
  (void)world.attach();
  world.run(full_cache_cases());
}

}  // namespace
}  // namespace kvtrie::test
