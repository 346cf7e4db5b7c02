// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/gguf/metadata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <sstream>

#include "tests/tools/gguf/gguf_bytes.h"
#include "tools/gguf/kv_shape.h"

namespace kvtrie::test {
namespace {

using gguf::FormatError;
using gguf::Metadata;
using ::testing::HasSubstr;

Metadata read(const std::string& bytes) {
  std::istringstream stream(bytes);
  return Metadata::read(stream);
}

std::string problem_of(const std::string& bytes) {
  try {
    read(bytes);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "none";
}

TEST(GgufMetadataTest, ReadsEveryKindOfValue) {
  GgufBytes file(2);
  file.number("a.u8", 200, GgufBytes::kU8).number("a.u64", ~std::uint64_t{0}, GgufBytes::kU64);
  file.number("a.i16", 300, GgufBytes::kI16).number("a.bool", 1, GgufBytes::kBool).number("a.f64", 0, GgufBytes::kF64);
  file.text("a.text", "hello").numbers("a.array", {1, 2, 3}, GgufBytes::kI32).numbers("a.empty", {});
  file.texts("a.texts", {"x", ""}).number("a.last", 7);
  const Metadata metadata = read(file.file());
  EXPECT_EQ(metadata.number("a.u8"), 200U);
  EXPECT_EQ(metadata.number("a.u64"), ~std::uint64_t{0});
  EXPECT_EQ(metadata.number("a.i16"), 300U);
  EXPECT_EQ(metadata.text("a.text"), "hello");
  EXPECT_EQ(metadata.numbers("a.array"), (std::vector<std::uint64_t>{1, 2, 3}));
  EXPECT_EQ(metadata.numbers("a.u8"), std::vector<std::uint64_t>{200});
  EXPECT_EQ(metadata.number("a.last"), 7U);
  EXPECT_EQ(metadata.number("nobody"), std::nullopt);
  EXPECT_TRUE(metadata.has("a.texts"));
}

TEST(GgufMetadataTest, WhatIsSomethingElseIsAnErrorWhenAskedFor) {
  GgufBytes file;
  file.number("negative", 0xFF, GgufBytes::kI8).number("fraction", 0, GgufBytes::kF32).text("long", std::string(5000, 'x'));
  file.numbers("negatives", {1, 0xFFFFFFFF}, GgufBytes::kI32);
  file.numbers("many", std::vector<std::uint64_t>(2000, 1), GgufBytes::kU8);
  const Metadata metadata = read(file.file());
  EXPECT_THROW(metadata.number("negative"), FormatError);
  EXPECT_THROW(metadata.number("fraction"), FormatError);
  EXPECT_THROW(metadata.text("long"), FormatError);
  EXPECT_THROW(metadata.number("long"), FormatError);
  EXPECT_THROW(metadata.numbers("negatives"), FormatError);
  EXPECT_THROW(metadata.numbers("many"), FormatError);
}

TEST(GgufMetadataTest, SaysWhatIsWrong) {
  const std::string good = small_llama().file();
  EXPECT_EQ(problem_of(good), "none");
  EXPECT_THAT(problem_of(""), HasSubstr("ends too early"));
  EXPECT_THAT(problem_of("GGML" + good.substr(4)), HasSubstr("not a GGUF file"));
  EXPECT_THAT(problem_of(GgufBytes(1).file()), HasSubstr("version 1"));
  EXPECT_THAT(problem_of(GgufBytes(3U << 24).file()), HasSubstr("big-endian"));
  EXPECT_THAT(problem_of(good.substr(0, good.size() - 1)),
              HasSubstr("metadata 'llama.attention.head_count_kv': the file ends too early"));
  EXPECT_THAT(problem_of(small_llama().number("llama.block_count", 3).file()), HasSubstr("stands twice"));
  EXPECT_THAT(problem_of(GgufBytes().number("x", 2, GgufBytes::kBool).file()), HasSubstr("a truth value of 2"));
  EXPECT_THAT(problem_of(GgufBytes().raw(std::string(8, '\0')).file()), HasSubstr("a key of 0 bytes"));
  EXPECT_THAT(problem_of(GgufBytes().raw(std::string(8, '\x7f')).file()), HasSubstr("a key of"));
  const std::string key("\1\0\0\0\0\0\0\0k", 9);
  EXPECT_THAT(problem_of(GgufBytes().raw(key + std::string("\15\0\0\0", 4)).file()), HasSubstr("type 13"));
  const std::string array = key + std::string("\11\0\0\0", 4);
  EXPECT_THAT(problem_of(GgufBytes().raw(array + std::string("\11\0\0\0", 4) + std::string(8, '\0')).file()),
              HasSubstr("array of arrays"));
}

// Counts near 2^64 must not wrap to a small number of bytes.
TEST(GgufMetadataTest, BelievesNoCountBeforeItsBytesAreThere) {
  const std::string array("\1\0\0\0\0\0\0\0k\11\0\0\0", 13);
  for (const char type : {'\0', '\5', '\10', '\14'}) {
    for (const std::string& count : {std::string(8, '\xff'), std::string("\0\0\0\0\0\0\0\x20", 8), std::string("\1\0\0\0\0\0\0\x80", 8)}) {
      const std::string pair = array + type + std::string(3, '\0') + count + std::string(64, '\0');
      EXPECT_THAT(problem_of(GgufBytes().raw(pair).file()), HasSubstr("ends too early")) << int{type};
    }
  }
  std::string many = GgufBytes().file();
  many.replace(16, 8, std::string(8, '\xff'));
  EXPECT_THAT(problem_of(many), HasSubstr("metadata pairs, more than 4096"));
}

// Any bytes give metadata or a FormatError. The generator's seed is fixed, so a failure comes again.
TEST(GgufMetadataTest, MutatedFilesAreReadOrRefused) {
  std::mt19937 random(20240607);
  const std::string good = small_llama(3).numbers("llama.rope.factors", {1, 2, 3}, GgufBytes::kU64).file();
  unsigned read_anyhow = 0;
  unsigned refused = 0;
  for (unsigned round = 0; round < 20'000; ++round) {
    std::string bytes = good;
    for (unsigned change = random() % 4 + 1; change > 0; --change) {
      const std::size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
          break;
        case 2:
          bytes.erase(at, random() % 16);
          break;
        default:
          bytes.insert(at, std::string(random() % 16, static_cast<char>(random())));
      }
      if (bytes.empty()) bytes = "G";
    }
    try {
      (void)gguf::shape_from(read(bytes));
      ++read_anyhow;
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(read_anyhow, 1000U);
  EXPECT_GT(refused, 1000U);
}

}  // namespace
}  // namespace kvtrie::test
