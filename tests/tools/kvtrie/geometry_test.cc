// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "shm/geometry.h"
#include "tests/tools/gguf/gguf_bytes.h"
#include "tests/tools/kvtrie/json_schema.h"
#include "tests/tools/kvtrie/small_cache.h"
#include "tools/kvtrie/known_models.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t kGiB = 1ULL << 30;

Json geometry(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "geometry");
  const Json json = run_json(arguments);
  EXPECT_THAT(schema_problems(load_schema("geometry"), json), IsEmpty());
  return json;
}

std::string write_gguf(const TemporaryDirectory& directory, const std::string& name, const std::string& bytes) {
  const std::string path = directory.path() + "/" + name;
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

TEST(GeometryTest, ListsTheModelsThatItKnows) {
  const Json json = geometry({});
  EXPECT_EQ(json["models"].size(), inspect::known_models().size());
  EXPECT_TRUE(json["memory_bytes"].is_null());
  EXPECT_THAT(run_kvtrie({"geometry"}).out, AllOf(HasSubstr("llama-3.1-8b"), HasSubstr("2,097,152")));
  for (const Json& model : json["models"]) EXPECT_TRUE(model["problem"].is_null()) << model.dump();
}

// 2 x 32 layers x 8 heads x 128 x 2 bytes is 128 KiB a token.
TEST(GeometryTest, FillsTheMemoryAndNoMore) {
  const Json json = geometry({"--model", "LLAMA-3.1-8B", "--memory", "4GiB"});
  const Json model = json["models"][0];
  EXPECT_EQ(model["page_bytes"], 2 << 20);
  EXPECT_EQ(model["bytes_per_token"], 128 << 10);
  const Json plan = model["plan"];
  const std::uint64_t pages = plan["pages"];
  Geometry one_more{.pages = pages + 1, .page_bytes = 2 << 20};
  EXPECT_LE(plan["segment_bytes"].get<std::uint64_t>() + plan["pool_bytes_each"].get<std::uint64_t>(), 4 * kGiB);
  EXPECT_GT(layout_of(one_more).segment_bytes + pool_bytes(one_more), 4 * kGiB);
  EXPECT_EQ(plan["command"], "kvtried --cache llama-3.1-8b --pages " + std::to_string(pages) +
                                 " --tokens-per-page 16 --page-bytes 2097152");
}

TEST(GeometryTest, RanksHaveAPlaneEach) {
  const Json json = geometry({"--model", "llama-3.1-70b", "--tp", "4", "--dtype", "q8_0", "--tokens-per-page", "32"});
  EXPECT_EQ(json["models"][0]["page_bytes"], 32ULL * 80 * 2 * (2 * 128 / 32 * 34));
  EXPECT_THAT(json["models"][0]["plan"]["command"].get<std::string>(), HasSubstr("--planes 4"));
}

TEST(GeometryTest, SeveralModelsAreSeveralCaches) {
  const TemporaryDirectory directory;
  const std::string file = write_gguf(directory, "m.gguf", small_llama().file());
  const Json models = geometry({"--model", "qwen3-8b", "--gguf", file, "--gguf", file})["models"];
  ASSERT_EQ(models.size(), 3U);
  EXPECT_EQ(models[1]["name"], "Small Llama");
  EXPECT_EQ(models[1]["plan"]["cache"], "small-llama");
  EXPECT_EQ(models[2]["plan"]["cache"], "small-llama-3");
  EXPECT_THAT(models[2]["plan"]["command"].get<std::string>(), HasSubstr("--metrics 127.0.0.1:9466"));
  std::uint64_t bytes = 0;
  for (const Json& model : models) {
    bytes += model["plan"]["segment_bytes"].get<std::uint64_t>() + model["plan"]["pool_bytes_each"].get<std::uint64_t>();
  }
  EXPECT_LE(bytes, 8 * kGiB);
  EXPECT_THAT(run_kvtrie({"geometry", "--model", "qwen3-8b", "--gguf", file}).out,
              HasSubstr("Several models are several caches"));
}

TEST(GeometryTest, TakesAShapeByHand) {
  const Json model = geometry({"--layers", "61", "--kv-heads", "1", "--head-dim", "576", "--value-dim", "0"})["models"][0];
  EXPECT_EQ(model["bytes_per_token"], 61 * 576 * 2);
  EXPECT_EQ(geometry({"--layers", "2", "--kv-heads", "4", "--head-dim", "64"})["models"][0]["bytes_per_token"],
            2 * 4 * 128 * 2);
}

TEST(GeometryTest, SaysWhatCannotBe) {
  const TemporaryDirectory directory;
  const auto code = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "geometry");
    const auto outcome = run_kvtrie(arguments);
    EXPECT_FALSE(outcome.err.empty());
    return outcome.code;
  };
  EXPECT_EQ(code({"--model", "nobody"}), Exit::kNotFound);
  EXPECT_EQ(code({"--gguf", directory.path() + "/none"}), Exit::kNotFound);
  EXPECT_EQ(code({"--gguf", directory.path()}), Exit::kRefused);
  EXPECT_EQ(code({"--gguf", write_gguf(directory, "cut", small_llama().file().substr(0, 100))}), Exit::kCorrupt);
  const std::string pipe = directory.path() + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(code({"--gguf", pipe}), Exit::kRefused);
  EXPECT_EQ(code({"--dtype", "f8"}), Exit::kUsage);
  EXPECT_EQ(code({"--layers", "2"}), Exit::kUsage);
  EXPECT_EQ(code({"--model", "llama-3.1-8b", "--tp", "3"}), Exit::kUsage);
  EXPECT_EQ(code({"--model", "llama-3.1-8b", "--memory", "1MiB"}), Exit::kUsage);
  EXPECT_EQ(code({"--model", "llama-3.1-8b", "--memory", "much"}), Exit::kUsage);
}

}  // namespace
}  // namespace kvtrie::test
