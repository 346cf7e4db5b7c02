// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie.hpp: each wrapper does what its call does, answers what it answers, and ends what it began.

#include "worker_plugin/kvtrie.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <span>
#include <thread>

#include "tests/support/replaced_heap.h"
#include "tests/worker_plugin/examples/example_cache.h"
#include "worker_plugin/kvtrie_policy.hpp"

namespace {

// Of the whole program, the library's too.
std::atomic<std::uint64_t> heap_calls{0};

}  // namespace

void kvtrie::test::before_allocation() { heap_calls.fetch_add(1, std::memory_order_relaxed); }

namespace kvtrie::test {
namespace {

using namespace kvtrie::client;  // as a user's program

static_assert(!std::is_copy_constructible_v<Worker> && !std::is_copy_assignable_v<Worker>);
static_assert(!std::is_copy_constructible_v<Sequence> && !std::is_copy_assignable_v<Sequence>);
static_assert(std::is_nothrow_move_constructible_v<Worker> && std::is_nothrow_move_assignable_v<Worker>);
static_assert(std::is_nothrow_move_constructible_v<Sequence> && std::is_nothrow_move_assignable_v<Sequence>);
static_assert(std::is_convertible_v<std::vector<std::uint32_t>&, Span<std::uint32_t>>);
static_assert(std::is_convertible_v<const std::vector<std::uint32_t>&, Tokens>);
static_assert(!std::is_convertible_v<const std::vector<std::uint32_t>&, Span<std::uint32_t>>);
static_assert(!std::is_convertible_v<std::vector<std::int32_t>&, Tokens>);
static_assert(std::is_convertible_v<kvtrie_field (&)[2], Fields> && std::is_convertible_v<Span<std::uint32_t>, Tokens>);
static_assert(std::is_constructible_v<std::span<const std::uint32_t>, Tokens>);

template <typename Call>
kvtrie_code thrown_by(Call call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("kvtrie"), std::string::npos) << error.what();
    return error.code();
  }
  return KVTRIE_OK;
}

AttachOptions options_of(const ExampleCache& cache) {
  AttachOptions options;
  options.cache = cache.name();
  options.directory = cache.directory();
  return options;
}

// Through the linked library, and through the same one loaded by its path.
class KvtrieHppTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { ASSERT_TRUE(cache_.served()); }
  static Library load() {
    return GetParam() ? Library::open(KVTRIE_TEST_LIB_DIR "/libkvtrie_worker.so") : Library::linked();
  }
  kvtrie_namespace open(const Worker& worker) const {
    const kvtrie_field fields[] = {{"model", "hpp"}};
    return worker.open_namespace(fields, "hpp");
  }

  const ExampleCache cache_;
  const Library library_ = load();
};

INSTANTIATE_TEST_SUITE_P(LinkedAndOpened, KvtrieHppTest, testing::Bool());

// The example of the whole: docs/plugin.md.
TEST_P(KvtrieHppTest, CycleOfOneRequest) {
  const ExampleCache& where = cache_;
  const std::vector<std::uint32_t> prompt = new_prompt();
  std::uint64_t computed = 0;
  for (int i = 0; i < 2; ++i) {
    // example: kvtrie.hpp
    namespace kv = kvtrie::client;
    const kv::Library library = kv::Library::linked(); /* or kv::Library::open("/usr/lib/libkvtrie_worker.so") */
    kv::AttachOptions options;
    options.cache = where.name();
    options.directory = where.directory();
    const kv::Worker worker(library, options); /* throws kv::Error; detaches at the end */
    const kvtrie_field fields[] = {{"model", "my-model@sha256-9f3c"}, {"kv", "f16"}};
    const kvtrie_namespace ns = worker.open_namespace(fields, "my-model");

    auto [begun, hit, sequence] = worker.begin(ns, prompt); /* releases at the end */
    if (!begun) throw kv::Error(begun.code(), library.last_error());
    if (kv::Outcome got = sequence.allocate(prompt.size()); !got) {
      /* got == KVTRIE_E_NOT_NOW, KVTRIE_E_NEVER, ...: answers that an engine branches on */
      throw kv::Error(got.code(), library.last_error());
    }
    const std::vector<std::uint32_t> pages = sequence.pages();
    for (std::size_t position = hit.cached_pages; position < pages.size(); ++position) {
      kv::Span<std::byte> bytes = worker.page(pages[position], 0); /* prefill into these */
      std::fill(bytes.begin(), bytes.end(), std::byte{1});
    }
    const auto [outcome, published] = sequence.publish(prompt.size());
    if (outcome == KVTRIE_E_FLUSHED) throw kv::Error(outcome.code(), library.last_error());
    // end
    EXPECT_EQ(hit.cached_tokens, i == 0 ? 0U : 2 * kPageTokens);
    EXPECT_EQ(published.published_tokens, 2 * kPageTokens);
    computed += prompt.size() - hit.cached_tokens;
  }
  EXPECT_EQ(computed, prompt.size() + kPageTokens / 2);
}

