// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Examples of docs/plugin.md with sequences (example_cache.h says how they get there), and that they do what it says.

#include "tests/worker_plugin/examples/example_cache.h"

namespace kvtrie::test {
namespace {

void show_begin(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  cache_tokens(worker, ns, tokens, count);
  // example: kvtrie_begin
  kvtrie_begin_options options = {.size = sizeof options, .request_tag = 17, .priority = 3};
  kvtrie_begin_result hit = {.size = sizeof hit};
  kvtrie_sequence sequence;
  kvtrie_code code = kvtrie_begin(worker, ns, tokens, count, &options, &hit, &sequence);
  if (code == KVTRIE_E_STALE) {
    /* the namespace lost its place: kvtrie_open_namespace, then begin again */
  }
  check(code);
  /* KV of tokens[0 .. hit.cached_tokens) is there and stays until kvtrie_release */
  uint64_t to_prefill = count - hit.cached_tokens;
  // end
  EXPECT_EQ(hit.cached_pages, 2U);
  EXPECT_EQ(to_prefill, kPageTokens / 2);
  check(kvtrie_release(sequence));
}

void show_wait_pending(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence others = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(others, count, nullptr));
  kvtrie_begin_result hit{};
  hit.size = sizeof hit;
  kvtrie_sequence sequence{0};
  check(kvtrie_begin(worker, ns, tokens, count, nullptr, &hit, &sequence));
  EXPECT_EQ(hit.pending_pages, 2U);
  EXPECT_EQ(kvtrie_wait_pending(sequence, 1, &hit), KVTRIE_E_TIMEOUT);
  check(kvtrie_publish(others, count, nullptr));
  // example: kvtrie_wait_pending
  if (hit.pending_pages != 0) {
    /* somebody computes the next pages: cheaper to wait 50 ms than to compute them, too */
    kvtrie_code code = kvtrie_wait_pending(sequence, 50, &hit);
    if (code != KVTRIE_E_TIMEOUT) check(code);
  }
  check(kvtrie_allocate(sequence, count, NULL)); /* for what is not in hit.cached_tokens now */
  // end
  EXPECT_EQ(hit.cached_pages, 2U);
  EXPECT_EQ(hit.pending_pages, 0U);
  check(kvtrie_release(sequence));
  check(kvtrie_release(others));
}

void show_append(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  const std::uint32_t generated[kPageTokens] = {901, 902, 903, 904, 905, 906, 907, 908};
  const std::size_t generated_count = 8;
  check(kvtrie_allocate(sequence, count + 8, nullptr));
  // example: kvtrie_append
  check(kvtrie_append(sequence, generated, generated_count));
  check(kvtrie_publish(sequence, count + generated_count, NULL)); /* the page that they filled, too */
  // end
  std::vector<std::uint32_t> all(tokens, tokens + count);
  all.insert(all.end(), generated, generated + 8);
  EXPECT_EQ(pages_found(worker, ns, all.data(), all.size()), 3U);
  check(kvtrie_release(sequence));
}

void show_allocate(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  const std::uint64_t new_tokens_max = 24;
  // example: kvtrie_allocate
  kvtrie_allocate_options patience = {.size = sizeof patience, .wait_ms = 100};
  kvtrie_code code = kvtrie_allocate(sequence, count + new_tokens_max, &patience);
  if (code == KVTRIE_E_NOT_NOW || code == KVTRIE_E_TIMEOUT) {
    /* preempt another sequence, or queue this request */
  } else if (code == KVTRIE_E_NEVER) {
    /* longer than the whole cache: refuse the request */
  } else {
    check(code);
  }
  // end
  std::uint32_t pages = 0;
  check(kvtrie_page_count(sequence, &pages));
  EXPECT_EQ(pages, 4U);
  EXPECT_EQ(kvtrie_allocate(sequence, 65 * kPageTokens, &patience), KVTRIE_E_NEVER);
  patience.wait_ms = 20'000;  // others' pages are evicted meanwhile
  EXPECT_EQ(kvtrie_allocate(sequence, 64 * kPageTokens, &patience), KVTRIE_OK);
  check(kvtrie_release(sequence));
}

void show_get_pages(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  // example: kvtrie_page_count
  uint32_t positions = 0;
  check(kvtrie_page_count(sequence, &positions)); /* ceil(tokens / tokens_per_page) after kvtrie_allocate */
  // end
  EXPECT_EQ(positions, 3U);
  // example: kvtrie_get_pages
  uint32_t block_table[64];
  check(kvtrie_get_pages(sequence, 0, positions, block_table)); /* position -> page, in every plane */
  // end
  EXPECT_NE(block_table[0], block_table[1]);
  for (std::uint32_t i = 0; i < positions; ++i)
    EXPECT_LT(block_table[i], 64U);
  check(kvtrie_release(sequence));
}

void show_own_pages(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  std::uint32_t to_compute = 0;
  // example: kvtrie_own_pages
  kvtrie_own_page own[64];
  uint32_t own_count = 0;
  check(kvtrie_own_pages(sequence, own, 64, &own_count));
  for (uint32_t i = 0; i < own_count && i < 64; ++i) {
    if (own[i].state == KVTRIE_PAGE_PRIVATE || own[i].state == KVTRIE_PAGE_ANNOUNCED) {
      ++to_compute; /* own[i].page, for the tokens of position own[i].position */
    }
  }
  // end
  EXPECT_EQ(own_count, 3U);
  EXPECT_EQ(to_compute, 3U);
  EXPECT_EQ(own[0].state, KVTRIE_PAGE_ANNOUNCED);
  EXPECT_EQ(own[2].state, KVTRIE_PAGE_PRIVATE) << "it is not full";
  check(kvtrie_release(sequence));
}

void show_give_back(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, 5 * kPageTokens, nullptr));
  // example: kvtrie_give_back
  check(kvtrie_give_back(sequence, 3, 2)); /* positions 3 and 4: the answer was shorter than feared */
  // end
  std::uint32_t positions = 0;
  check(kvtrie_page_count(sequence, &positions));
  EXPECT_EQ(positions, 3U);
  check(kvtrie_allocate(sequence, 5 * kPageTokens, nullptr));
  check(kvtrie_give_back(sequence, 3, 1));
  std::uint32_t pages[5] = {};
  check(kvtrie_get_pages(sequence, 0, 5, pages));
  EXPECT_EQ(pages[3], KVTRIE_NO_PAGE);
  EXPECT_NE(pages[4], KVTRIE_NO_PAGE);
  EXPECT_EQ(kvtrie_give_back(sequence, 0, 1), KVTRIE_E_INVALID) << "page 1 is announced below it";
  check(kvtrie_release(sequence));
}

