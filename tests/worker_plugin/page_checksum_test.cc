// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Page checksums: bytes that changed after they were published are no hit, on any way to a page, and cost nobody anything
// else.

#include <cstring>

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

class PageChecksumTest : public CApiTest {
 protected:
  explicit PageChecksumTest(bool checksums = true) : CApiTest({.page_checksums = checksums}) {}

  unsigned char* bytes_of(std::uint32_t page, std::uint32_t plane = 0) const {
    void* address = nullptr;
    EXPECT_EQ(kvtrie_page_address(worker_, page, plane, &address), KVTRIE_OK);
    return static_cast<unsigned char*>(address);
  }
  static std::vector<std::uint32_t> pages_of(kvtrie_sequence sequence, std::uint32_t count) {
    std::vector<std::uint32_t> pages(count);
    EXPECT_EQ(kvtrie_get_pages(sequence, 0, count, pages.data()), KVTRIE_OK) << kvtrie_last_error();
    return pages;
  }
  // Cached and released; its pages.
  std::vector<std::uint32_t> cached(const Tokens& tokens) {
    const kvtrie_sequence sequence = cache(worker_, space_, tokens);
    std::vector<std::uint32_t> pages = pages_of(sequence, static_cast<std::uint32_t>(tokens.size() / kPageTokens));
    EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
    return pages;
  }
  std::uint64_t counted(Counter counter) const { return cache_.segment().total(counter); }
};

TEST_F(PageChecksumTest, PathEndsBeforeBytesThatChanged) {
  const Tokens tokens = path({1, 2, 3, 4});
  const std::vector<std::uint32_t> pages = cached(tokens);
  EXPECT_EQ(hits(worker_, space_, tokens), 4U);
  EXPECT_EQ(counted(Counter::kPagesSummed), 4U);
  bytes_of(pages[2], 1)[63] ^= 1;  // the last byte of the last plane
  EXPECT_EQ(hits(worker_, space_, tokens), 2U);
  auto counters = sized<kvtrie_counters>();
  ASSERT_EQ(kvtrie_get_counters(worker_, &counters), KVTRIE_OK);
  EXPECT_EQ(counters.pages_summed, 7U);
  EXPECT_EQ(counters.wrong_checksums, 1U);
  bytes_of(pages[2], 1)[63] ^= 1;
  EXPECT_EQ(hits(worker_, space_, tokens), 4U);
  EXPECT_EQ(cache_.leases(), 0U);
}

TEST_F(PageChecksumTest, FirstPageOfAllMayBeWrong) {
  const Tokens tokens = path({1, 2});
  bytes_of(cached(tokens)[0])[0] ^= 0x80;
  const Begun begun = begin(worker_, space_, tokens);
  EXPECT_EQ(begun.result.cached_pages, 0U);
  EXPECT_EQ(cache_.leases(), 0U);
  // What it computes itself stays its own, and what others cached beside it is not touched.
  EXPECT_EQ(kvtrie_allocate(begun.sequence, tokens.size(), nullptr), KVTRIE_OK);
  auto published = sized<kvtrie_publish_result>();
  EXPECT_EQ(kvtrie_publish(begun.sequence, tokens.size(), &published), KVTRIE_OK);
  EXPECT_EQ(published.pages_private, 2U);
  EXPECT_EQ(kvtrie_release(begun.sequence), KVTRIE_OK);
}

TEST_F(PageChecksumTest, LeaseStandsOnTheLastRightPage) {
  const Tokens tokens = path({1, 2, 3});
  const std::vector<std::uint32_t> pages = cached(tokens);
  bytes_of(pages[2])[5] ^= 1;
  const Begun begun = begin(worker_, space_, tokens);
  EXPECT_EQ(begun.result.cached_pages, 2U);
  Handle leased;
  for (const LeaseSlot& lease : cache_.segment().leases({1})) {
    if (lease.handle.load() != 0) leased = {lease.handle.load()};
  }
  EXPECT_EQ(leased.page_index().value, pages[1]);
  EXPECT_EQ(cache_.leases(), 1U);
  EXPECT_EQ(kvtrie_release(begun.sequence), KVTRIE_OK);
}