// The example of docs/plugin-sequences.md, with a first process that computes, is about to, or has announced and sleeps.
TEST_P(KvtrieHppTest, WaitsWhileItPays) {
  namespace kv = kvtrie::client;
  const Library& library = library_;
  const Worker owner(library, options_of(cache_)), worker(library, options_of(cache_));
  const kvtrie_namespace ns = open(worker);
  for (const char* owner_does : {"nothing", "computes", "sleeps"}) {
    std::vector<std::uint32_t> prompt = new_prompt();
    prompt[0] = static_cast<std::uint32_t>(owner_does[0]);
    Sequence computed;
    if (*owner_does != 'n') {
      computed = owner.begin(open(owner), prompt).sequence;
      ASSERT_TRUE(computed.allocate(prompt.size()));
    }
    std::thread later;
    if (*owner_does == 'c') later = std::thread([&] { EXPECT_TRUE(computed.publish(prompt.size()).outcome); });
    kv::PrefillSpeed speed;
    speed.computed(prompt.size(), *owner_does == 'c' ? .8 : .004);  // how long is waited for it
    // example: wait_while_it_pays
    const kv::Geometry geometry = worker.geometry();
    const kv::WaitPolicy policy(geometry); /* with speed, a kv::PrefillSpeed: once an engine */

    kv::Sequence sequence;
    for (int looks = 0; looks < 3; ++looks) {
      kv::Begun begun = worker.begin(ns, prompt);
      if (!begun.outcome) throw kv::Error(begun.outcome.code(), library.last_error());
      sequence = std::move(begun.sequence);
      const kv::WaitedWhile waited =
          kv::wait_while_it_pays(sequence, begun.result, policy, speed.tokens_per_s(), looks > 0);
      if (!sequence.allocate(prompt.size())) break; /* no pages: as ever */
      /* kIgnore: it did not pay, compute too. Else, was somebody faster between begin and allocate? */
      if (waited.last == kv::Choice::kIgnore) break;
      if (!kv::announced_by_another(sequence, prompt.size(), geometry.tokens_per_page)) break;
    }
    /* prefill what is not cached, and measure it: speed.computed(tokens, seconds) */
    // end
    if (later.joinable()) later.join();
    std::vector<kvtrie_own_page> own(4);
    own.resize(sequence.own_pages(own));
    EXPECT_EQ(own.size(), *owner_does == 'c' ? 1U : 3U) << owner_does;
    EXPECT_EQ(own[0].state, *owner_does == 'n' ? KVTRIE_PAGE_ANNOUNCED : KVTRIE_PAGE_PRIVATE) << owner_does;
  }
}

