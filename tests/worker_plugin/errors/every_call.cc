// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {
namespace {

// Bytes of a page; read from and written to by copies.
std::array<std::byte, 1024> bytes_of_page;

const Tokens& some_tokens() {
  static const Tokens tokens = prompt(9, 2);
  return tokens;
}

// Of the world's sequence.
const Tokens& cached_tokens() {
  static const Tokens tokens = prompt(1, 3);
  return tokens;
}

// Whatever a call that should fail has made.
kvtrie_code released(kvtrie_code code, kvtrie_sequence sequence) {
  if (sequence.id != 0) (void)kvtrie_release(sequence);
  return code;
}

std::vector<EveryCall> calls_of_workers() {
  return {
      {"kvtrie_detach", By::kWorker, [](const Handles& h) { return kvtrie_detach(h.worker); }},
      {"kvtrie_get_geometry", By::kWorker,
       [](const Handles& h) {
         auto geometry = sized<kvtrie_geometry>();
         return kvtrie_get_geometry(h.worker, &geometry);
       }},
      {"kvtrie_open_namespace", By::kWorker,
       [](const Handles& h) {
         const kvtrie_field field{"model", "model"};
         kvtrie_namespace opened{7};
         const kvtrie_code code = kvtrie_open_namespace(h.worker, &field, 1, nullptr, &opened);
         EXPECT_TRUE(code == KVTRIE_OK || opened.id == 0);
         return code;
       }},
      {"kvtrie_begin", By::kWorker,
       [](const Handles& h) {
         auto result = sized<kvtrie_begin_result>();
         kvtrie_sequence begun{7};
         const Tokens& tokens = some_tokens();
         return released(kvtrie_begin(h.worker, h.space, tokens.data(), tokens.size(), nullptr, &result, &begun),
                         begun);
       }},
      {"kvtrie_prepare_batch", By::kWorker,
       [](const Handles& h) {
         auto item = sized<kvtrie_batch_item>();
         item.name_space = h.space;
         item.tokens = some_tokens().data();
         item.token_count = item.total_tokens = some_tokens().size();
         return released(kvtrie_prepare_batch(h.worker, &item, 1, nullptr), item.sequence);
       }},
      {"kvtrie_page_address", By::kWorker,
       [](const Handles& h) {
         void* address = nullptr;
         return kvtrie_page_address(h.worker, 0, 0, &address);
       }},
      {"kvtrie_probe", By::kWorker,
       [](const Handles& h) {
         auto result = sized<kvtrie_probe_result>();
         return kvtrie_probe(h.worker, h.space, cached_tokens().data(), cached_tokens().size(), &result);
       }},
      {"kvtrie_hash_tokens", By::kWorker,
       [](const Handles& h) {
         std::uint64_t hashes[2] = {};
         std::size_t count = 0;
         return kvtrie_hash_tokens(h.worker, h.space, some_tokens().data(), some_tokens().size(), hashes, 2, &count);
       }},
      {"kvtrie_probe_hashes", By::kWorker,
       [](const Handles& h) {
         const std::uint64_t hash = 17;
         auto result = sized<kvtrie_probe_result>();
         return kvtrie_probe_hashes(h.worker, h.space, &hash, 1, &result);
       }},
      {"kvtrie_evict", By::kWorker,
       [](const Handles& h) {
         std::uint64_t evicted = 7;
         const kvtrie_code code = kvtrie_evict(h.worker, h.space, 1, &evicted);
         EXPECT_TRUE(code == KVTRIE_OK || evicted == 0);
         return code;
       }},
      {"kvtrie_flush", By::kWorker, [](const Handles& h) { return kvtrie_flush(h.worker, h.space); }},
      {"kvtrie_get_counters", By::kWorker,
       [](const Handles& h) {
         auto counters = sized<kvtrie_counters>();
         return kvtrie_get_counters(h.worker, &counters);
       }},
      {"kvtrie_drive_clock", By::kWorker, [](const Handles& h) { return kvtrie_drive_clock(h.worker, 1); }},
      {"kvtrie_worker_id", By::kWorker,
       [](const Handles& h) {
         std::uint64_t id = 0;
         return kvtrie_worker_id(h.worker, &id);
       }},
      {"kvtrie_writer_over", By::kWorker, [](const Handles& h) { return kvtrie_writer_over(h.worker, 7); }},
      {"kvtrie_plane_descriptor", By::kWorker,
       [](const Handles& h) {
         int descriptor = 7;
         const kvtrie_code code = kvtrie_plane_descriptor(h.worker, 0, &descriptor);
         EXPECT_TRUE(code == KVTRIE_OK || descriptor == -1);
         return code;
       }},
      {"kvtrie_queue_copy", By::kWorker,
       [](const Handles& h) { return kvtrie_queue_copy(h.worker, 0, 0, 0, bytes_of_page.data(), 1); }},
      {"kvtrie_wait_copies", By::kWorker, [](const Handles& h) { return kvtrie_wait_copies(h.worker, 0); }},
  };
}

std::vector<EveryCall> calls_of_sequences() {
  return {
      {"kvtrie_append", By::kSequence,
       [](const Handles& h) { return kvtrie_append(h.sequence, some_tokens().data(), some_tokens().size()); }},
      {"kvtrie_allocate", By::kSequence,
       [](const Handles& h) { return kvtrie_allocate(h.sequence, 5 * kPageTokens, nullptr); }},
      {"kvtrie_get_pages", By::kSequence,
       [](const Handles& h) {
         std::uint32_t page = 0;
         return kvtrie_get_pages(h.sequence, 0, 1, &page);
       }},
      {"kvtrie_page_count", By::kSequence,
       [](const Handles& h) {
         std::uint32_t count = 0;
         return kvtrie_page_count(h.sequence, &count);
       }},
      {"kvtrie_own_pages", By::kSequence,
       [](const Handles& h) {
         kvtrie_own_page own{};
         std::uint32_t count = 0;
         return kvtrie_own_pages(h.sequence, &own, 1, &count);
       }},
      {"kvtrie_give_back", By::kSequence, [](const Handles& h) { return kvtrie_give_back(h.sequence, 2, 1); }},
      {"kvtrie_copy_in", By::kSequence,
       [](const Handles& h) {
         return kvtrie_copy_in(h.sequence, 2 * kPageTokens, kPageTokens, 0, nullptr, bytes_of_page.data());
       }},
      {"kvtrie_copy_out", By::kSequence,
       [](const Handles& h) { return kvtrie_copy_out(h.sequence, 0, kPageTokens, 0, nullptr, bytes_of_page.data()); }},
      {"kvtrie_publish", By::kSequence,
       [](const Handles& h) { return kvtrie_publish(h.sequence, 2 * kPageTokens, nullptr); }},
      {"kvtrie_publish_incomplete", By::kSequence,
       [](const Handles& h) { return kvtrie_publish_incomplete(h.sequence, 2 * kPageTokens, nullptr); }},
      {"kvtrie_fork", By::kSequence,
       [](const Handles& h) {
         kvtrie_sequence child{7};
         return released(kvtrie_fork(h.sequence, nullptr, &child), child);
       }},
      {"kvtrie_wait_pending", By::kSequence,
       [](const Handles& h) {
         auto result = sized<kvtrie_begin_result>();
         return kvtrie_wait_pending(h.sequence, 0, &result);
       }},
      {"kvtrie_release", By::kSequence, [](const Handles& h) { return kvtrie_release(h.sequence); }},
  };
}

}  // namespace

const std::vector<EveryCall>& every_call() {
  static const std::vector<EveryCall> all = [] {
    std::vector<EveryCall> calls = calls_of_workers();
    (void)some_tokens();  // made here, not where memory has run out
    (void)cached_tokens();
    for (EveryCall& one : calls_of_sequences())
      calls.push_back(std::move(one));
    return calls;
  }();
  return all;
}

}  // namespace kvtrie::test
