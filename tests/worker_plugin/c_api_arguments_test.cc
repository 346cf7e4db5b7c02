// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Arguments that kvtrie.h does not allow are refused with a text, and change nothing.

#include <cstring>
#include <string>
#include <thread>
#include <type_traits>

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

using CApiArgumentsTest = CApiTest;

TEST_F(CApiArgumentsTest, NullIsRefusedByName) {
  std::uint32_t token = 1;
  kvtrie_sequence sequence{0};
  auto result = sized<kvtrie_begin_result>();
  const kvtrie_sequence open = cache(worker_, space_, path({1}));
  const auto refused = [](kvtrie_code code, const char* name) {
    EXPECT_EQ(code, KVTRIE_E_INVALID) << name;
    EXPECT_TRUE(last_error_has(std::string(name) + " is NULL")) << kvtrie_last_error();
  };
  kvtrie_worker worker{0};
  auto attach = sized<kvtrie_attach_options>();
  refused(kvtrie_attach(nullptr, &worker), "options");
  refused(kvtrie_attach(&attach, nullptr), "worker");
  refused(kvtrie_attach(&attach, &worker), "options->cache");
  refused(kvtrie_get_geometry(worker_, nullptr), "geometry");
  refused(kvtrie_get_counters(worker_, nullptr), "counters");
  kvtrie_namespace name_space{0};
  const kvtrie_field field{"model", "a"};
  refused(kvtrie_open_namespace(worker_, nullptr, 1, nullptr, &name_space), "fields");
  refused(kvtrie_open_namespace(worker_, &field, 1, nullptr, nullptr), "name_space");
  refused(kvtrie_begin(worker_, space_, nullptr, 1, nullptr, &result, &sequence), "tokens");
  refused(kvtrie_begin(worker_, space_, &token, 1, nullptr, nullptr, &sequence), "result");
  refused(kvtrie_begin(worker_, space_, &token, 1, nullptr, &result, nullptr), "sequence");
  refused(kvtrie_append(open, nullptr, 1), "tokens");
  refused(kvtrie_get_pages(open, 0, 1, nullptr), "pages");
  refused(kvtrie_page_count(open, nullptr), "count");
  refused(kvtrie_page_address(worker_, 0, 0, nullptr), "address");
}

TEST_F(CApiArgumentsTest, SizesThatAreNotServedAreRefused) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, std::size_t{10'000}, SIZE_MAX}) {
    const auto refused = [&](kvtrie_code code) {
      EXPECT_EQ(code, KVTRIE_E_INVALID) << size;
      EXPECT_TRUE(last_error_has("sizeof")) << kvtrie_last_error();
    };
    kvtrie_worker worker{0};
    kvtrie_attach_options attach{};
    attach.size = size;
    refused(kvtrie_attach(&attach, &worker));
    kvtrie_geometry geometry{};
    geometry.size = size;
    refused(kvtrie_get_geometry(worker_, &geometry));
    kvtrie_counters counters{};
    counters.size = size;
    refused(kvtrie_get_counters(worker_, &counters));
    kvtrie_begin_options options{};
    options.size = size;
    auto result = sized<kvtrie_begin_result>();
    kvtrie_sequence sequence{0};
    refused(kvtrie_begin(worker_, space_, nullptr, 0, &options, &result, &sequence));
    result.size = size;
    refused(kvtrie_begin(worker_, space_, nullptr, 0, nullptr, &result, &sequence));
    const Begun open = begin(worker_, space_, {});
    kvtrie_allocate_options allocate{};
    allocate.size = size;
    refused(kvtrie_allocate(open.sequence, 4, &allocate));
    kvtrie_publish_result published{};
    published.size = size;
    refused(kvtrie_publish(open.sequence, 4, &published));
    EXPECT_EQ(kvtrie_release(open.sequence), KVTRIE_OK);
  }
}