TEST_F(PageChecksumTest, WrongPageIsTheNextToBeEvicted) {
  const std::vector<std::uint32_t> wrong = cached(path({1}));
  cached(path({2}));  // younger, but not for long
  EXPECT_EQ(hits(worker_, space_, path({1})), 1U);
  bytes_of(wrong[0])[0] ^= 1;
  EXPECT_EQ(hits(worker_, space_, path({1})), 0U);
  EXPECT_EQ(cache_.segment().descriptor({wrong[0]}).touch.load(), 0U);
}

TEST_F(PageChecksumTest, NoPartialMatchInWrongBytes) {
  const std::vector<std::uint32_t> pages = cached(path({1}));
  Tokens tokens = path({1});
  tokens[2] = 77;
  const Begun right = begin(worker_, space_, tokens, KVTRIE_PARTIAL);
  EXPECT_EQ(right.result.partial_tokens, 2U);
  EXPECT_EQ(kvtrie_release(right.sequence), KVTRIE_OK);
  bytes_of(pages[0])[9] ^= 1;
  const Begun wrong = begin(worker_, space_, tokens, KVTRIE_PARTIAL);
  EXPECT_EQ(wrong.result.partial_tokens, 0U);
  EXPECT_EQ(kvtrie_release(wrong.sequence), KVTRIE_OK);
  EXPECT_EQ(cache_.leases(), 0U);
}

TEST_F(PageChecksumTest, NoLinkToAnothersWrongPage) {
  for (const bool spoil : {false, true}) {
    const Tokens tokens = path({spoil ? 2U : 1U});
    const Begun second = begin(worker_, space_, tokens);
    EXPECT_EQ(second.result.cached_pages, 0U);
    const std::vector<std::uint32_t> pages = cached(tokens);  // another computes it first
    if (spoil) bytes_of(pages[0])[0] ^= 1;
    ASSERT_EQ(kvtrie_allocate(second.sequence, tokens.size(), nullptr), KVTRIE_OK);
    auto published = sized<kvtrie_publish_result>();
    ASSERT_EQ(kvtrie_publish(second.sequence, tokens.size(), &published), KVTRIE_OK);
    EXPECT_EQ(published.published_tokens, spoil ? 0U : kPageTokens);
    EXPECT_EQ(kvtrie_release(second.sequence), KVTRIE_OK);
  }
}

TEST_F(PageChecksumTest, WhoWaitedGetsNoWrongPageEither) {
  const Tokens tokens = path({1, 2});
  const Begun owner = begin(worker_, space_, tokens);
  ASSERT_EQ(kvtrie_allocate(owner.sequence, tokens.size(), nullptr), KVTRIE_OK);
  const Begun waiter = begin(worker_, space_, tokens);
  ASSERT_EQ(kvtrie_publish(owner.sequence, tokens.size(), nullptr), KVTRIE_OK);
  bytes_of(pages_of(owner.sequence, 2)[1])[7] ^= 1;
  auto result = sized<kvtrie_begin_result>();
  EXPECT_EQ(kvtrie_wait_pending(waiter.sequence, 0, &result), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(result.cached_pages, 1U);
  EXPECT_EQ(kvtrie_release(waiter.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(owner.sequence), KVTRIE_OK);
}

class NoPageChecksumTest : public PageChecksumTest {
 protected:
  NoPageChecksumTest() : PageChecksumTest(false) {}
};

TEST_F(NoPageChecksumTest, NothingIsComputedOrCompared) {
  const std::vector<std::uint32_t> pages = cached(path({1}));
  EXPECT_EQ(cache_.segment().descriptor({pages[0]}).checksum.load(), 0U);
  bytes_of(pages[0])[0] ^= 1;
  EXPECT_EQ(hits(worker_, space_, path({1})), 1U);
  EXPECT_EQ(counted(Counter::kPagesSummed), 0U);
}

}  // namespace
}  // namespace kvtrie::test