TEST_P(KvtrieHppTest, CallsOfASequence) {
  const Worker worker(library_, options_of(cache_));
  const kvtrie_namespace ns = open(worker);
  std::vector<std::uint32_t> tokens = new_prompt();
  BeginOptions partial;
  partial.flags = KVTRIE_PARTIAL;
  auto [begun, hit, sequence] = worker.begin(ns, tokens, &partial);
  ASSERT_TRUE(begun) << library_.last_error();
  EXPECT_EQ(hit.cached_tokens, 0U);
  EXPECT_EQ(hit.partial_page, KVTRIE_NO_PAGE);
  ASSERT_TRUE(sequence.allocate(4 * kPageTokens));
  EXPECT_EQ(sequence.page_count(), 4U);
  std::uint32_t pages[2] = {};
  sequence.get_pages(1, pages);
  EXPECT_EQ(pages[0], sequence.pages()[1]);
  EXPECT_EQ(pages[1], sequence.pages()[2]);
  sequence.give_back(3, 1);
  kvtrie_own_page own[2] = {};
  EXPECT_EQ(sequence.own_pages(own), 3U) << "more than fit";
  EXPECT_EQ(own[1].page, pages[0]);
  EXPECT_EQ(own[1].state, KVTRIE_PAGE_ANNOUNCED);
  std::vector<char> in(2 * kPageBytes), out(2 * kPageBytes);
  std::iota(in.begin(), in.end(), 'a');
  sequence.copy_in(0, 2 * kPageTokens, 1, nullptr, in.data());
  sequence.copy_out(0, 2 * kPageTokens, 1, nullptr, out.data());
  EXPECT_EQ(in, out);
  EXPECT_EQ(std::memcmp(worker.page(pages[0], 1).data(), &in[kPageBytes], kPageBytes), 0);
  EXPECT_EQ(worker.page(pages[0], 1).size(), kPageBytes);

  Begun later = worker.begin(ns, tokens);
  EXPECT_EQ(later.result.pending_pages, 2U);
  Waited waited = later.sequence.wait_pending(1);
  EXPECT_EQ(waited.outcome.code(), KVTRIE_E_TIMEOUT);
  EXPECT_EQ(waited.result.pending_pages, 2U);
  const Published incomplete = sequence.publish_incomplete(tokens.size());
  ASSERT_TRUE(incomplete.outcome);
  EXPECT_EQ(incomplete.result.incomplete_tokens, kPageTokens / 2);
  waited = later.sequence.wait_pending(1000);
  EXPECT_TRUE(waited.outcome);
  EXPECT_EQ(waited.result.cached_pages, 2U);
  EXPECT_EQ(worker.begin(ns, tokens, &partial).result.partial_tokens, kPageTokens / 2);

  const std::vector<std::uint32_t> more(kPageTokens / 2, 7);
  later.sequence.append(more);
  tokens.insert(tokens.end(), more.begin(), more.end());
  ASSERT_TRUE(later.sequence.allocate(tokens.size()));
  ForkOptions tagged;
  tagged.request_tag = 5;
  Forked forked = later.sequence.fork(&tagged);
  ASSERT_TRUE(forked.outcome);
  EXPECT_EQ(forked.child.pages()[1], later.sequence.pages()[1]);
  EXPECT_NE(forked.child.pages()[2], later.sequence.pages()[2]);
  const Published published = later.sequence.publish(tokens.size());
  ASSERT_TRUE(published.outcome);
  EXPECT_EQ(published.result.published_tokens, 3 * kPageTokens);
  EXPECT_EQ(worker.begin(ns, tokens).result.cached_pages, 3U);
  EXPECT_TRUE(forked.child.release());
}