TEST_F(CApiArgumentsTest, OlderCallersStructsAreServed) {
  // Up to and without the fields that came later; what stands behind is not read or written.
  static_assert(std::has_unique_object_representations_v<kvtrie_begin_options> &&
                    std::has_unique_object_representations_v<kvtrie_attach_options> &&
                    std::has_unique_object_representations_v<kvtrie_allocate_options> &&
                    std::has_unique_object_representations_v<kvtrie_begin_result> &&
                    std::has_unique_object_representations_v<kvtrie_publish_result> &&
                    std::has_unique_object_representations_v<kvtrie_geometry> &&
                    std::has_unique_object_representations_v<kvtrie_counters>,
                "padding would hide a later field from the size");
  kvtrie_begin_options options;
  std::memset(&options, 0xFF, sizeof options);
  options.size = offsetof(kvtrie_begin_options, request_tag);
  options.flags = KVTRIE_NO_PUBLISH;
  kvtrie_begin_result result;
  std::memset(&result, 0xEE, sizeof result);
  result.size = offsetof(kvtrie_begin_result, cached_pages);
  kvtrie_sequence sequence{0};
  ASSERT_EQ(kvtrie_begin(worker_, space_, nullptr, 0, &options, &result, &sequence), KVTRIE_OK)
      << kvtrie_last_error();
  EXPECT_EQ(result.cached_tokens, 0U);
  EXPECT_EQ(result.cached_pages, 0xEEEEEEEEU);
  EXPECT_EQ(result.size, offsetof(kvtrie_begin_result, cached_pages));
  EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK);
  kvtrie_geometry geometry;
  std::memset(&geometry, 0xEE, sizeof geometry);
  geometry.size = offsetof(kvtrie_geometry, page_bytes);
  ASSERT_EQ(kvtrie_get_geometry(worker_, &geometry), KVTRIE_OK);
  EXPECT_EQ(geometry.pages, 64U);
  EXPECT_EQ(geometry.planes, 0xEEEEEEEEU);
}

TEST_F(CApiArgumentsTest, GeometryIsTheCaches) {
  auto geometry = sized<kvtrie_geometry>();
  ASSERT_EQ(kvtrie_get_geometry(worker_, &geometry), KVTRIE_OK);
  EXPECT_EQ(geometry.pages, 64U);
  EXPECT_EQ(geometry.page_bytes, 64U);
  EXPECT_EQ(geometry.tokens_per_page, kPageTokens);
  EXPECT_EQ(geometry.planes, 2U);
  EXPECT_EQ(geometry.tick_ns, 1'000'000U);
}

TEST_F(CApiArgumentsTest, UnknownFlagsAndValuesOutOfRangeAreRefused) {
  EXPECT_EQ(begin(worker_, space_, {}, 64).code, KVTRIE_E_INVALID);
  EXPECT_EQ(begin(worker_, space_, {}, KVTRIE_NO_WAIT).code, KVTRIE_E_INVALID);
  auto options = sized<kvtrie_begin_options>();
  auto result = sized<kvtrie_begin_result>();
  kvtrie_sequence sequence{0};
  options.reserved[1] = 1;
  EXPECT_EQ(kvtrie_begin(worker_, space_, nullptr, 0, &options, &result, &sequence),
            KVTRIE_E_INVALID);
  options.reserved[1] = 0;
  auto attach = sized<kvtrie_attach_options>();
  attach.cache = "unit";
  attach.role = 1;
  kvtrie_worker worker{0};
  EXPECT_EQ(kvtrie_attach(&attach, &worker), KVTRIE_E_INVALID);
  options.hint = 4;
  EXPECT_EQ(kvtrie_begin(worker_, space_, nullptr, 0, &options, &result, &sequence),
            KVTRIE_E_INVALID);
  options.hint = 3;
  options.priority = 16;
  EXPECT_EQ(kvtrie_begin(worker_, space_, nullptr, 0, &options, &result, &sequence),
            KVTRIE_E_INVALID);
  options.priority = 15;
  EXPECT_EQ(kvtrie_begin(worker_, space_, nullptr, 0, &options, &result, &sequence), KVTRIE_OK);
  auto allocate = sized<kvtrie_allocate_options>();
  allocate.flags = KVTRIE_NO_READ;
  EXPECT_EQ(kvtrie_allocate(sequence, 4, &allocate), KVTRIE_E_INVALID);
  const std::uint32_t token = 1;
  EXPECT_EQ(kvtrie_append(sequence, &token, SIZE_MAX), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_begin(worker_, space_, &token, SIZE_MAX, nullptr, &result, &sequence),
            KVTRIE_E_INVALID);
  EXPECT_EQ(cache_.count(PageState::kFree), 64U);
}

TEST_F(CApiArgumentsTest, PositionsAndPagesOutOfRangeAreRefused) {
  const kvtrie_sequence open = cache(worker_, space_, path({1, 2}));
  std::uint32_t pages[4] = {};
  EXPECT_EQ(kvtrie_get_pages(open, 0, 2, pages), KVTRIE_OK);
  EXPECT_EQ(kvtrie_get_pages(open, 2, 0, nullptr), KVTRIE_OK);
  EXPECT_EQ(kvtrie_get_pages(open, 1, 2, pages), KVTRIE_E_INVALID);
  EXPECT_TRUE(last_error_has("1 to 3 of a sequence that has 2")) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_get_pages(open, UINT32_MAX, UINT32_MAX, pages), KVTRIE_E_INVALID);
  void* address = pages;
  EXPECT_EQ(kvtrie_page_address(worker_, 64, 0, &address), KVTRIE_E_INVALID);
  EXPECT_EQ(address, nullptr);
  EXPECT_EQ(kvtrie_page_address(worker_, 0, 2, &address), KVTRIE_E_INVALID);
  EXPECT_TRUE(last_error_has("64 pages and 2 planes")) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_page_address(worker_, 0, UINT32_MAX, &address), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_page_address(worker_, 63, 1, &address), KVTRIE_OK);
}