void show_page_address(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  std::uint32_t pages[3] = {};
  check(kvtrie_get_pages(sequence, 0, 3, pages));
  const std::uint32_t page = pages[1];
  const std::uint32_t plane = 1;
  // example: kvtrie_page_address
  void* base = NULL;
  check(kvtrie_page_address(worker, 0, plane, &base)); /* once a plane: what an engine keeps */
  void* address = NULL;
  check(kvtrie_page_address(worker, page, plane, &address)); /* base + page * page_bytes */
  // end
  EXPECT_EQ(address, static_cast<char*>(base) + page * kPageBytes);
  std::memset(address, 7, kPageBytes);
  check(kvtrie_release(sequence));
}

void show_copies(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  constexpr std::size_t kLayers = 2, kHeads = 2, kHeadBytes = 8, kEngineTokens = 40;
  static_assert(kLayers * 2 * kPageTokens * kHeads * kHeadBytes == kPageBytes);
  std::vector<unsigned char> engine_kv(kLayers * 2 * kEngineTokens * kHeads * kHeadBytes);
  for (std::size_t i = 0; i < engine_kv.size(); ++i)
    engine_kv[i] = static_cast<unsigned char>(i * 7);
  const std::vector<unsigned char> written = engine_kv;
  unsigned char* const engine = engine_kv.data();
  // example: kvtrie_copy_in
  /* 2 layers, K and V, 2 heads of 8 bytes; the engine keeps 40 tokens as [layer][kv][token][head] */
  kvtrie_layout layout = {.size = sizeof layout, .layers = 2, .kv = 2, .heads = 2, .head_bytes = 8};
  layout.head_stride = 8;
  layout.token_stride = 2 * 8;
  layout.kv_stride = 40 * 2 * 8;
  layout.layer_stride = 2 * 40 * 2 * 8;
  check(kvtrie_copy_in(sequence, 0, 40, 0, &layout, engine)); /* tokens 0 to 39 into plane 0 */
  // end
  std::memset(engine, 0, engine_kv.size());
  // example: kvtrie_copy_out
  check(kvtrie_copy_out(sequence, 0, 40, 0, &layout, engine)); /* in another process: what begin found */
  char two_pages[2 * 1024];
  check(kvtrie_copy_out(sequence, 0, 32, 0, NULL, two_pages)); /* or as they are in the pool */
  // end
  EXPECT_EQ(engine_kv, written);
  // In the pool: layers x kv x tokens x heads; token 1 of page 0, layer 1, V, head 1.
  EXPECT_EQ(static_cast<unsigned char>(two_pages[((3 * kPageTokens + 1) * kHeads + 1) * kHeadBytes]),
            written[((3 * kEngineTokens + 1) * kHeads + 1) * kHeadBytes]);
  check(kvtrie_release(sequence));
}

