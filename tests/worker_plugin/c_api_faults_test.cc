// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.h's calls when the segment is corrupt or given up, and when memory runs out at any
// allocation.

#include <atomic>
#include <new>

#include "tests/support/replaced_heap.h"
#include "tests/worker_plugin/c_api_support.h"

namespace {

// Allocations of this thread that still succeed; negative: all.
thread_local long allocations_left = -1;

}  // namespace

void kvtrie::test::before_allocation() {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) --allocations_left;
}

namespace kvtrie::test {
namespace {

class CApiFaultsTest : public CApiTest {
 protected:
  // Runs `call` with 0, 1, 2, ... allocations until it succeeds; what fails says so. Returns how
  // often it failed.
  template <typename Call>
  static int with_ever_more_memory(Call call) {
    for (int n = 0; n < 1000; ++n) {
      allocations_left = n;
      const kvtrie_code code = call();
      allocations_left = -1;
      if (code == KVTRIE_OK) return n;
      EXPECT_EQ(code, KVTRIE_E_SYSTEM) << n << ": " << kvtrie_last_error();
      EXPECT_TRUE(last_error_has("out of memory")) << kvtrie_last_error();
    }
    ADD_FAILURE() << "never succeeded";
    return -1;
  }
};

TEST_F(CApiFaultsTest, ImpossibleStateWordAnswersCorruptOnceThenBeginsMiss) {
  const kvtrie_sequence open = cache(worker_, space_, path({1, 2}));
  std::uint32_t page = 0;
  ASSERT_EQ(kvtrie_get_pages(open, 1, 1, &page), KVTRIE_OK);
  AtomicU64& word = cache_.segment().descriptor({page}).state;
  const std::uint64_t before = word.load();
  word.store(before | 0xF);
  const Begun met = begin(worker_, space_, path({1, 2}));
  EXPECT_EQ(met.code, KVTRIE_E_CORRUPT);
  EXPECT_EQ(met.sequence.id, 0U);
  EXPECT_TRUE(last_error_has("begins miss")) << kvtrie_last_error();
  const Begun after = begin(worker_, space_, path({1, 2}));
  EXPECT_EQ(after.code, KVTRIE_OK);
  EXPECT_EQ(after.result.cached_pages, 0U);
  EXPECT_EQ(kvtrie_allocate(after.sequence, 4, nullptr), KVTRIE_E_CORRUPT);
  EXPECT_EQ(kvtrie_publish(open, 8, nullptr), KVTRIE_E_CORRUPT);
  EXPECT_EQ(kvtrie_release(after.sequence), KVTRIE_OK);
  auto counters = sized<kvtrie_counters>();
  ASSERT_EQ(kvtrie_get_counters(worker_, &counters), KVTRIE_OK);
  EXPECT_EQ(counters.corrupt_seen, 1U);
  EXPECT_EQ(kvtrie_release(open), KVTRIE_OK);
  word.store(before);
}

TEST_F(CApiFaultsTest, PoisonedSegmentServesMissesAndTakesNothing) {
  const kvtrie_sequence open = cache(worker_, space_, path({1, 2}));
  const Begun early = begin(worker_, space_, path({3}));
  cache_.segment().poison(PoisonReason::kOperator);
  const Begun begun = begin(worker_, space_, path({1, 2}));
  EXPECT_EQ(begun.code, KVTRIE_OK);
  EXPECT_EQ(begun.result.cached_pages, 0U);
  EXPECT_EQ(kvtrie_allocate(begun.sequence, 4, nullptr), KVTRIE_E_POISONED);
  EXPECT_TRUE(last_error_has("attach again")) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_publish(early.sequence, 4, nullptr), KVTRIE_E_POISONED);
  const kvtrie_field field = {"model", "new"};
  kvtrie_namespace name_space{0};
  EXPECT_EQ(kvtrie_open_namespace(worker_, &field, 1, nullptr, &name_space), KVTRIE_E_POISONED);
  for (const kvtrie_sequence sequence : {open, early.sequence, begun.sequence}) {
    EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
  }
  EXPECT_EQ(cache_.leases(), 0U);
}

TEST_F(CApiFaultsTest, EveryCallSurvivesEveryFailedAllocation) {
  cache(worker_, space_, path({1, 2, 3}));
  int failures = 0;
  Begun begun{};
  const Tokens tokens = path({1, 2, 8, 9});
  failures += with_ever_more_memory([&] {
    begun.result = sized<kvtrie_begin_result>();
    return kvtrie_begin(worker_, space_, tokens.data(), tokens.size(), nullptr, &begun.result,
                        &begun.sequence);
  });
  EXPECT_EQ(cache_.leases(), 2U);
  const Tokens more = path({10, 11, 12, 13, 14, 15, 16, 17});
  failures += with_ever_more_memory(
      [&] { return kvtrie_append(begun.sequence, more.data(), more.size()); });
  failures += with_ever_more_memory([&] { return kvtrie_allocate(begun.sequence, 48, nullptr); });
  EXPECT_EQ(cache_.count(PageState::kFree), 64U - 3U - 10U);  // what failed took nothing
  failures += with_ever_more_memory([&] { return kvtrie_publish(begun.sequence, 40, nullptr); });
  EXPECT_EQ(cache_.count(PageState::kLive), 3U + 8U);
  failures += with_ever_more_memory([&] { return kvtrie_release(begun.sequence); });
  EXPECT_EQ(cache_.count(PageState::kFree), 64U - 11U);
  EXPECT_EQ(cache_.leases(), 1U);
  EXPECT_GE(failures, 5);
}

TEST_F(CApiFaultsTest, OpenNamespaceAndAttachSurviveEveryFailedAllocation) {
  cache_.make_namespace({{"model", "b"}});
  const std::string value(200, 'v');
  cache_.make_namespace({{"model", value}});
  const kvtrie_field field = {"model", value.c_str()};
  kvtrie_namespace name_space{0};
  EXPECT_GT(with_ever_more_memory(
                [&] { return kvtrie_open_namespace(worker_, &field, 1, nullptr, &name_space); }),
            0);
  kvtrie_worker worker{0};
  const std::string cache(40, 'c');
  for (int n = 0;; ++n) {
    auto options = sized<kvtrie_attach_options>();
    options.cache = cache.c_str();
    options.directory = "/nonexistent";
    allocations_left = n;
    const kvtrie_code code = kvtrie_attach(&options, &worker);
    allocations_left = -1;
    if (code == KVTRIE_E_NO_COORDINATOR) break;
    ASSERT_EQ(code, KVTRIE_E_SYSTEM);
    ASSERT_LT(n, 1000);
  }
  for (int n = 0;; ++n) {
    Attachment grant = cache_.grant();
    const SlotGrant slot = grant.grant;
    const CoordinatorAddress address = cache_.address();
    allocations_left = n;
    const kvtrie_code code = attach_from_grant(std::move(grant), address, &worker);
    allocations_left = -1;
    if (code == KVTRIE_OK) break;
    // Boost's mapping may report it as its own failure.
    ASSERT_EQ(code, KVTRIE_E_SYSTEM) << kvtrie_last_error();
    ASSERT_LT(n, 1000);
    const WorkerTable table(cache_.segment());
    ASSERT_EQ(table.word(slot.slot).state(), SlotState::kAttaching);
    ASSERT_TRUE(table.begin_reap(slot.slot, table.word(slot.slot)));
    table.finish_reap(slot.slot);
  }
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST_F(CApiFaultsTest, HitsAllocateNothingOnceTheVectorsHaveTheirSize) {
  const kvtrie_sequence kept = cache(worker_, space_, path({1, 2, 3, 4}));
  const Tokens tokens = path({1, 2, 3, 4, 5});
  EXPECT_EQ(hits(worker_, space_, tokens), 4U);
  allocations_left = 0;
  auto result = sized<kvtrie_begin_result>();
  kvtrie_sequence sequence{0};
  std::uint32_t pages[4] = {};
  void* address = nullptr;
  const kvtrie_code codes[] = {
      kvtrie_begin(worker_, space_, tokens.data(), tokens.size(), nullptr, &result, &sequence),
      kvtrie_get_pages(sequence, 0, 4, pages),
      kvtrie_page_address(worker_, pages[0], 1, &address),
      kvtrie_release(sequence),
  };
  allocations_left = -1;
  for (const kvtrie_code code : codes)
    EXPECT_EQ(code, KVTRIE_OK);
  EXPECT_EQ(result.cached_pages, 4U);
  EXPECT_EQ(kvtrie_release(kept), KVTRIE_OK);
}

}  // namespace
}  // namespace kvtrie::test
