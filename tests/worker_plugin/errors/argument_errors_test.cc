// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Arguments that cannot be served, one a call; all others of that kind: c_api_arguments_test.cc.

#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {
namespace {

kvtrie_code attach_with(const kvtrie_attach_options& options) {
  kvtrie_worker attached{7};
  const kvtrie_code code = kvtrie_attach(&options, &attached);
  EXPECT_EQ(attached.id, 0U);
  return code;
}

kvtrie_code copy_half_a_page_in(ErrorWorld& world) {
  const std::uint32_t nothing = 0;
  return kvtrie_copy_in(world.sequence, 2 * kPageTokens, 8, 0, nullptr, &nothing);
}

}  // namespace

ErrorCases argument_cases() {
  return {
      {"kvtrie_attach", KVTRIE_E_INVALID, "options->cache is NULL",
       [](ErrorWorld&) { return attach_with(sized<kvtrie_attach_options>()); }},
      {"kvtrie_attach", KVTRIE_E_INVALID, "options->role 1: there are KVTRIE_ROLE_WORKER and KVTRIE_ROLE_PLANE_WRITER",
       [](ErrorWorld& world) {
         kvtrie_attach_options options = world.options();
         options.role = 1;
         return attach_with(options);
       }},
      {"kvtrie_attach", KVTRIE_E_INVALID, "cache name*'no/name'",
       [](ErrorWorld& world) {
         kvtrie_attach_options options = world.options();
         options.cache = "no/name";
         return attach_with(options);
       }},
      {"kvtrie_attach", KVTRIE_E_INVALID, "plane mask 0x4: name one or more of the 2 planes",
       [](ErrorWorld& world) {
         kvtrie_attach_options options = world.options();
         options.role = KVTRIE_ROLE_PLANE_WRITER;
         options.plane_mask = 4;
         return attach_with(options);
       }},
      {"kvtrie_get_geometry", KVTRIE_E_INVALID, "geometry->size is 3; set it to sizeof(geometry)",
       [](ErrorWorld& world) {
         kvtrie_geometry geometry{};
         geometry.size = 3;
         return kvtrie_get_geometry(world.worker, &geometry);
       }},
      {"kvtrie_get_counters", KVTRIE_E_INVALID, "counters is NULL",
       [](ErrorWorld& world) { return kvtrie_get_counters(world.worker, nullptr); }},
      {"kvtrie_open_namespace", KVTRIE_E_INVALID, "field 'Model': keys are 1 to 64 of a-z",
       [](ErrorWorld& world) {
         const kvtrie_field field{"Model", "a"};
         kvtrie_namespace opened{7};
         return kvtrie_open_namespace(world.worker, &field, 1, nullptr, &opened);
       }},
      {"kvtrie_begin", KVTRIE_E_INVALID, "hint 4 and priority 0 must be at most 3 and 15",
       [](ErrorWorld& world) {
         auto options = sized<kvtrie_begin_options>();
         options.hint = 4;
         auto result = sized<kvtrie_begin_result>();
         kvtrie_sequence begun{7};
         return kvtrie_begin(world.worker, world.space, nullptr, 0, &options, &result, &begun);
       }},
      {"kvtrie_prepare_batch", KVTRIE_E_INVALID, "1025 items: give 1 to 1024",
       [](ErrorWorld& world) {
         auto item = sized<kvtrie_batch_item>();
         return kvtrie_prepare_batch(world.worker, &item, 1025, nullptr);
       }},
      {"kvtrie_prepare_batch", KVTRIE_E_INVALID, "items[1].tokens is NULL",
       [](ErrorWorld& world) {
         const Tokens tokens = prompt(9, 1);
         kvtrie_batch_item items[2] = {sized<kvtrie_batch_item>(), sized<kvtrie_batch_item>()};
         for (kvtrie_batch_item& item : items) {
           item.name_space = world.space;
           item.tokens = &item == items ? tokens.data() : nullptr;
           item.token_count = tokens.size();
         }
         return kvtrie_prepare_batch(world.worker, items, 2, nullptr);
       }},
      {"kvtrie_fork", KVTRIE_E_INVALID, "flags 0x1: only KVTRIE_NO_WAIT and KVTRIE_NO_COPY are known",
       [](ErrorWorld& world) {
         auto options = sized<kvtrie_fork_options>();
         options.flags = KVTRIE_NO_READ;
         kvtrie_sequence child{7};
         return kvtrie_fork(world.sequence, &options, &child);
       }},
      {"kvtrie_wait_pending", KVTRIE_E_INVALID, "the sequence has pages of its own: wait before it allocates",
       [](ErrorWorld& world) {
         auto result = sized<kvtrie_begin_result>();
         return kvtrie_wait_pending(world.sequence, 60'000, &result);
       }},
      {"kvtrie_append", KVTRIE_E_INVALID, "2147483647 tokens after 48: at most 2147483647 in all",
       [](ErrorWorld& world) {
         const std::uint32_t token = 0;
         return kvtrie_append(world.sequence, &token, INT32_MAX);
       }},
      {"kvtrie_allocate", KVTRIE_E_INVALID, "options->size is 0; set it to sizeof(options)",
       [](ErrorWorld& world) {
         const kvtrie_allocate_options options{};
         return kvtrie_allocate(world.sequence, 5 * kPageTokens, &options);
       }},
      {"kvtrie_get_pages", KVTRIE_E_INVALID, "positions 2 to 4 of a sequence that has 3",
       [](ErrorWorld& world) {
         std::uint32_t pages[2] = {};
         return kvtrie_get_pages(world.sequence, 2, 2, pages);
       }},
      {"kvtrie_page_count", KVTRIE_E_INVALID, "count is NULL",
       [](ErrorWorld& world) { return kvtrie_page_count(world.sequence, nullptr); }},
      {"kvtrie_own_pages", KVTRIE_E_INVALID, "pages is NULL",
       [](ErrorWorld& world) {
         std::uint32_t count = 0;
         return kvtrie_own_pages(world.sequence, nullptr, 1, &count);
       }},
      {"kvtrie_give_back", KVTRIE_E_INVALID, "a page among these is published*release the sequence instead",
       [](ErrorWorld& world) { return kvtrie_give_back(world.sequence, 0, 3); }},
      {"kvtrie_give_back", KVTRIE_E_INVALID, "pages after these are announced below them: give those back too",
       [](ErrorWorld& world) { return kvtrie_give_back(world.sequence, 1, 1); }},
      {"kvtrie_page_address", KVTRIE_E_INVALID, "page 64 in plane 1 of a cache with 64 pages and 2 planes",
       [](ErrorWorld& world) {
         void* address = &address;
         const kvtrie_code code = kvtrie_page_address(world.worker, kWorldPages, 1, &address);
         EXPECT_EQ(address, nullptr);
         return code;
       }},
      {"kvtrie_copy_in", KVTRIE_E_INVALID, "without a layout only whole pages of 16 tokens are copied",
       copy_half_a_page_in},
      {"kvtrie_copy_in", KVTRIE_E_INVALID, "the page at position 0 is shared, published",
       [](ErrorWorld& world) {
         const std::array<std::byte, 1024> bytes{};
         return kvtrie_copy_in(world.sequence, 0, kPageTokens, 0, nullptr, bytes.data());
       }},
      {"kvtrie_copy_out", KVTRIE_E_INVALID,
       "layout: 1 layers x 1 x 16 tokens x 1 heads x 8 bytes are not the 1024 bytes",
       [](ErrorWorld& world) {
         auto layout = sized<kvtrie_layout>();
         layout.layers = layout.kv = layout.heads = 1;
         layout.head_bytes = 8;
         std::array<std::byte, 1024> bytes{};
         return kvtrie_copy_out(world.sequence, 0, kPageTokens, 0, &layout, bytes.data());
       }},
      {"kvtrie_copy_out", KVTRIE_E_INVALID, "tokens 32 to 64 of a sequence with pages for 48",
       [](ErrorWorld& world) {
         std::array<std::byte, 2048> bytes{};
         return kvtrie_copy_out(world.sequence, 32, 32, 0, nullptr, bytes.data());
       }},
      {"kvtrie_publish", KVTRIE_E_INVALID, "result->size is 0",
       [](ErrorWorld& world) {
         kvtrie_publish_result result{};
         return kvtrie_publish(world.sequence, 3 * kPageTokens, &result);
       }},
      {"kvtrie_publish_incomplete", KVTRIE_E_INVALID, "result->size is 0",
       [](ErrorWorld& world) {
         kvtrie_publish_result result{};
         return kvtrie_publish_incomplete(world.sequence, 3 * kPageTokens, &result);
       }},
      {"kvtrie_probe", KVTRIE_E_INVALID, "tokens is NULL",
       [](ErrorWorld& world) {
         auto result = sized<kvtrie_probe_result>();
         return kvtrie_probe(world.worker, world.space, nullptr, 1, &result);
       }},
      {"kvtrie_hash_tokens", KVTRIE_E_INVALID, "hashes is NULL",
       [](ErrorWorld& world) {
         std::size_t count = 0;
         return kvtrie_hash_tokens(world.worker, world.space, nullptr, 0, nullptr, 1, &count);
       }},
      {"kvtrie_probe_hashes", KVTRIE_E_INVALID, "hashes is NULL",
       [](ErrorWorld& world) {
         auto result = sized<kvtrie_probe_result>();
         return kvtrie_probe_hashes(world.worker, world.space, nullptr, 1, &result);
       }},
      {"kvtrie_evict", KVTRIE_E_INVALID, "evicted is NULL",
       [](ErrorWorld& world) { return kvtrie_evict(world.worker, world.space, 0, nullptr); }},
      {"kvtrie_drive_clock", KVTRIE_E_INVALID, "has the system's clock; start kvtried with --clock driven",
       [](ErrorWorld& world) { return kvtrie_drive_clock(world.worker, 7); }},
      {"kvtrie_worker_id", KVTRIE_E_INVALID, "id is NULL",
       [](ErrorWorld& world) { return kvtrie_worker_id(world.worker, nullptr); }},
      {"kvtrie_writer_over", KVTRIE_E_INVALID, "id is 0, which is nobody's",
       [](ErrorWorld& world) { return kvtrie_writer_over(world.worker, 0); }},
      {"kvtrie_plane_descriptor", KVTRIE_E_INVALID, "the planes are in host memory: use kvtrie_page_address",
       [](ErrorWorld& world) {
         int descriptor = 7;
         return kvtrie_plane_descriptor(world.worker, 0, &descriptor);
       }},
      {"kvtrie_queue_copy", KVTRIE_E_INVALID, "no copy queue: write to kvtrie_page_address()",
       [](ErrorWorld& world) { return kvtrie_queue_copy(world.worker, 0, 0, 0, "x", 1); }},
  };
}

ErrorCases plane_writer_cases() {
  return {{"kvtrie_open_namespace", KVTRIE_E_INVALID,
           "a plane writer has no namespaces and no sequences: it fills pages of its scheduler", [](ErrorWorld& world) {
             kvtrie_attach_options options = world.options();
             options.role = KVTRIE_ROLE_PLANE_WRITER;
             options.plane_mask = 1;
             EXPECT_EQ(kvtrie_worker_id(world.worker, &options.scheduler), KVTRIE_OK);
             kvtrie_worker rank{0};
             EXPECT_EQ(kvtrie_attach(&options, &rank), KVTRIE_OK) << kvtrie_last_error();
             const kvtrie_field field{"model", "model"};
             kvtrie_namespace opened{7};
             const kvtrie_code code = kvtrie_open_namespace(rank, &field, 1, nullptr, &opened);
             EXPECT_EQ(kvtrie_detach(rank), KVTRIE_OK) << "and the text stays";
             return code;
           }}};
}

namespace {

TEST(AbiErrorsTest, ArgumentsThatCannotBe) {
  ErrorWorld world;
  world.run(argument_cases());
  world.run(plane_writer_cases());
}

}  // namespace
}  // namespace kvtrie::test