TEST_P(KvtrieHppTest, CallsOfAWorker) {
  Worker worker(library_, options_of(cache_));
  const kvtrie_namespace ns = open(worker);
  const std::vector<std::uint32_t> tokens = new_prompt();
  EXPECT_STREQ(library_.version(), kvtrie_version());
  EXPECT_EQ(library_.api_version(), KVTRIE_API_VERSION);
  EXPECT_STREQ(library_.code_name(KVTRIE_E_FLUSHED), "flushed");
  EXPECT_EQ(worker.geometry().pages, 64U);
  EXPECT_EQ(worker.page_address(3, 1), static_cast<std::byte*>(worker.page_address(0, 1)) + 3 * kPageBytes);

  Batch batch;
  std::uint32_t computed_by[3] = {9, 9, 9};
  batch.add(ns, tokens, tokens.size());
  batch.add(ns, tokens, tokens.size(), nullptr, computed_by);
  ASSERT_TRUE(batch.prepare(worker)) << library_.last_error();
  EXPECT_EQ(batch.size(), 2U);
  EXPECT_EQ(batch.item(1).shared_tokens, 2 * kPageTokens);
  EXPECT_EQ(computed_by[1], 0U);
  EXPECT_TRUE(batch.sequence(0).publish(tokens.size()).outcome);
  const Sequence taken = std::move(batch.sequence(1));
  EXPECT_EQ(taken.page_count(), 3U);

  Probed probed = worker.probe(ns, tokens);
  EXPECT_TRUE(probed.outcome);
  EXPECT_EQ(probed.result.cached_pages, 2U);
  std::vector<std::uint64_t> hashes(1);
  EXPECT_EQ(worker.hash_tokens(ns, tokens, hashes), 2U);
  EXPECT_EQ(worker.probe_hashes(ns, hashes).result.cached_pages, 1U);
  EXPECT_EQ(worker.probe({ns.id + 1}, tokens).outcome.code(), KVTRIE_E_STALE);
  EXPECT_EQ(worker.probe_hashes({ns.id + 1}, hashes).outcome.code(), KVTRIE_E_STALE);
  EXPECT_EQ(worker.counters().batches, 1U);

  EXPECT_TRUE(worker.flush(ns));
  EXPECT_EQ(worker.probe(ns, tokens).result.cached_pages, 0U);
  EXPECT_EQ(batch.sequence(0).publish(tokens.size()).outcome.code(), KVTRIE_E_FLUSHED);
  ASSERT_TRUE(batch.sequence(0).release());
  const Evicted evicted = worker.evict({0}, 0);
  EXPECT_TRUE(evicted.outcome);
  EXPECT_LE(evicted.pages, 2U);
  worker.drive_clock(50);
  EXPECT_EQ(worker.flush({ns.id + 1}).code(), KVTRIE_E_STALE);
  EXPECT_TRUE(worker.detach());
}

