// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What tests/python/dump_test.py, which compares with numpy, cannot see: options, failures, damaged files, threads.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>
#include <thread>

#include "dump/dump_diff.h"
#include "dump/dumper.h"
#include "dump/npy.h"
#include "dump/statistics.h"
#include "tests/tools/kvtrie/json_schema.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::dump {
namespace {

using test::TemporaryDirectory;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void replace_in(const std::string& path, const std::string& from, const std::string& to) {
  std::string text = text_of(path);
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  std::ofstream(path, std::ios::binary) << text;
}

// A state of `cells` tokens of 2 layers as llama.cpp writes it, all K and V counted up from 1.
std::vector<std::byte> llama_state(std::uint32_t cells, bool transposed) {
  std::vector<std::byte> bytes;
  const auto put = [&](auto value) {
    const auto* at = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), at, at + sizeof value);
  };
  put(std::uint32_t{0x6767736d});
  put(std::int32_t{3});
  put(std::uint32_t{1});
  put(cells);
  for (std::uint32_t cell = 0; cell < cells; ++cell) {
    put(static_cast<std::int32_t>(cell));
    put(std::uint32_t{1});
    put(std::int32_t{3});
  }
  put(std::uint32_t{transposed ? 1U : 0U});
  put(std::uint32_t{2});
  float next = 0;
  for (int section = 0; section < 4; ++section) {
    put(std::int32_t{0});  // F32
    if (section >= 2 && transposed) {
      put(std::uint32_t{4});
      put(std::uint32_t{8});
    } else {
      put(std::uint64_t{8 * 4});
    }
    for (std::uint32_t i = 0; i < 8 * cells; ++i) put(++next);
  }
  return bytes;
}

Dump small_dump(std::span<const std::uint32_t> tokens, std::span<const std::byte> bytes) {
  Dump dump{.moment = "before", .engine = "test", .requests = {}, .batch = {}, .pages = {}};
  dump.requests.push_back(
      {.id = "a", .tag = 1, .name_space = "kv=f32", .tokens = tokens, .cached_tokens = 0, .page_table = {}});
  dump.batch.push_back({.request = 0, .kind = "prefill", .first_token = 0, .token_count = tokens.size()});
  for (const std::uint32_t plane : {0U, 1U}) {
    dump.pages.push_back({.request = 0,
                          .position = 4,
                          .page = 9,
                          .plane = plane,
                          .state = "cached",
                          .bytes = bytes,
                          .parts = whole_page(bytes.size(), DType::kF32, {2, 2})});
  }
  return dump;
}

TEST(DumpTest, OffByDefaultAndForOneRequestOnly) {
  EXPECT_FALSE(Dumper().wants(0));
  EXPECT_FALSE(Dumper(DumpOptions{}).on());
  EXPECT_TRUE(Dumper({.directory = "/d"}).wants(5));
  EXPECT_FALSE(Dumper({.directory = "/d", .only_tag = 4}).wants(5));
  EXPECT_TRUE(Dumper({.directory = "/d", .only_tag = 5}).wants(5));
  EXPECT_FALSE(Dumper({.directory = "/d", .dumps_max = 0}).wants(5));
  EXPECT_FALSE(Dumper({.directory = "/d", .dumps_max = 0}).wants(5, true));
  EXPECT_FALSE(Dumper().wants(5, true));
  EXPECT_TRUE(Dumper({.directory = "/d", .only_tag = 4}).wants(5, true));
  EXPECT_FALSE(Dumper({.directory = "/d", .only_asked = true}).wants(5));
  EXPECT_FALSE(Dumper({.directory = "/d", .only_asked = true, .only_tag = 5}).wants(5));
  EXPECT_TRUE(Dumper({.directory = "/d", .only_asked = true}).wants(5, true));
  std::string error;
  const auto options = parse_dump_options("/a dir/x,raw,tag=4294967295,max=2", error);
  ASSERT_TRUE(options) << error;
  EXPECT_EQ(options->directory, "/a dir/x");
  EXPECT_TRUE(options->raw);
  EXPECT_FALSE(options->after || options->only_asked);
  EXPECT_EQ(options->only_tag, 4294967295U);
  EXPECT_EQ(options->dumps_max, 2U);
  const auto others = parse_dump_options("/d,asked,after", error);
  ASSERT_TRUE(others) << error;
  EXPECT_TRUE(others->after && others->only_asked);
  for (const char* wrong : {"", ",raw", "/d,", "/d,tag=", "/d,tag=4294967296", "/d,max=-1", "/d,row", "/d,max=1 "}) {
    error.clear();
    EXPECT_FALSE(parse_dump_options(wrong, error)) << wrong;
    EXPECT_FALSE(error.empty());
  }
}

