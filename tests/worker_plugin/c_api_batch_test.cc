// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Pages that sequences of a batch share, and publish_incomplete: such a page is never published with fewer tokens,
// neither by the sequence that computes it nor by one that reads it. The others would hold it without a lease, or write
// into it.

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

class CApiBatchTest : public CApiTest {
 protected:
  // Two sequences that share the page of `tokens`, which another worker has announced: so theirs is private.
  CApiBatchTest() {
    other_ = cache_.attach();
    const Begun first = begin(other_, cache_.open(other_, {{"model", "a"}}), tokens_);
    EXPECT_EQ(kvtrie_allocate(first.sequence, tokens_.size(), nullptr), KVTRIE_OK);
    announcer_ = first.sequence;
    for (kvtrie_batch_item& item : items_) {
      item = sized<kvtrie_batch_item>();
      item.name_space = space_;
      item.tokens = tokens_.data();
      item.token_count = item.total_tokens = tokens_.size();
    }
    EXPECT_EQ(kvtrie_prepare_batch(worker_, items_, 2, nullptr), KVTRIE_OK) << kvtrie_last_error();
    EXPECT_EQ(state_of(items_[0].sequence), KVTRIE_PAGE_PRIVATE);
    EXPECT_EQ(state_of(items_[1].sequence), KVTRIE_PAGE_BORROWED);
  }
  ~CApiBatchTest() override { EXPECT_EQ(kvtrie_detach(other_), KVTRIE_OK); }

  static kvtrie_page_state state_of(kvtrie_sequence sequence) {
    kvtrie_own_page page{};
    std::uint32_t count = 0;
    EXPECT_EQ(kvtrie_own_pages(sequence, &page, 1, &count), KVTRIE_OK);
    EXPECT_EQ(count, 1U);
    return page.state;
  }
  // Half of the page is there.
  void expect_stays_private(kvtrie_sequence sequence) {
    auto result = sized<kvtrie_publish_result>();
    ASSERT_EQ(kvtrie_publish_incomplete(sequence, 2, &result), KVTRIE_OK) << kvtrie_last_error();
    EXPECT_EQ(result.incomplete_tokens, 0U);
    EXPECT_EQ(result.pages_private, 1U);
    EXPECT_EQ(state_of(items_[0].sequence), KVTRIE_PAGE_PRIVATE);
    EXPECT_EQ(state_of(items_[1].sequence), KVTRIE_PAGE_BORROWED);
    EXPECT_EQ(cache_.count(PageState::kLive), 0U);
  }

  const Tokens tokens_ = path({1});
  kvtrie_worker other_{};
  kvtrie_sequence announcer_{};  // of the other worker
  kvtrie_batch_item items_[2]{};
};

TEST_F(CApiBatchTest, WhoComputesASharedPageDoesNotPublishItIncomplete) { expect_stays_private(items_[0].sequence); }

TEST_F(CApiBatchTest, WhoReadsASharedPageDoesNotPublishItIncomplete) { expect_stays_private(items_[1].sequence); }

TEST_F(CApiBatchTest, AloneItIsPublishedIncomplete) {
  ASSERT_EQ(kvtrie_release(items_[0].sequence), KVTRIE_OK);  // the other has it to compute then
  auto result = sized<kvtrie_publish_result>();
  ASSERT_EQ(kvtrie_publish_incomplete(items_[1].sequence, 2, &result), KVTRIE_OK);
  EXPECT_EQ(result.incomplete_tokens, 2U);
  EXPECT_EQ(state_of(items_[1].sequence), KVTRIE_PAGE_INCOMPLETE);
}

// The reader has not gone past that position itself when the page becomes its own.
TEST_F(CApiBatchTest, APageThatWasAnnouncedBeforeItWasHandedOverIsPublishedByItsNewOwner) {
  ASSERT_EQ(kvtrie_release(announcer_), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(items_[0].sequence, 0, nullptr), KVTRIE_OK);
  ASSERT_EQ(state_of(items_[0].sequence), KVTRIE_PAGE_ANNOUNCED);
  ASSERT_EQ(kvtrie_release(items_[0].sequence), KVTRIE_OK);
  ASSERT_EQ(state_of(items_[1].sequence), KVTRIE_PAGE_ANNOUNCED);
  auto result = sized<kvtrie_publish_result>();
  ASSERT_EQ(kvtrie_publish(items_[1].sequence, tokens_.size(), &result), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(result.pages_published, 1U);
  EXPECT_EQ(hits(worker_, space_, tokens_), 1U);
}

}  // namespace
}  // namespace kvtrie::test
