// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/gguf/kv_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tests/tools/gguf/gguf_bytes.h"

namespace kvtrie::test {
namespace {

using gguf::element_kind;
using gguf::KvShape;
using gguf::LayerShape;
using gguf::page_bytes_of;
using gguf::uniform_shape;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

KvShape shape_of(const GgufBytes& file) {
  std::istringstream stream(file.file());
  return gguf::shape_from(gguf::Metadata::read(stream));
}

std::string problem_of(const GgufBytes& file) {
  try {
    shape_of(file);
  } catch (const gguf::FormatError& error) {
    return error.what();
  }
  return "none";
}

GgufBytes model(const std::string& architecture) {
  GgufBytes file;
  file.text("general.architecture", architecture);
  return file;
}

std::uint64_t bytes_of(const KvShape& shape, const char* kind, std::uint32_t planes = 1) {
  const auto page = page_bytes_of(shape, *element_kind(kind), 16, planes);
  EXPECT_EQ(page.problem, "");
  return page.bytes;
}

TEST(GgufKvShapeTest, DividesTheEmbeddingAmongTheHeadsWhenLengthsAreNotGiven) {
  const KvShape shape = shape_of(small_llama());
  EXPECT_EQ(shape.name, "Small Llama");
  EXPECT_EQ(shape.layers.size(), 32U);
  EXPECT_THAT(shape.layers, Each(LayerShape{8, 128, 128}));
  EXPECT_TRUE(shape.notes.empty());
}

TEST(GgufKvShapeTest, TakesLengthsAndHeadsOfEachLayer) {
  const KvShape shape = shape_of(model("gemma3")
                                     .number("gemma3.block_count", 3)
                                     .number("gemma3.attention.head_count", 8)
                                     .numbers("gemma3.attention.head_count_kv", {4, 0, 2})
                                     .number("gemma3.attention.key_length", 256)
                                     .number("gemma3.attention.value_length", 64)
                                     .number("gemma3.attention.sliding_window", 1024));
  EXPECT_EQ(shape.name, "gemma3");
  EXPECT_THAT(shape.layers, ElementsAre(LayerShape{4, 256, 64}, LayerShape{0, 256, 64}, LayerShape{2, 256, 64}));
  EXPECT_THAT(shape.notes, ElementsAre(HasSubstr("1 of 3 layers keep nothing"), HasSubstr("sliding window")));
  EXPECT_EQ(bytes_of(shape, "f16"), 16U * (4 + 2) * (256 + 64) * 2);
}

TEST(GgufKvShapeTest, WithoutKvHeadsEveryHeadHasItsOwn) {
  const KvShape shape = shape_of(model("gpt2")
                                     .number("gpt2.block_count", 12)
                                     .number("gpt2.embedding_length", 768)
                                     .number("gpt2.attention.head_count", 12));
  EXPECT_THAT(shape.layers, Each(LayerShape{12, 64, 64}));
}

TEST(GgufKvShapeTest, SaysWhatIsMissingOrCannotBe) {
  EXPECT_THAT(problem_of(GgufBytes()), HasSubstr("'general.architecture' is missing"));
  EXPECT_THAT(problem_of(model("clip")), HasSubstr("'clip.block_count' is missing"));
  EXPECT_THAT(problem_of(small_llama(0)), HasSubstr("0 cannot be, it must be 1 to 1024"));
  EXPECT_THAT(problem_of(small_llama(1025)), HasSubstr("1025 cannot be"));
  EXPECT_THAT(problem_of(model("x").number("x.block_count", 2)), HasSubstr("'x.attention.head_count' is missing"));
  EXPECT_THAT(problem_of(small_llama().number("llama.attention.kv_lora_rank", 512)), HasSubstr("latent attention"));
  GgufBytes uneven = model("x").number("x.block_count", 2).number("x.embedding_length", 100);
  EXPECT_THAT(problem_of(uneven.number("x.attention.head_count", 3)), HasSubstr("not a multiple of 3 heads"));
  GgufBytes wrong = model("x").number("x.block_count", 2).number("x.embedding_length", 64);
  EXPECT_THAT(problem_of(wrong.numbers("x.attention.head_count", {1, 2, 3})), HasSubstr("3 values for 2 layers"));
}

TEST(GgufKvShapeTest, CountsBytesInTheBlocksOfEachKind) {
  const KvShape llama = uniform_shape("m", 32, {8, 128, 128});
  EXPECT_EQ(bytes_of(llama, "f16"), 2U << 20);  // 128 KiB a token
  EXPECT_EQ(bytes_of(llama, "f32"), 4U << 20);
  EXPECT_EQ(bytes_of(llama, "bf16"), 2U << 20);
  EXPECT_EQ(bytes_of(llama, "q8_0"), (2U << 20) / 64 * 34);
  EXPECT_EQ(bytes_of(llama, "q4_0"), (2U << 20) / 64 * 18);
  EXPECT_FALSE(element_kind("q9"));
}

TEST(GgufKvShapeTest, RanksShareHeadsOrKeepOneEach) {
  const KvShape llama = uniform_shape("m", 32, {8, 128, 128});
  EXPECT_EQ(bytes_of(llama, "f16", 4), (2U << 20) / 4);
  EXPECT_EQ(bytes_of(llama, "f16", 16), (2U << 20) / 8);
  EXPECT_THAT(page_bytes_of(llama, *element_kind("f16"), 16, 3).problem, HasSubstr("cannot be shared evenly"));
}

TEST(GgufKvShapeTest, PagesAreWholeWordsAndBlocksAreWhole) {
  EXPECT_EQ(page_bytes_of(uniform_shape("m", 1, {1, 1, 1}), *element_kind("fp8"), 3, 1).bytes, 8U);
  EXPECT_THAT(page_bytes_of(uniform_shape("m", 1, {1, 80, 80}), *element_kind("q8_0"), 16, 1).problem,
              HasSubstr("80 elements does not fill whole blocks of 32"));
  EXPECT_EQ(bytes_of(uniform_shape("latent", 61, {1, 576, 0}), "bf16"), 16U * 61 * 576 * 2);
  EXPECT_THAT(page_bytes_of(uniform_shape("none", 2, {0, 64, 64}), *element_kind("f16"), 16, 1).problem,
              HasSubstr("keeps nothing"));
}

}  // namespace
}  // namespace kvtrie::test