// Engines ask before each batch: no more than the load of a flag. The best of many rounds, since hosts are busy.
TEST(DumpTest, OffItCostsALoad) {
  constexpr int kRounds = 50;
  constexpr std::uint32_t kCalls = 20'000;
  const auto best_ns = [](auto call) {
    double best = 1e9;
    for (int round = 0; round < kRounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (std::uint32_t i = 0; i < kCalls; ++i) call(i);
      const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / kCalls);
    }
    return best;
  };
  Dumper off;
  volatile bool flag = false;
  volatile std::uint64_t wanted = 0;
  const auto count = [&](bool on) {
    if (on) wanted = wanted + 1;
  };
  const double load_ns = best_ns([&](std::uint32_t) { count(flag); });
  const double off_ns = best_ns([&](std::uint32_t i) {
    asm volatile("" : : "r"(&off) : "memory");  // as in the next batch: nothing is known of it any more
    count(off.wants(i));
  });
  RecordProperty("off_ns", std::to_string(off_ns));
  EXPECT_EQ(wanted, 0U);
  EXPECT_LT(off_ns, 2 * load_ns + 2) << "a load: " << load_ns;
}

TEST(DumpTest, IsThereWholeOrNotAtAllAndForTheOwnerAlone) {
  const TemporaryDirectory directory;
  const std::vector<float> values = {1, 2, 3, 4};
  const std::vector<std::uint32_t> tokens = {1, 2, 3};
  Dump dump = small_dump(tokens, bytes_of(values));
  Dumper dumper({.directory = directory.path() + "/deep/er", .raw = true});
  const WrittenDump written = dumper.write(dump);
  ASSERT_EQ(written.error, "");
  struct stat info {};
  ASSERT_EQ(::stat(written.directory.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0700U);
  for (const auto& file : std::filesystem::directory_iterator(written.directory)) {
    ASSERT_EQ(::stat(file.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777U, 0600U) << file.path();
  }
  dump.pages.back().parts = {{"k", 12, DType::kF32, {2}}};  // not inside the page
  EXPECT_THAT(dumper.write(dump).error, HasSubstr("part k is not inside its page"));
  dump.pages.back().parts = {{"k", ~std::uint64_t{0}, DType::kRaw, {1}}};
  EXPECT_THAT(dumper.write(dump).error, HasSubstr("not inside"));
  dump.pages.clear();
  dump.moment = "no/where";
  EXPECT_THAT(dumper.write(dump).error, HasSubstr("No such file"));
  const std::filesystem::directory_iterator all(directory.path() + "/deep/er");
  EXPECT_EQ(std::distance(begin(all), end(all)), 1);
  EXPECT_THAT(Dumper({.directory = "/proc/none"}).write(dump).error, HasSubstr("/proc/none"));
}

TEST(DumpTest, InfoFollowsItsSchemaWhateverTheTextsAre) {
  const TemporaryDirectory directory;
  const std::vector<float> values = {1, std::numeric_limits<float>::quiet_NaN(), 3, -INFINITY};
  const std::vector<float> nothing = {NAN, NAN, NAN, NAN};
  const std::vector<std::uint32_t> tokens = {1, 2, 3};
  const std::vector<std::uint32_t> table = {5, 0xFFFFFFFF};
  Dump dump = small_dump(tokens, bytes_of(values));
  dump.requests[0].id = "not \xff UTF-8 \"";
  dump.requests[0].page_table = table;
  dump.pages.back().bytes = bytes_of(nothing);
  dump.pages.front().parts.clear();
  const WrittenDump written = Dumper({.directory = directory.path(), .raw = true}).write(dump);
  ASSERT_EQ(written.error, "");
  const inspect::Json info = inspect::Json::parse(text_of(written.directory + "/info.json"));
  EXPECT_THAT(test::schema_problems(test::load_schema("dump-info"), info), IsEmpty());
  EXPECT_EQ(info["pages"][0]["parts"][0]["dtype"], "raw");
  EXPECT_EQ(info["pages"][1]["parts"][0]["statistics"]["nan"], 4);
  EXPECT_TRUE(info["pages"][1]["parts"][0]["statistics"]["mean"].is_null());
  EXPECT_EQ(info["requests"][0]["page_table"].dump(), "[5,null]");
  std::ifstream document(KVTRIE_SOURCE_DIR "/docs/dumps.md");
  const std::string text{std::istreambuf_iterator<char>(document), {}};
  const inspect::Json flat = info.flatten();
  for (const auto& [path, value] : flat.items()) {
    const std::string key = path.substr(path.find_last_of('/') + 1);
    if (key.find_first_not_of("0123456789") != std::string::npos) {
      EXPECT_THAT(text, HasSubstr("`" + key + "`"));
    }
  }
}

TEST(DumpTest, ManyThreadsWriteDumpsOfTheirOwn) {
  const TemporaryDirectory directory;
  const std::vector<float> values = {1, 2, 3, 4};
  const std::vector<std::uint32_t> tokens = {1, 2, 3};
  const Dump dump = small_dump(tokens, bytes_of(values));
  Dumper dumper({.directory = directory.path(), .dumps_max = 40});
  std::array<std::vector<std::string>, 4> made;
  {
    std::vector<std::jthread> threads;
    for (auto& mine : made) {
      threads.emplace_back([&] {
        for (int i = 0; i < 10; ++i) mine.push_back(dumper.write(dump).directory);
      });
    }
  }
  std::set<std::string> all;
  for (const auto& mine : made) all.insert(mine.begin(), mine.end());
  EXPECT_EQ(all.size(), 40U);
  EXPECT_FALSE(all.contains(""));
  EXPECT_FALSE(dumper.wants(1));
}

TEST(DumpTest, LlamaStatesArePartsAndDamagedOnesAreNot) {
  for (const bool transposed : {false, true}) {
    std::vector<std::byte> state = llama_state(5, transposed);
    const auto parts = parts_of_llama_state(state);
    ASSERT_TRUE(parts);
    ASSERT_EQ(parts->size(), 4U);
    EXPECT_EQ((*parts)[1].name, "k.1");
    EXPECT_THAT((*parts)[1].shape, ElementsAre(5, 8));
    EXPECT_THAT((*parts)[3].shape, ::testing::ElementsAreArray(transposed ? std::array{8, 5} : std::array{5, 8}));
    const Part& last = parts->back();
    const Statistics all = statistics_of(std::span(state).subspan(last.offset, last.bytes()), last.dtype);
    EXPECT_EQ(all.min, 121);
    EXPECT_EQ(all.max, 160);
    EXPECT_EQ(parts_of_page("engine=llama.cpp x\nkv=f32 f32", state).size(), 4U);
    EXPECT_EQ(parts_of_page("engine=other\nkv=f32 f32", state).front().dtype, DType::kF32);
    // Rows whose bytes are 2^64 + 4 in all.
    std::vector<std::byte> endless = state;
    const std::uint64_t row_bytes = 0x3333333333333334;
    std::memcpy(endless.data() + parts->front().offset - 8, &row_bytes, sizeof row_bytes);
    for (std::uint64_t i = 4; i < 8 * 4 * 5; ++i) endless[parts->front().offset + i] = std::byte{0};
    std::memcpy(endless.data() + parts->front().offset + 4, state.data() + (*parts)[1].offset - 12,
                state.size() - (*parts)[1].offset + 12);
    EXPECT_FALSE(parts_of_llama_state(endless));
    // Cut anywhere, or with any word of its head made wrong: nothing, or parts inside the bytes.
    for (std::size_t size = 0; size < state.size(); ++size) {
      EXPECT_FALSE(parts_of_llama_state(std::span(state).first(size))) << size;
    }
    for (std::size_t at = 0; at + 4 <= state.size(); at += 4) {
      for (const std::uint32_t wrong : {0U, 7U, 0x7FFFFFFFU, 0xFFFFFFFFU, 0x20000000U}) {
        std::vector<std::byte> damaged = state;
        std::memcpy(damaged.data() + at, &wrong, sizeof wrong);
        for (const Part& part : parts_of_page("engine=llama.cpp", damaged)) {
          ASSERT_LE(part.offset, damaged.size());
          ASSERT_LE(part.bytes(), damaged.size() - part.offset) << at << " " << wrong;
        }
      }
    }
  }
}

TEST(DumpTest, EqualItemsOfAnySizeAreInOneBin) {
  for (const float item : {0.0F, -1.5F, 1.6e16F, -std::numeric_limits<float>::max()}) {
    const std::array<float, 40> items = [&] {
      std::array<float, 40> all{};
      all.fill(item);
      return all;
    }();
    const Statistics all = statistics_of(std::as_bytes(std::span(items)), DType::kF32);
    EXPECT_EQ(std::ranges::count(all.histogram, items.size()), 1) << item;
    EXPECT_EQ(std::ranges::count(all.histogram, 0U), kHistogramBins - 1) << item;
  }
}

TEST(DumpTest, ANamespaceSaysTypeAndShape) {
  const std::vector<float> page(64);
  const auto first = [&](const char* fields) { return parts_of_page(fields, bytes_of(page)).front(); };
  EXPECT_EQ(first("").dtype, DType::kRaw);
  EXPECT_THAT(first("kv=bf16").shape, ElementsAre(128));
  EXPECT_THAT(first("a=b\nkv=f16 f16 unified\nkv_shape=2x16x4\n").shape, ElementsAre(2, 16, 4));
  EXPECT_EQ(first("kv=q8_0 q8_0").dtype, DType::kRaw);
  EXPECT_EQ(first("kv=strange").dtype, DType::kRaw);
  for (const char* wrong :
       {"2x16x5", "x", "2x", "2x16x4x", "-2x4", "0x128", "99999999999999999999", "4294967296x4294967296"}) {
    EXPECT_THAT(first((std::string("kv=f16\nkv_shape=") + wrong).c_str()).shape, ElementsAre(128)) << wrong;
  }
  EXPECT_EQ(whole_page(7, DType::kF16).front().dtype, DType::kRaw);
}

class DumpDiffTest : public ::testing::Test {
 protected:
  std::string write(const Dump& dump, bool raw = true) {
    Dumper dumper({.directory = directory_.path() + "/" + std::to_string(++number_), .raw = raw});
    const WrittenDump written = dumper.write(dump);
    EXPECT_EQ(written.error, "");
    return written.directory;
  }
  static DumpDiff diff(const std::string& a, const std::string& b) {
    const DumpDiffOutcome outcome = diff_dumps(a, b);
    EXPECT_EQ(outcome.error, "");
    return outcome.diff;
  }

  TemporaryDirectory directory_;
  int number_ = 0;
  std::vector<float> values_ = {1, 2, 3, 4};
  std::vector<float> others_ = {1, 2, 3, 4.5};
  std::vector<std::uint32_t> tokens_ = {1, 2, 3};
  Dump dump_ = small_dump(tokens_, bytes_of(values_));
};

TEST_F(DumpDiffTest, NamesTheFirstItemThatDiffers) {
  const std::string a = write(dump_);
  dump_.pages[0].page = 77;  // another number, the same bytes
  dump_.requests[0].cached_tokens = 2;
  EXPECT_TRUE(diff(a, write(dump_)).same());
  dump_.pages[1].bytes = bytes_of(others_);
  const DumpDiff found = diff(a, write(dump_));
  EXPECT_TRUE(found.raw);
  EXPECT_EQ(found.pages_compared, 2U);
  EXPECT_EQ(found.pages_differing, 1U);
  ASSERT_TRUE(found.pages);
  EXPECT_EQ(found.pages->position, 4U);
  EXPECT_EQ(found.pages->plane, 1U);
  EXPECT_EQ(found.pages->item, 3U);
  EXPECT_THAT(found.pages->index, ElementsAre(1, 1));
  EXPECT_EQ(found.pages->value_b, 4.5);
  EXPECT_EQ(found.pages->text, "request 0 position 4 plane 1 (page 9 and page 9): part page [1,1]: 4 and 4.5");
  EXPECT_FALSE(found.tokens || found.batch);
}

TEST_F(DumpDiffTest, WithoutRawBytesNamesThePage) {
  const std::string a = write(dump_, false);
  dump_.pages[1].bytes = bytes_of(others_);
  const DumpDiff found = diff(a, write(dump_));
  EXPECT_FALSE(found.raw);
  EXPECT_THAT(found.pages->text, HasSubstr("part page: mean 2.5 and 2.625 (no raw bytes)"));
  const std::vector<float> moved = {4, 3, 2, 1};
  dump_.pages[1].bytes = bytes_of(moved);
  EXPECT_THAT(diff(a, write(dump_, false)).pages->text, HasSubstr("statistics do not show"));
}

TEST_F(DumpDiffTest, TokensBatchesAndMissingPages) {
  const std::string a = write(dump_);
  const std::vector<std::uint32_t> longer = {1, 2, 3, 9};
  dump_.requests[0].tokens = longer;
  dump_.batch[0].kind = "decode";
  dump_.pages.pop_back();
  const std::string b = write(dump_);
  const DumpDiff found = diff(a, b);
  EXPECT_EQ(found.tokens->text, "request 0 token 3: none and 9");
  EXPECT_EQ(found.batch->entry, 0U);
  EXPECT_THAT(found.pages->text, HasSubstr("only in " + a));
  EXPECT_THAT(diff(b, a).pages->text, HasSubstr("plane 1: only in " + a));
  dump_.requests.push_back(dump_.requests[0]);
  EXPECT_EQ(diff(b, write(dump_)).tokens->text, "1 and 2 requests");
  dump_.pages[0].parts = whole_page(16, DType::kF16);
  dump_.pages[0].bytes = bytes_of(others_);
  EXPECT_THAT(diff(b, write(dump_)).pages->text, HasSubstr("part page is f32 [2,2] and page f16 [8]"));
}

TEST_F(DumpDiffTest, WhatIsNoDumpIsSaid) {
  const std::string a = write(dump_);
  EXPECT_TRUE(diff_dumps(a, directory_.path()).missing);
  dump_.pages[1].bytes = bytes_of(others_);
  const std::string b = write(dump_);
  const std::string file = b + "/request0-position00004-plane1-page.npy";
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
  EXPECT_THAT(diff_dumps(a, b).error, HasSubstr("is not what info.json says"));
  std::filesystem::remove(file);
  EXPECT_TRUE(diff_dumps(a, b).missing);
  replace_in(b + "/info.json", "\"version\": 1", "\"version\": 2");
  EXPECT_THAT(diff_dumps(a, b).error, HasSubstr("version 2"));
  replace_in(b + "/info.json", "kvtrie-dump", "kvtrie-bump");
  EXPECT_THAT(diff_dumps(a, b).error, HasSubstr("is no dump"));
  const std::string begun = R"({"format": "kvtrie-dump", "version": 1, "raw": )";
  for (const std::string& wrong : {std::string(), std::string("{"), std::string("[]"), begun + "3}", begun + "true}",
                                   begun + R"(true, "requests": [{"tokens": [-1, "x"]}]})"}) {
    std::ofstream(b + "/info.json") << wrong;
    const DumpDiffOutcome outcome = diff_dumps(a, b);
    EXPECT_FALSE(outcome.error.empty()) << wrong;
    EXPECT_FALSE(outcome.missing) << wrong;
  }
}

TEST_F(DumpDiffTest, TheCommandSaysTheSame) {
  const std::string a = write(dump_);
  others_[3] = NAN;
  dump_.pages[1].bytes = bytes_of(others_);
  const std::string b = write(dump_);
  EXPECT_EQ(test::run_kvtrie({"diff-dumps", a, a}).code, inspect::Exit::kOk);
  const inspect::Outcome outcome = test::run_kvtrie({"diff-dumps", a, b});
  EXPECT_EQ(outcome.code, inspect::Exit::kFindings);
  EXPECT_THAT(outcome.out, HasSubstr("part page [1,1]: 4 and nan"));
  const inspect::Json json = inspect::Json::parse(test::run_kvtrie({"diff-dumps", a, b, "--json"}).out);
  EXPECT_THAT(test::schema_problems(test::load_schema("diff-dumps"), json), IsEmpty());
  EXPECT_EQ(json["pages"]["value_a"], 4);
  EXPECT_TRUE(json["pages"]["value_b"].is_null());
  EXPECT_EQ(test::run_kvtrie({"diff-dumps", a, directory_.path()}).code, inspect::Exit::kNotFound);
  std::ofstream(b + "/info.json") << "[]";
  EXPECT_EQ(test::run_kvtrie({"diff-dumps", a, b}).code, inspect::Exit::kCorrupt);
}

}  // namespace
}  // namespace kvtrie::dump