TEST_P(KvtrieHppTest, AnswersToBranchOnDoNotThrowAndOthersDo) {
  Worker worker(library_, options_of(cache_));
  const kvtrie_namespace ns = open(worker);
  const std::vector<std::uint32_t> tokens = new_prompt();
  Begun holder = worker.begin(ns, tokens);
  EXPECT_EQ(holder.sequence.allocate(65 * kPageTokens).code(), KVTRIE_E_NEVER);
  ASSERT_TRUE(holder.sequence.allocate(64 * kPageTokens));
  const std::vector<std::uint32_t> others = new_prompt();
  Begun wants = worker.begin(ns, others);
  EXPECT_TRUE(wants.sequence.allocate(1) == KVTRIE_E_NOT_NOW);
  EXPECT_NE(std::string(library_.last_error()).find("about 0 free"), std::string::npos) << library_.last_error();
  AllocateOptions patience;
  patience.wait_ms = 1;
  EXPECT_EQ(wants.sequence.allocate(1, &patience).code(), KVTRIE_E_TIMEOUT);
  EXPECT_EQ(holder.sequence.fork().outcome.code(), KVTRIE_E_NOT_NOW);
  EXPECT_FALSE(holder.sequence.fork().child);
  Batch batch;
  batch.add(ns, others, 16);
  EXPECT_EQ(batch.prepare(worker).code(), KVTRIE_E_NOT_NOW);
  EXPECT_THROW((void)batch.sequence(0), std::out_of_range);
  batch.add(ns, others, 64 * kPageTokens);
  batch.add(ns, tokens, 64 * kPageTokens);
  EXPECT_EQ(batch.prepare(worker).code(), KVTRIE_E_NEVER);

  const Begun none = worker.begin({ns.id + 1}, tokens);
  EXPECT_EQ(none.outcome.code(), KVTRIE_E_STALE);
  EXPECT_FALSE(none.sequence);
  EXPECT_EQ(thrown_by([&] { (void)none.sequence.page_count(); }), KVTRIE_E_STALE);
  EXPECT_EQ(thrown_by([&] { (void)worker.page(64, 0); }), KVTRIE_E_INVALID);
  EXPECT_EQ(thrown_by([&] { holder.sequence.give_back(1, 500); }), KVTRIE_E_INVALID);
  EXPECT_EQ(thrown_by([&] { (void)worker.open_namespace({}); }), KVTRIE_E_INVALID);
  EXPECT_EQ(thrown_by([&] { (void)worker.plane_descriptor(0); }), KVTRIE_E_INVALID) << "host memory";
  EXPECT_EQ(thrown_by([&] { (void)worker.queue_copy(0, 0, 0, {}); }), KVTRIE_E_INVALID);
  EXPECT_TRUE(worker.wait_copies(0));
  EXPECT_EQ(thrown_by([&] { (void)worker.attach(library_, options_of(cache_)); }), KVTRIE_E_INVALID);
  EXPECT_EQ(thrown_by([&] { (void)Worker().geometry(); }), KVTRIE_E_STALE);
  EXPECT_EQ(thrown_by([&] { (void)Sequence().page_count(); }), KVTRIE_E_STALE);
  EXPECT_EQ(Sequence().release().code(), KVTRIE_E_STALE);
  EXPECT_EQ(Worker().detach().code(), KVTRIE_E_STALE);

  AttachOptions nowhere = options_of(cache_);
  nowhere.cache = "nobody-serves-this";
  Worker second;
  EXPECT_EQ(second.attach(library_, nowhere).code(), KVTRIE_E_NO_COORDINATOR);
  EXPECT_FALSE(second);
  EXPECT_EQ(thrown_by([&] { Worker(library_, nowhere); }), KVTRIE_E_NO_COORDINATOR);
  EXPECT_EQ(thrown_by([] { (void)Library::open("/nonexistent/libkvtrie.so"); }), KVTRIE_E_SYSTEM);
  EXPECT_EQ(thrown_by([] { (void)Library::open("libm.so.6"); }), KVTRIE_E_INVALID) << "no kvtrie";

  // The wait of another thread: detach says so and changes nothing.
  patience.wait_ms = 20'000;
  const std::uint64_t waits = worker.counters().waits;
  Outcome waited = KVTRIE_E_SYSTEM;
  std::jthread waiter([&] { waited = wants.sequence.allocate(16, &patience); });
  EXPECT_TRUE(eventually([&] { return worker.counters().waits > waits; }));
  EXPECT_EQ(worker.detach().code(), KVTRIE_E_BUSY);
  EXPECT_TRUE(worker);
  EXPECT_EQ(wants.sequence.release().code(), KVTRIE_E_BUSY);
  EXPECT_TRUE(holder.sequence.release());
  waiter.join();
  EXPECT_TRUE(waited);
}

TEST_P(KvtrieHppTest, WhatWasBegunEndsWithItsObject) {
  Worker worker(library_, options_of(cache_));
  const kvtrie_namespace ns = open(worker);
  const std::vector<std::uint32_t> tokens = new_prompt();
  Sequence outer;
  EXPECT_FALSE(outer);
  {
    Begun begun = worker.begin(ns, tokens);
    ASSERT_TRUE(begun.sequence.allocate(64 * kPageTokens));
    outer = std::move(begun.sequence);
    EXPECT_FALSE(begun.sequence);
    EXPECT_EQ(thrown_by([&] { (void)begun.sequence.page_count(); }), KVTRIE_E_STALE);
  }
  EXPECT_EQ(outer.page_count(), 64U) << "moved, not released";
  EXPECT_EQ(worker.counters().releases, 0U);
  outer = worker.begin(ns, tokens).sequence;
  EXPECT_EQ(worker.counters().releases, 1U) << "what it had before";
  ASSERT_TRUE(outer.allocate(64 * kPageTokens)) << "all pages are free again";
  { const Sequence ends = std::move(outer); }
  EXPECT_EQ(worker.counters().releases, 2U);
  Sequence raw = worker.begin(ns, tokens).sequence;
  const kvtrie_sequence handle = raw.take_handle();
  EXPECT_FALSE(raw);
  raw = Sequence(library_.calls().table, handle);
  EXPECT_EQ(raw.handle().id, handle.id);

  // A sequence outlives its worker: it is over, and harmless.
  const kvtrie_worker id = worker.handle();
  Worker moved = std::move(worker);
  EXPECT_FALSE(worker);
  EXPECT_EQ(moved.handle().id, id.id);
  moved = Worker(library_, options_of(cache_));
  EXPECT_NE(moved.handle().id, id.id);
  EXPECT_EQ(raw.release().code(), KVTRIE_E_STALE) << "the first worker was detached by the assignment";
  EXPECT_EQ(moved.counters().lookups, 0U);
}

