// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Copies that KVTRIE_NO_COPY leaves to the caller: from then on no call copies over what he wrote.

#include <cstring>

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

class CApiCopyTest : public CApiTest {
 protected:
  unsigned char* bytes_of(std::uint32_t page, std::uint32_t plane = 0) {
    void* address = nullptr;
    EXPECT_EQ(kvtrie_page_address(worker_, page, plane, &address), KVTRIE_OK);
    return static_cast<unsigned char*>(address);
  }
  static std::uint32_t page_at(kvtrie_sequence sequence, std::uint32_t position) {
    std::uint32_t page = KVTRIE_NO_PAGE;
    EXPECT_EQ(kvtrie_get_pages(sequence, position, 1, &page), KVTRIE_OK) << kvtrie_last_error();
    return page;
  }
  static kvtrie_code allocate(kvtrie_sequence sequence, std::uint64_t tokens, std::uint32_t flags) {
    auto options = sized<kvtrie_allocate_options>();
    options.flags = flags;
    return kvtrie_allocate(sequence, tokens, &options);
  }
  // Begun behind the first two tokens of a cached page, allocated with `flags`, and computed by the caller: all 'n'.
  kvtrie_sequence computed_behind_a_partial_match() {
    const kvtrie_sequence first = begin(worker_, space_, path({1})).sequence;
    EXPECT_EQ(kvtrie_allocate(first, kPageTokens, nullptr), KVTRIE_OK);
    std::memset(bytes_of(page_at(first, 0)), 'o', 64);
    EXPECT_EQ(kvtrie_publish(first, kPageTokens, nullptr), KVTRIE_OK);
    EXPECT_EQ(kvtrie_release(first), KVTRIE_OK);
    Tokens tokens = path({1, 2});
    tokens[2] = 77;
    const Begun begun = begin(worker_, space_, tokens, KVTRIE_PARTIAL);
    EXPECT_EQ(begun.result.partial_tokens, 2U);
    EXPECT_EQ(allocate(begun.sequence, tokens.size(), KVTRIE_NO_COPY), KVTRIE_OK) << kvtrie_last_error();
    std::memset(bytes_of(page_at(begun.sequence, 0)), 'n', 64);
    return begun.sequence;
  }
};

TEST_F(CApiCopyTest, AllocateLaterDoesNotCopyOverWhatTheCallerWrote) {
  const kvtrie_sequence sequence = computed_behind_a_partial_match();
  ASSERT_EQ(allocate(sequence, 5 * kPageTokens, 0), KVTRIE_OK);
  EXPECT_EQ(bytes_of(page_at(sequence, 0))[63], 'n');
  EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
}

TEST_F(CApiCopyTest, ForkCopiesWhatTheCallerWrote) {
  const kvtrie_sequence sequence = computed_behind_a_partial_match();
  kvtrie_sequence child{0};
  ASSERT_EQ(kvtrie_fork(sequence, nullptr, &child), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(bytes_of(page_at(child, 0))[63], 'n');
  EXPECT_EQ(kvtrie_release(child), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
}

TEST_F(CApiCopyTest, PageThatTookItsPlaceIsCopiedToAgain) {
  const kvtrie_sequence sequence = computed_behind_a_partial_match();
  ASSERT_EQ(kvtrie_give_back(sequence, 0, 2), KVTRIE_OK) << kvtrie_last_error();
  auto result = sized<kvtrie_begin_result>();
  ASSERT_EQ(kvtrie_wait_pending(sequence, 0, &result), KVTRIE_OK);
  ASSERT_EQ(result.partial_tokens, 2U);
  ASSERT_EQ(allocate(sequence, kPageTokens, 0), KVTRIE_OK);
  EXPECT_EQ(bytes_of(page_at(sequence, 0))[63], 'o');
  EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
}

TEST_F(CApiCopyTest, BatchLeavesItsCopiesToTheCallerToo) {
  EXPECT_EQ(kvtrie_release(computed_behind_a_partial_match()), KVTRIE_OK);
  const Tokens tokens = {1000, 1001, 55};
  const auto begin_options = [] {
    auto options = sized<kvtrie_begin_options>();
    options.flags = KVTRIE_PARTIAL;
    return options;
  }();
  auto item = sized<kvtrie_batch_item>();
  item.name_space = space_;
  item.tokens = tokens.data();
  item.token_count = item.total_tokens = tokens.size();
  item.options = &begin_options;
  auto options = sized<kvtrie_allocate_options>();
  options.flags = KVTRIE_NO_COPY;
  ASSERT_EQ(kvtrie_prepare_batch(worker_, &item, 1, &options), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(item.partial_tokens, 2U);
  std::memset(bytes_of(page_at(item.sequence, 0), 1), 'n', 64);
  ASSERT_EQ(allocate(item.sequence, 2 * kPageTokens, 0), KVTRIE_OK);
  EXPECT_EQ(bytes_of(page_at(item.sequence, 0), 1)[0], 'n');
  EXPECT_EQ(kvtrie_release(item.sequence), KVTRIE_OK);
}

}  // namespace
}  // namespace kvtrie::test
