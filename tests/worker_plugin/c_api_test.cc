// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What each call of kvtrie.h does and answers, on a healthy cache.

#include <cstring>
#include <numeric>
#include <thread>

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

Tokens many(std::uint32_t pages) {
  std::vector<std::uint32_t> names(pages);
  std::iota(names.begin(), names.end(), 1U);
  return path(names);
}

TEST_F(CApiTest, PublishedPagesAreFoundAgain) {
  const kvtrie_sequence first = cache(worker_, space_, path({1, 2, 3}));
  const Begun again = begin(worker_, space_, path({1, 2, 3, 4}));
  ASSERT_EQ(again.code, KVTRIE_OK);
  EXPECT_EQ(again.result.cached_pages, 3U);
  EXPECT_EQ(again.result.cached_tokens, 3U * kPageTokens);
  EXPECT_EQ(again.result.pending_pages, 0U);
  std::uint32_t mine[3] = {}, theirs[3] = {};
  ASSERT_EQ(kvtrie_get_pages(first, 0, 3, mine), KVTRIE_OK);
  ASSERT_EQ(kvtrie_get_pages(again.sequence, 0, 3, theirs), KVTRIE_OK);
  EXPECT_EQ(std::memcmp(mine, theirs, sizeof mine), 0);
  EXPECT_EQ(kvtrie_release(again.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(first), KVTRIE_OK);
  EXPECT_EQ(hits(worker_, space_, path({1, 2, 3})), 3U);
}

TEST_F(CApiTest, EmptyAndShortListsMatchNothingAndCanGrow) {
  for (const std::size_t length : {0U, 1U, 3U}) {
    const Tokens tokens = many(1);
    auto result = sized<kvtrie_begin_result>();
    kvtrie_sequence sequence{0};
    ASSERT_EQ(kvtrie_begin(worker_, space_, length == 0 ? nullptr : tokens.data(), length, nullptr,
                           &result, &sequence),
              KVTRIE_OK);
    EXPECT_EQ(result.cached_tokens, 0U);
    std::uint32_t pages = 9;
    EXPECT_EQ(kvtrie_page_count(sequence, &pages), KVTRIE_OK);
    EXPECT_EQ(pages, 0U);
    auto published = sized<kvtrie_publish_result>();
    EXPECT_EQ(kvtrie_publish(sequence, length, &published), KVTRIE_OK);
    EXPECT_EQ(published.published_tokens, 0U);
    // Generated tokens fill the page; only then it can be published.
    EXPECT_EQ(kvtrie_append(sequence, tokens.data() + length, kPageTokens - length), KVTRIE_OK);
    EXPECT_EQ(kvtrie_append(sequence, nullptr, 0), KVTRIE_OK);
    EXPECT_EQ(kvtrie_allocate(sequence, kPageTokens, nullptr), KVTRIE_OK);
    EXPECT_EQ(kvtrie_publish(sequence, kPageTokens, &published), KVTRIE_OK);
    EXPECT_EQ(published.published_tokens, kPageTokens);
    EXPECT_EQ(published.pages_published, length == 0 ? 1U : 0U);  // later ones are duplicates
    EXPECT_EQ(published.pages_private, length == 0 ? 0U : 1U);
    EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
  }
  EXPECT_EQ(hits(worker_, space_, many(1)), 1U);
}

TEST_F(CApiTest, ListLongerThanThePoolMatchesWhatIsThereAndCanNeverBeAllocated) {
  const Tokens tokens = many(200);
  const kvtrie_sequence first = cache(worker_, space_, many(60));
  const Begun begun = begin(worker_, space_, tokens);
  ASSERT_EQ(begun.code, KVTRIE_OK);
  EXPECT_EQ(begun.result.cached_pages, 60U);
  EXPECT_EQ(kvtrie_allocate(begun.sequence, tokens.size(), nullptr), KVTRIE_E_NEVER);
  EXPECT_TRUE(last_error_has("unit")) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_allocate(begun.sequence, UINT64_MAX, nullptr), KVTRIE_E_NEVER);
  EXPECT_EQ(kvtrie_allocate(begun.sequence, 64 * kPageTokens, nullptr), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(begun.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(first), KVTRIE_OK);
}

TEST_F(CApiTest, NotNowTakesNothingAndIsNotNever) {
  const Begun holder = begin(worker_, space_, many(60));
  ASSERT_EQ(kvtrie_allocate(holder.sequence, 60 * kPageTokens, nullptr), KVTRIE_OK);
  const Begun wants = begin(worker_, space_, path({900}));
  EXPECT_EQ(kvtrie_allocate(wants.sequence, 5 * kPageTokens, nullptr), KVTRIE_E_NOT_NOW);
  EXPECT_TRUE(last_error_has("about 4 free")) << kvtrie_last_error();
  std::uint32_t count = 9;
  EXPECT_EQ(kvtrie_page_count(wants.sequence, &count), KVTRIE_OK);
  EXPECT_EQ(count, 0U);
  EXPECT_EQ(cache_.count(PageState::kFree), 4U);
  EXPECT_EQ(kvtrie_allocate(wants.sequence, 4 * kPageTokens, nullptr), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(wants.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(holder.sequence), KVTRIE_OK);
  EXPECT_EQ(cache_.count(PageState::kFree), 64U);
}

TEST_F(CApiTest, AskedWaitEndsInTimeout) {
  const Begun holder = begin(worker_, space_, many(64));
  ASSERT_EQ(kvtrie_allocate(holder.sequence, 64 * kPageTokens, nullptr), KVTRIE_OK);
  const Begun wants = begin(worker_, space_, path({900}));
  auto options = sized<kvtrie_allocate_options>();
  options.wait_ms = 20;
  EXPECT_EQ(kvtrie_allocate(wants.sequence, kPageTokens, &options), KVTRIE_E_TIMEOUT);
  options.flags = KVTRIE_NO_WAIT;
  EXPECT_EQ(kvtrie_allocate(wants.sequence, kPageTokens, &options), KVTRIE_E_NOT_NOW);
  auto counters = sized<kvtrie_counters>();
  ASSERT_EQ(kvtrie_get_counters(worker_, &counters), KVTRIE_OK);
  EXPECT_EQ(counters.waits, 1U);
  EXPECT_EQ(kvtrie_release(wants.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(holder.sequence), KVTRIE_OK);
}

TEST_F(CApiTest, WaiterGetsPagesThatComeFree) {
  const Begun holder = begin(worker_, space_, many(64));
  ASSERT_EQ(kvtrie_allocate(holder.sequence, 64 * kPageTokens, nullptr), KVTRIE_OK);
  const Begun wants = begin(worker_, space_, path({900}));
  kvtrie_code code = KVTRIE_E_SYSTEM;
  std::jthread waiter([&] {
    auto options = sized<kvtrie_allocate_options>();
    options.wait_ms = 20'000;
    code = kvtrie_allocate(wants.sequence, kPageTokens, &options);
  });
  while (cache_.segment().worker({1}).pages_wanted.load() == 0)
    std::this_thread::yield();
  EXPECT_EQ(kvtrie_detach(worker_), KVTRIE_E_BUSY);
  EXPECT_EQ(kvtrie_release(wants.sequence), KVTRIE_E_BUSY);
  EXPECT_EQ(kvtrie_release(holder.sequence), KVTRIE_OK);
  RoomKeeper keeper(cache_.segment(), Watermarks{0, 0});
  while (cache_.segment().worker({1}).pages_wanted.load() != 0) {
    keeper.pass([] { return false; });
    std::this_thread::yield();
  }
  waiter.join();
  EXPECT_EQ(code, KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(wants.sequence), KVTRIE_OK);
}

TEST_F(CApiTest, PendingPagesAreReported) {
  const Begun first = begin(worker_, space_, path({1, 2}));
  ASSERT_EQ(kvtrie_allocate(first.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  const Begun second = begin(worker_, space_, path({1, 2}));
  EXPECT_EQ(second.result.cached_pages, 0U);
  EXPECT_EQ(second.result.pending_pages, 2U);
  auto published = sized<kvtrie_publish_result>();
  ASSERT_EQ(kvtrie_allocate(second.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(second.sequence, 2 * kPageTokens, &published), KVTRIE_OK);
  EXPECT_EQ(published.pages_private, 2U);
  EXPECT_EQ(published.published_tokens, 0U);
  EXPECT_EQ(kvtrie_release(second.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(first.sequence), KVTRIE_OK);
}

TEST_F(CApiTest, FlagsKeepASequenceFromReadingAndPublishing) {
  const kvtrie_sequence first = cache(worker_, space_, path({1, 2}));
  const Begun blind = begin(worker_, space_, path({1, 2}), KVTRIE_NO_READ);
  EXPECT_EQ(blind.result.cached_pages, 0U);
  EXPECT_EQ(kvtrie_release(blind.sequence), KVTRIE_OK);
  const Begun secret = begin(worker_, space_, path({7, 8}), KVTRIE_NO_PUBLISH);
  ASSERT_EQ(kvtrie_allocate(secret.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  auto published = sized<kvtrie_publish_result>();
  ASSERT_EQ(kvtrie_publish(secret.sequence, 2 * kPageTokens, &published), KVTRIE_OK);
  EXPECT_EQ(published.pages_published, 0U);
  EXPECT_EQ(published.pages_private, 2U);
  EXPECT_EQ(hits(worker_, space_, path({7, 8})), 0U);
  EXPECT_EQ(kvtrie_release(secret.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(first), KVTRIE_OK);
}

// Where the tokens stand decides nothing but who keeps them.
TEST_F(CApiTest, TokensThatStayAreNotCopiedUntilTheyAreAppendedToOrForked) {
  std::vector<std::uint32_t> tokens = path({1, 2, 3});
  const Begun borrowing = begin(worker_, space_, tokens, KVTRIE_TOKENS_STAY);
  kvtrie_sequence child{};
  ASSERT_EQ(kvtrie_fork(borrowing.sequence, nullptr, &child), KVTRIE_OK);
  const std::vector<std::uint32_t> more = path({4});
  const Begun appending = begin(worker_, space_, tokens, KVTRIE_TOKENS_STAY);
  ASSERT_EQ(kvtrie_append(appending.sequence, more.data(), more.size()), KVTRIE_OK);
  ASSERT_EQ(kvtrie_allocate(borrowing.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(borrowing.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  EXPECT_EQ(hits(worker_, space_, path({1, 2, 3})), 2U);
  // A third page by what stands there now: that it is another shows that nothing was copied.
  tokens.back() ^= 1;
  ASSERT_EQ(kvtrie_allocate(borrowing.sequence, 3 * kPageTokens, nullptr), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(borrowing.sequence, 3 * kPageTokens, nullptr), KVTRIE_OK);
  EXPECT_EQ(hits(worker_, space_, tokens), 3U);
  EXPECT_EQ(hits(worker_, space_, path({1, 2, 3})), 2U);
  EXPECT_EQ(kvtrie_release(borrowing.sequence), KVTRIE_OK);
  tokens.assign(tokens.size(), 0);
  // These two have copies of their own.
  for (const kvtrie_sequence sequence : {child, appending.sequence}) {
    ASSERT_EQ(kvtrie_allocate(sequence, 3 * kPageTokens, nullptr), KVTRIE_OK);
    ASSERT_EQ(kvtrie_publish(sequence, 3 * kPageTokens, nullptr), KVTRIE_OK);
    EXPECT_EQ(hits(worker_, space_, path({1, 2, 3})), 3U);
    EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
  }
}

TEST_F(CApiTest, BytesWrittenThroughPageAddressAreSharedInEveryPlane) {
  const kvtrie_worker other = cache_.attach();
  const kvtrie_namespace theirs = cache_.open(other, {{"model", "a"}});
  const Begun writer = begin(worker_, space_, path({1, 2}));
  ASSERT_EQ(kvtrie_allocate(writer.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  std::uint32_t pages[2] = {};
  ASSERT_EQ(kvtrie_get_pages(writer.sequence, 0, 2, pages), KVTRIE_OK);
  for (std::uint32_t i = 0; i < 2; ++i) {
    for (std::uint32_t plane = 0; plane < 2; ++plane) {
      void* address = nullptr;
      ASSERT_EQ(kvtrie_page_address(worker_, pages[i], plane, &address), KVTRIE_OK);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(address) % 64, 0U);
      std::memset(address, static_cast<int>(10 * i + plane + 1), 64);
    }
  }
  ASSERT_EQ(kvtrie_publish(writer.sequence, 2 * kPageTokens, nullptr), KVTRIE_OK);
  const Begun reader = begin(other, theirs, path({1, 2}));
  ASSERT_EQ(reader.result.cached_pages, 2U);
  for (std::uint32_t i = 0; i < 2; ++i) {
    for (std::uint32_t plane = 0; plane < 2; ++plane) {
      std::uint32_t page = 0;
      void* address = nullptr;
      void* original = nullptr;
      ASSERT_EQ(kvtrie_get_pages(reader.sequence, i, 1, &page), KVTRIE_OK);
      ASSERT_EQ(kvtrie_page_address(other, page, plane, &address), KVTRIE_OK);
      ASSERT_EQ(kvtrie_page_address(worker_, page, plane, &original), KVTRIE_OK);
      EXPECT_NE(address, original);  // another mapping, the same bytes
      for (int byte = 0; byte < 64; ++byte) {
        EXPECT_EQ(static_cast<unsigned char*>(address)[byte], 10 * i + plane + 1);
      }
    }
  }
  EXPECT_EQ(kvtrie_detach(other), KVTRIE_OK);
}

TEST_F(CApiTest, NamespacesNeverMatchEachOther) {
  const kvtrie_namespace other = cache_.open(worker_, {{"model", "a"}, {"tenant", "t"}});
  const kvtrie_namespace same = cache_.open(worker_, {{"model", "a"}});
  EXPECT_EQ(same.id, space_.id);
  EXPECT_NE(other.id, space_.id);
  const kvtrie_sequence first = cache(worker_, space_, path({1, 2}));
  EXPECT_EQ(hits(worker_, other, path({1, 2})), 0U);
  const kvtrie_sequence second = cache(worker_, other, path({1, 2}));
  EXPECT_EQ(hits(worker_, other, path({1, 2})), 2U);
  std::uint32_t a = 0, b = 0;
  ASSERT_EQ(kvtrie_get_pages(first, 0, 1, &a), KVTRIE_OK);
  ASSERT_EQ(kvtrie_get_pages(second, 0, 1, &b), KVTRIE_OK);
  EXPECT_NE(a, b);
}

TEST_F(CApiTest, FieldOrderDoesNotMatter) {
  cache_.make_namespace({{"adapter", "x"}, {"model", "a"}});
  const kvtrie_field forward[] = {{"adapter", "x"}, {"model", "a"}};
  const kvtrie_field backward[] = {{"model", "a"}, {"adapter", "x"}};
  kvtrie_namespace one{0}, two{0};
  ASSERT_EQ(kvtrie_open_namespace(worker_, forward, 2, "label", &one), KVTRIE_OK);
  ASSERT_EQ(kvtrie_open_namespace(worker_, backward, 2, nullptr, &two), KVTRIE_OK);
  EXPECT_EQ(one.id, two.id);
}

TEST_F(CApiTest, NewNamespaceWithoutCoordinatorSaysWhatToStart) {
  const kvtrie_field field = {"model", "unknown"};
  kvtrie_namespace name_space{7};
  EXPECT_EQ(kvtrie_open_namespace(worker_, &field, 1, nullptr, &name_space),
            KVTRIE_E_NO_COORDINATOR);
  EXPECT_EQ(name_space.id, 0U);
  EXPECT_TRUE(last_error_has("kvtried")) << kvtrie_last_error();
}

TEST_F(CApiTest, NamespaceWhoseRecordWasReusedIsStaleAndOpensAgain) {
  for (const char* model : {"b", "c", "d"})
    cache_.make_namespace({{"model", model}});
  cache_.make_namespace(
      {{"model", "e"}});  // four records: takes the place of "a", which has no page
  EXPECT_EQ(begin(worker_, space_, path({1})).code, KVTRIE_E_STALE);
  EXPECT_TRUE(last_error_has("open it")) << kvtrie_last_error();
  const kvtrie_namespace again = cache_.open(worker_, {{"model", "a"}});
  EXPECT_NE(again.id, space_.id);
  EXPECT_EQ(hits(worker_, again, path({1})), 0U);
  EXPECT_EQ(begin(worker_, space_, path({1})).code, KVTRIE_E_STALE);
}

TEST_F(CApiTest, NamespaceOfAnotherWorkerIsStale) {
  const kvtrie_worker other = cache_.attach();
  EXPECT_EQ(begin(other, space_, path({1})).code, KVTRIE_E_STALE);
  EXPECT_EQ(begin(worker_, kvtrie_namespace{0}, path({1})).code, KVTRIE_E_STALE);
  EXPECT_EQ(begin(worker_, kvtrie_namespace{~std::uint64_t{0}}, path({1})).code, KVTRIE_E_STALE);
  EXPECT_EQ(kvtrie_detach(other), KVTRIE_OK);
}

TEST_F(CApiTest, EverySequenceCallAnswersStaleAfterRelease) {
  const kvtrie_sequence gone = cache(worker_, space_, path({1}));
  ASSERT_EQ(kvtrie_release(gone), KVTRIE_OK);
  const kvtrie_sequence next = cache(worker_, space_, path({1}));  // the same place in the table
  for (const std::uint64_t id : {gone.id, std::uint64_t{0}, std::uint64_t{1}, ~std::uint64_t{0},
                                 next.id + 1, next.id ^ (std::uint64_t{1} << 40)}) {
    const kvtrie_sequence stale{id};
    std::uint32_t value = 0;
    EXPECT_EQ(kvtrie_append(stale, &value, 1), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_allocate(stale, 4, nullptr), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_get_pages(stale, 0, 1, &value), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_page_count(stale, &value), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_publish(stale, 4, nullptr), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_release(stale), KVTRIE_E_STALE);
    EXPECT_TRUE(last_error_has("released")) << kvtrie_last_error();
  }
  EXPECT_EQ(kvtrie_release(next), KVTRIE_OK);
}

TEST_F(CApiTest, CountersCountSinceAttach) {
  cache(worker_, space_, path({1, 2}));
  EXPECT_EQ(hits(worker_, space_, path({1, 2, 3})), 2U);
  ASSERT_EQ(kvtrie_detach(worker_), KVTRIE_OK);
  ASSERT_EQ(cache_.reap_leavers(), 1U);
  worker_ = cache_.attach();  // the same slot, whose counters go on
  ASSERT_GT(cache_.segment().worker({1}).counters[0].load(), 0U);
  auto counters = sized<kvtrie_counters>();
  ASSERT_EQ(kvtrie_get_counters(worker_, &counters), KVTRIE_OK);
  EXPECT_EQ(counters.lookups, 0U);
  EXPECT_EQ(counters.pages_published, 0U);
  const kvtrie_namespace again = cache_.open(worker_, {{"model", "a"}});
  EXPECT_EQ(hits(worker_, again, path({1, 2, 3})), 2U);
  const Begun held = begin(worker_, again, path({1, 2, 4}));
  ASSERT_EQ(kvtrie_allocate(held.sequence, 4 * kPageTokens, nullptr), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(held.sequence, 3 * kPageTokens, nullptr), KVTRIE_OK);
  EXPECT_EQ(kvtrie_allocate(held.sequence, 1000, nullptr), KVTRIE_E_NEVER);
  EXPECT_EQ(kvtrie_release(held.sequence), KVTRIE_OK);
  ASSERT_EQ(kvtrie_get_counters(worker_, &counters), KVTRIE_OK);
  EXPECT_EQ(counters.lookups, 2U);
  EXPECT_EQ(counters.tokens_asked, 24U);
  EXPECT_EQ(counters.tokens_found, 16U);
  EXPECT_EQ(counters.pages_asked, 6U);
  EXPECT_EQ(counters.pages_hit, 4U);
  EXPECT_EQ(counters.pages_allocated, 2U);
  EXPECT_EQ(counters.pages_published, 1U);
  EXPECT_EQ(counters.pages_given_back, 1U);
  EXPECT_EQ(counters.failed_never, 1U);
  EXPECT_EQ(counters.releases, 2U);
}

TEST_F(CApiTest, DrivenClockNeverGoesBack) {
  ASSERT_EQ(kvtrie_drive_clock(worker_, 100), KVTRIE_OK);
  ASSERT_EQ(kvtrie_drive_clock(worker_, 50), KVTRIE_OK);
  EXPECT_EQ(cache_.segment().now_tick(), 100U);
  TestCacheOptions system;
  system.clock = ClockKind::kSystem;
  TestCache other(system, "system");
  const kvtrie_worker worker = other.attach();
  EXPECT_EQ(kvtrie_drive_clock(worker, 1), KVTRIE_E_INVALID);
  EXPECT_TRUE(last_error_has("--clock driven")) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST_F(CApiTest, OptionsReachLeaseAndPage) {
  ASSERT_EQ(kvtrie_drive_clock(worker_, 100), KVTRIE_OK);
  auto options = sized<kvtrie_begin_options>();
  options.request_tag = 4711;
  options.retention_ticks = 50;
  options.hint = 3;
  options.priority = 15;
  auto result = sized<kvtrie_begin_result>();
  kvtrie_sequence sequence{0};
  const Tokens tokens = path({1});
  ASSERT_EQ(
      kvtrie_begin(worker_, space_, tokens.data(), tokens.size(), &options, &result, &sequence),
      KVTRIE_OK);
  EXPECT_EQ(cache_.segment().leases({1})[0].request_tag.load(), 4711U);
  ASSERT_EQ(kvtrie_allocate(sequence, 4, nullptr), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(sequence, 4, nullptr), KVTRIE_OK);
  std::uint32_t page = 0;
  ASSERT_EQ(kvtrie_get_pages(sequence, 0, 1, &page), KVTRIE_OK);
  const Descriptor& descriptor = cache_.segment().descriptor({page});
  EXPECT_EQ(descriptor.retain_until.load(), 150U);
  EXPECT_EQ(descriptor.depth_class.load() >> 24 & 0xF, 15U);
  EXPECT_EQ(TouchWord{descriptor.touch.load()}.hint_and_flags() & 3, 3);
}

// The owner of a key publishes; the second one links to it, announces what is below, and gives its own copy back.
TEST_F(CApiTest, CopyThatGaveWayIsGivenBackAndWhatIsBelowStaysAnnounced) {
  const Begun owner = begin(worker_, space_, path({1}));
  ASSERT_EQ(kvtrie_allocate(owner.sequence, kPageTokens, nullptr), KVTRIE_OK);
  const Tokens tokens = path({1, 2});
  const Begun second = begin(worker_, space_, tokens);
  ASSERT_EQ(kvtrie_allocate(second.sequence, tokens.size(), nullptr), KVTRIE_OK);
  ASSERT_EQ(kvtrie_publish(owner.sequence, kPageTokens, nullptr), KVTRIE_OK);
  auto published = sized<kvtrie_publish_result>();
  ASSERT_EQ(kvtrie_publish(second.sequence, kPageTokens, &published), KVTRIE_OK);
  EXPECT_EQ(published.published_tokens, kPageTokens);
  EXPECT_EQ(cache_.count(PageState::kPending), 1U);
  ASSERT_EQ(kvtrie_give_back(second.sequence, 0, 1), KVTRIE_OK) << kvtrie_last_error();
  ASSERT_EQ(kvtrie_allocate(second.sequence, 3 * kPageTokens, nullptr), KVTRIE_OK) << kvtrie_last_error();
  ASSERT_EQ(kvtrie_publish(second.sequence, tokens.size(), &published), KVTRIE_OK);
  EXPECT_EQ(published.published_tokens, tokens.size());
  EXPECT_EQ(published.pages_published, 1U);
  EXPECT_EQ(kvtrie_release(second.sequence), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(owner.sequence), KVTRIE_OK);
}

}  // namespace
}  // namespace kvtrie::test