TEST_P(KvtrieHppTest, HitsTakeNothingFromTheHeap) {
  const AttachOptions attach = options_of(cache_);
  const std::uint64_t unattached = heap_calls.load();
  const Worker worker(library_, attach);
  EXPECT_GT(heap_calls.load(), unattached) << "what the library takes is counted";
  const kvtrie_namespace ns = open(worker);
  const std::vector<std::uint32_t> tokens = new_prompt();
  cache_tokens(worker.handle(), ns, tokens.data(), tokens.size());
  BeginOptions options;
  std::uint32_t pages[2] = {};
  const auto hit = [&] {
    Begun begun = worker.begin(ns, tokens, &options);
    begun.sequence.get_pages(0, pages);
    return worker.page(pages[1], 0).size() * begun.result.cached_pages;
  };
  EXPECT_EQ(hit(), 2 * kPageBytes);
  const std::uint64_t before = heap_calls.load();
  std::uint64_t bytes = 0;
  for (int i = 0; i < 100; ++i)
    bytes += hit();
  EXPECT_EQ(heap_calls.load(), before);
  EXPECT_EQ(bytes, 200 * kPageBytes);
}

TEST_P(KvtrieHppTest, CallsOfDevices) {
  const Worker scheduler(library_, options_of(cache_));
  AttachOptions options = options_of(cache_);
  options.role = KVTRIE_ROLE_PLANE_WRITER;
  options.plane_mask = 1;
  options.scheduler = scheduler.id();
  Worker rank(library_, options);
  const std::uint64_t id = rank.id();
  EXPECT_EQ(scheduler.writer_over(id).code(), KVTRIE_E_BUSY);
  EXPECT_EQ(thrown_by([&] { (void)scheduler.writer_over(0); }), KVTRIE_E_INVALID);
  ASSERT_TRUE(rank.detach());
  EXPECT_TRUE(eventually([&] { return static_cast<bool>(scheduler.writer_over(id)); }));

  const ExampleCache queued({"--device", "queued", "--queue-delay-ms", "60000"});
  ASSERT_TRUE(queued.served());
  const Worker worker(library_, options_of(queued));
  const std::byte bytes[4] = {};
  for (int i = 0; i < 8; ++i)
    ASSERT_TRUE(worker.queue_copy(0, 0, 0, bytes));
  EXPECT_EQ(worker.queue_copy(0, 0, 0, bytes).code(), KVTRIE_E_NOT_NOW);
  EXPECT_EQ(worker.wait_copies(1).code(), KVTRIE_E_TIMEOUT);

  ::setenv("LD_LIBRARY_PATH", KVTRIE_TEST_STUB_CUDA_DIR, 1);
  const ExampleCache cuda({"--device", "cuda:0"});
  ::unsetenv("LD_LIBRARY_PATH");
  ASSERT_TRUE(cuda.served());
  const Worker on_gpu(library_, options_of(cuda));
  PlaneDescriptor plane = on_gpu.plane_descriptor(1);
  const int number = plane.get();
  EXPECT_GE(::fcntl(number, F_GETFD), 0);
  {
    PlaneDescriptor moved = std::move(plane);
    EXPECT_EQ(plane.get(), -1);
    EXPECT_EQ(moved.get(), number);
  }
  EXPECT_LT(::fcntl(number, F_GETFD), 0) << "closed";
  EXPECT_EQ(thrown_by([&] { (void)on_gpu.page(0, 0); }), KVTRIE_E_INVALID);
}

}  // namespace
}  // namespace kvtrie::test
