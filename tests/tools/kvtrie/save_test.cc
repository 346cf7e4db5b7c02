// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_save.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class SaveTest : public testing::Test {
 protected:
  void SetUp() override {
    const WorkerId me = cache_.attach("worker");
    PathEnd end = cache_.open_namespace("a");
    cache_.publish(me, end, 5, 100);
  }
  inspect::Outcome save(const std::string& file) {
    return run_kvtrie({"save", file, "--cache", cache_.name()});
  }

  SmallCache cache_;
  TemporaryDirectory directory_;
  const std::string file_ = directory_.path() + "/cache.save";
};

TEST_F(SaveTest, SaysWhatItSavedInTextAndJson) {
  const inspect::Outcome outcome = save(file_);
  EXPECT_EQ(outcome.code, Exit::kOk) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr(file_), HasSubstr("5 of 1 namespace"), HasSubstr("none")));
  const Json json = run_json({"save", file_, "--cache", cache_.name()});
  EXPECT_EQ(json["cache"], cache_.name());
  EXPECT_EQ(json["file"], file_);
  EXPECT_EQ(json["pages"], 5);
  EXPECT_EQ(json["namespaces"], 1);
  EXPECT_EQ(json["file_bytes"], std::filesystem::file_size(file_));
  EXPECT_EQ(json["left_out"]["evicted_meanwhile"], 0);
  EXPECT_EQ(json["left_out"]["below_evicted"], 0);
  EXPECT_EQ(json["left_out"]["flushed"], 0);
  EXPECT_EQ(json["left_out"]["unreachable"], 0);
}

TEST_F(SaveTest, CountsFlushedPages) {
  cache_.segment().name_space({0}).root_generation.fetch_add(1);
  EXPECT_THAT(save(file_).out, AllOf(HasSubstr("0 of 0 namespaces"), HasSubstr("5 flushed")));
}

TEST_F(SaveTest, ExitCodesAreThoseOfTheTable) {
  EXPECT_EQ(run_kvtrie({"save", "--cache", cache_.name()}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"save", file_, "--cache", "no-such-cache"}).code, Exit::kNotFound);
  const inspect::Outcome nowhere = save(directory_.path() + "/no/folder");
  EXPECT_EQ(nowhere.code, Exit::kSystem);
  EXPECT_THAT(nowhere.err, HasSubstr("No such file or directory"));
  (void)remove_object(pool_object_name(cache_.name(), 1));
  const inspect::Outcome half = save(file_);
  EXPECT_EQ(half.code, Exit::kCorrupt);
  EXPECT_THAT(half.err, HasSubstr(pool_object_name(cache_.name(), 1)));
  ASSERT_TRUE(create_object(pool_object_name(cache_.name(), 1), 4096, 0600));
  ASSERT_TRUE(publish_object(pool_object_name(cache_.name(), 1)));
  EXPECT_EQ(save(file_).code, Exit::kCorrupt) << "too short";
  EXPECT_FALSE(std::filesystem::exists(file_));
}

TEST_F(SaveTest, APoisonedSegmentIsNotSaved) {
  cache_.segment().poison(PoisonReason::kOperator);
  const Json json = run_json({"save", file_, "--cache", cache_.name()});
  EXPECT_EQ(json["error"]["exit_code"], 4);
  EXPECT_FALSE(std::filesystem::exists(file_));
}

}  // namespace
}  // namespace kvtrie::test