TEST_F(CApiArgumentsTest, FieldsThatCannotBeAreRefusedByName) {
  const std::string long_value(800, 'x');
  const std::string long_key(65, 'k');
  const auto refused = [&](std::vector<kvtrie_field> fields, const char* part) {
    kvtrie_namespace name_space{7};
    EXPECT_EQ(kvtrie_open_namespace(worker_, fields.data(), fields.size(), nullptr, &name_space),
              KVTRIE_E_INVALID);
    EXPECT_EQ(name_space.id, 0U);
    EXPECT_TRUE(last_error_has(part)) << kvtrie_last_error();
  };
  refused({{"mo=del", "a"}}, "'mo=del'");
  refused({{"mo\ndel", "a"}}, "keys are 1 to 64");
  refused({{"", "a"}}, "keys are 1 to 64");
  refused({{long_key.c_str(), "a"}}, "keys are 1 to 64");
  refused({{"model", "a\nb"}}, "no line feed");
  refused({{"model", "a"}, {"x", "1"}, {"model", "b"}}, "'model' is there twice");
  refused({{"ok", "1"}, {"model", long_value.c_str()}}, "hash of each long value");
  refused({{nullptr, "a"}}, "NULL");
  refused({{"model", nullptr}}, "NULL");
  kvtrie_namespace name_space{7};
  const kvtrie_field field{"model", "a"};
  EXPECT_EQ(kvtrie_open_namespace(worker_, &field, 0, nullptr, &name_space), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_open_namespace(worker_, &field, SIZE_MAX, nullptr, &name_space),
            KVTRIE_E_INVALID);
}

TEST_F(CApiArgumentsTest, LastErrorIsTheThreadsOwn) {
  EXPECT_EQ(kvtrie_release(kvtrie_sequence{0}), KVTRIE_E_STALE);
  const std::string mine = kvtrie_last_error();
  std::jthread([] {
    EXPECT_STREQ(kvtrie_last_error(), "");
    EXPECT_EQ(kvtrie_detach(kvtrie_worker{0}), KVTRIE_E_STALE);
    EXPECT_TRUE(last_error_has("kvtrie_detach"));
  }).join();
  EXPECT_EQ(kvtrie_last_error(), mine);
}

TEST_F(CApiArgumentsTest, LongTextsAreCut) {
  auto options = sized<kvtrie_attach_options>();
  const std::string cache(5000, 'c');
  options.cache = cache.c_str();
  kvtrie_worker worker{0};
  EXPECT_EQ(kvtrie_attach(&options, &worker), KVTRIE_E_INVALID);
  EXPECT_LT(std::strlen(kvtrie_last_error()), 512U);
  EXPECT_GT(std::strlen(kvtrie_last_error()), 400U);
}

TEST(CApiVersionTest, NamesAndTable) {
  EXPECT_STREQ(kvtrie_version(), "kvtrie " KVTRIE_TEST_PROJECT_VERSION);
  EXPECT_EQ(kvtrie_api_version(), KVTRIE_API_VERSION);
  EXPECT_STREQ(kvtrie_code_name(KVTRIE_OK), "ok");
  EXPECT_STREQ(kvtrie_code_name(KVTRIE_E_NO_COORDINATOR), "no_coordinator");
  EXPECT_STREQ(kvtrie_code_name(KVTRIE_E_FLUSHED), "flushed");
  for (int number : {13, 16, 1000}) {
    EXPECT_STREQ(kvtrie_code_name(static_cast<kvtrie_code>(number)), "unknown");
  }
  const kvtrie_api* api = kvtrie_get_api(KVTRIE_API_VERSION);
  ASSERT_NE(api, nullptr);
  EXPECT_EQ(api->size, sizeof(kvtrie_api));
  EXPECT_EQ(api->version, KVTRIE_API_VERSION);
  EXPECT_EQ(api->begin, &kvtrie_begin);
  EXPECT_EQ(api->drive_clock, &kvtrie_drive_clock);
  EXPECT_EQ(kvtrie_get_api(1), api) << "the table only grows";
  EXPECT_EQ(kvtrie_get_api(0), nullptr);
  EXPECT_EQ(kvtrie_get_api(KVTRIE_API_VERSION + 1), nullptr);
}

}  // namespace
}  // namespace kvtrie::test