void show_publish(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  // example: kvtrie_publish
  kvtrie_publish_result done = {.size = sizeof done};
  kvtrie_code code = kvtrie_publish(sequence, count, &done); /* after all stores to these pages */
  if (code == KVTRIE_E_FLUSHED) {
    /* new weights meanwhile: answer the request from its own pages, then release it */
  } else {
    check(code); /* done.published_tokens are everybody's; done.pages_private pages stay this sequence's */
  }
  // end
  EXPECT_EQ(done.published_tokens, 2 * kPageTokens);
  EXPECT_EQ(done.pages_published, 2U);
  check(kvtrie_flush(worker, ns));
  EXPECT_EQ(kvtrie_publish(sequence, count, &done), KVTRIE_E_FLUSHED);
  check(kvtrie_release(sequence));
}

void show_publish_incomplete(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens,
                             std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  // example: kvtrie_publish_incomplete
  kvtrie_publish_result done = {.size = sizeof done};
  check(kvtrie_publish_incomplete(sequence, count, &done)); /* the last page has done.incomplete_tokens tokens */
  check(kvtrie_release(sequence));

  /* the next turn of the conversation begins with these tokens */
  kvtrie_begin_options partial = {.size = sizeof partial, .flags = KVTRIE_PARTIAL};
  kvtrie_begin_result hit = {.size = sizeof hit};
  kvtrie_sequence next;
  check(kvtrie_begin(worker, ns, tokens, count, &partial, &hit, &next));
  check(kvtrie_allocate(next, count, NULL)); /* copies the incomplete page into its own */
  uint64_t computed = hit.cached_tokens + hit.partial_tokens;
  // end
  EXPECT_EQ(done.incomplete_tokens, kPageTokens / 2);
  EXPECT_EQ(computed, count);
  check(kvtrie_release(next));
}

void show_release(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  // example: kvtrie_release
  check(kvtrie_release(sequence)); /* published pages stay cached */
  // end
  EXPECT_EQ(kvtrie_release(sequence), KVTRIE_E_STALE);
}

void show_fork(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  const kvtrie_sequence sequence = begin_example(worker, ns, tokens, count);
  check(kvtrie_allocate(sequence, count, nullptr));
  check(kvtrie_publish(sequence, count, nullptr));
  // example: kvtrie_fork
  kvtrie_fork_options options = {.size = sizeof options, .wait_ms = 100, .request_tag = 18};
  kvtrie_sequence child;
  check(kvtrie_fork(sequence, &options, &child)); /* a second answer to the same prompt */
  check(kvtrie_allocate(child, count + 8, NULL));
  // end
  std::uint32_t mine[3] = {}, theirs[3] = {};
  check(kvtrie_get_pages(sequence, 0, 3, mine));
  check(kvtrie_get_pages(child, 0, 3, theirs));
  EXPECT_EQ(mine[1], theirs[1]) << "published: shared";
  EXPECT_NE(mine[2], theirs[2]) << "its own to write";
  check(kvtrie_release(child));
  check(kvtrie_release(sequence));
}

void show_prepare_batch(kvtrie_worker worker, kvtrie_namespace ns, const std::uint32_t* tokens, std::size_t count) {
  // example: kvtrie_prepare_batch
  uint32_t computed_by[2][4];
  kvtrie_batch_item items[2] = {};
  for (int i = 0; i < 2; ++i) {
    items[i].size = sizeof items[i];
    items[i].name_space = ns;
    items[i].tokens = tokens; /* two requests with one prompt */
    items[i].token_count = count;
    items[i].total_tokens = count + 8;
    items[i].computed_by = computed_by[i];
  }
  kvtrie_allocate_options patience = {.size = sizeof patience, .wait_ms = 100};
  check(kvtrie_prepare_batch(worker, items, 2, &patience)); /* both, or none */
  /* items[0].sequence computes what both need: items[1].shared_tokens, and computed_by[1][0] is 0 */
  check(kvtrie_publish(items[0].sequence, count, NULL));
  check(kvtrie_publish(items[1].sequence, count, NULL));
  // end
  EXPECT_EQ(items[0].shared_tokens, 0U);
  EXPECT_EQ(items[1].shared_tokens, 2 * kPageTokens);
  EXPECT_EQ(computed_by[1][0], 0U);
  EXPECT_EQ(computed_by[1][2], 1U);
  EXPECT_EQ(pages_found(worker, ns, tokens, count), 2U);
  check(kvtrie_release(items[0].sequence));
  check(kvtrie_release(items[1].sequence));
}

TEST(PluginExamplesTest, OfSequences) {
  run_examples({}, {show_begin, show_wait_pending, show_append, show_allocate, show_get_pages, show_own_pages,
                    show_give_back, show_page_address, show_copies, show_publish, show_publish_incomplete, show_release,
                    show_fork, show_prepare_batch});
}

}  // namespace
}  // namespace kvtrie::test
