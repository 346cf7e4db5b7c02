// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "shm/runtime_directory.h"
#include "tests/tools/kvtrie/small_cache.h"
#include "tools/kvtrie/caches.h"

namespace kvtrie::test {
namespace {

using inspect::Environment;
using inspect::Exit;
using inspect::Json;
using ::testing::AllOf;
using ::testing::HasSubstr;

void touch(const std::string& path) { std::ofstream(path) << "x"; }

// What looks like /dev/shm with these objects; a cache of the same name is opened where it really
// is.
Environment host_with(const TemporaryDirectory& directory,
                      const std::vector<std::string>& objects) {
  for (const std::string& object : objects)
    touch(directory.path() + "/" + object);
  Environment environment;
  environment.shm_directory = directory.path();
  return environment;
}

TEST(CliTest, HelpHasTheExitCodes) {
  const auto outcome = run_kvtrie({"--help"});
  EXPECT_EQ(outcome.code, Exit::kOk);
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("Exit codes:"), HasSubstr("3  no such cache"), HasSubstr("destroy")));
}

TEST(CliTest, WrongArgumentsAreUsageErrors) {
  EXPECT_EQ(run_kvtrie({}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"statsu"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"page", "--cache", "x"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"page", "twelve", "--cache", "x"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"tree", "--limit", "0", "--cache", "x"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"status", "--cache", "../x"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"destroy"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"page", "-1", "--cache", "x"}).code, Exit::kUsage);
  const inspect::Outcome in_json = run_kvtrie({"page", "twelve", "--json"});
  EXPECT_EQ(in_json.code, Exit::kUsage);
  EXPECT_EQ(Json::parse(in_json.out)["error"]["exit_code"], 2);
  EXPECT_EQ(run_kvtrie({"--json", "--help"}).code, Exit::kOk);
}

TEST(CliTest, NoSuchCacheNamesWhatIsThere) {
  const TemporaryDirectory directory;
  const Environment host = host_with(directory, {"kvtrie.other.v1.seg", "kvtrie.gone.v1.pool0"});
  const auto outcome = run_kvtrie({"status", "--cache", "gone"}, host);
  EXPECT_EQ(outcome.code, Exit::kNotFound);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr("no cache 'gone'"), HasSubstr("there is kvtrie.gone.v1.pool0"),
                    HasSubstr("caches here: other")));
  EXPECT_EQ(
      Json::parse(
          run_kvtrie({"status", "--cache", "gone", "--json"}, host).out)["error"]["exit_code"],
      3);
}

TEST(CliTest, TheOnlyCacheNeedNotBeNamed) {
  const SmallCache cache;
  const TemporaryDirectory directory;
  const Environment host =
      host_with(directory, {segment_object_name(cache.name()), "kvtrie.x.v1.pool0",
                            "kvtrie.half.v1.seg.tmp", "kvtrie.old.v0.seg", "other"});
  const auto outcome = run_kvtrie({"status"}, host);
  EXPECT_EQ(outcome.code, Exit::kOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr(cache.name()));
}

TEST(CliTest, SeveralCachesAreListed) {
  const SmallCache cache;
  const TemporaryDirectory directory;
  const Environment host =
      host_with(directory, {segment_object_name(cache.name()), "kvtrie.zz-gone.v1.seg"});
  const auto outcome = run_kvtrie({"status"}, host);
  EXPECT_EQ(outcome.code, Exit::kUsage);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("2 caches"),
                                 HasSubstr(cache.name() + "  256 pages, coordinator none"),
                                 HasSubstr("zz-gone")));
}

TEST(CliTest, NoCacheAtAll) {
  const TemporaryDirectory directory;
  EXPECT_EQ(run_kvtrie({"status"}, host_with(directory, {})).code, Exit::kNotFound);
}

TEST(CliTest, ParsesObjectNamesFromTheEnd) {
  const auto tricky = inspect::parse_object_name("kvtrie.a.v1.seg.v2.pool7.tmp");
  ASSERT_TRUE(tricky);
  EXPECT_EQ(tricky->cache, "a.v1.seg");
  EXPECT_EQ(tricky->layout, 2U);
  EXPECT_EQ(tricky->plane, 7U);
  EXPECT_TRUE(tricky->temporary);
  const auto queue = inspect::parse_object_name("kvtrie.a.v1.queue");
  ASSERT_TRUE(queue);
  EXPECT_TRUE(queue->queue && !queue->segment);
  for (const char* other :
       {"kvtrie", "kvtrie.", "kvtrie.a.seg", "kvtrie.a.v1.", "kvtrie.a.v.seg", "kvtrie.a.v1.pool",
        "kvtrie.a.v1.poolx", "kvtrie..v1.seg", "kvtrie.a.v99999999999.seg", "xkvtrie.a.v1.seg"}) {
    EXPECT_FALSE(inspect::parse_object_name(other)) << other;
  }
}

class DestroyTest : public ::testing::Test {
 protected:
  inspect::Outcome destroy() {
    return run_kvtrie({"destroy", "--cache", cache_.name(), "--dir", directory_.path()});
  }
  void make_directory() {
    std::filesystem::create_directory(cache_directory_path(directory_.path(), cache_.name()));
    std::ofstream(lock_path(directory_.path(), cache_.name())) << "4711\n";
    touch(socket_path(directory_.path(), cache_.name()));
  }
  static FileDescriptor locked(const std::string& path) {
    FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(::flock(fd.get(), LOCK_EX | LOCK_NB), 0);
    return fd;
  }
  bool objects_left() const {
    for (const auto& object : inspect::find_objects("/dev/shm")) {
      if (object.name.cache == cache_.name()) return true;
    }
    return false;
  }

  SmallCache cache_;
  TemporaryDirectory directory_;
};

TEST_F(DestroyTest, RemovesObjectsAndDirectory) {
  make_directory();
  ASSERT_TRUE(
      create_object(pool_object_name(cache_.name(), 9), 64, 0600).has_value());  // a temporary one
  const auto outcome = destroy();
  EXPECT_EQ(outcome.code, Exit::kOk) << outcome.err;
  EXPECT_FALSE(objects_left());
  EXPECT_FALSE(std::filesystem::exists(cache_directory_path(directory_.path(), cache_.name())));
  EXPECT_TRUE(cache_.segment().poisoned());
  EXPECT_THAT(outcome.out, HasSubstr("destroyed"));
  EXPECT_EQ(destroy().code, Exit::kNotFound);
}

TEST_F(DestroyTest, RefusesWhileACoordinatorHoldsTheDirectory) {
  make_directory();
  const FileDescriptor lock = locked(lock_path(directory_.path(), cache_.name()));
  const auto outcome = destroy();
  EXPECT_EQ(outcome.code, Exit::kRefused);
  EXPECT_THAT(outcome.err, HasSubstr("stop it first (kill 4711)"));
  EXPECT_TRUE(objects_left());
  EXPECT_FALSE(cache_.segment().poisoned());
}

TEST_F(DestroyTest, RefusesWhileACoordinatorWithAnotherDirectoryHoldsTheSegment) {
  cache_.serve(4712, 1);
  const FileDescriptor lock = locked(cache_.segment_path());
  const auto outcome = destroy();
  EXPECT_EQ(outcome.code, Exit::kRefused);
  EXPECT_THAT(outcome.err, HasSubstr("pid 4712, in another --dir"));
  EXPECT_TRUE(objects_left());
}

TEST_F(DestroyTest, RemovesADamagedSegmentAndSaysWhoStillMapsOne) {
  cache_.attach("one");
  EXPECT_THAT(
      run_kvtrie({"destroy", "--cache", cache_.name(), "--dir", directory_.path(), "--json"}).out,
      HasSubstr("\"workers_alive\": 1"));
  const SmallCache damaged;
  damaged.segment().superblock().magic = 0;
  EXPECT_EQ(run_kvtrie({"destroy", "--cache", damaged.name(), "--dir", directory_.path()}).code,
            Exit::kOk);
}

TEST_F(DestroyTest, LeavesWhatItDoesNotKnow) {
  make_directory();
  const std::string path = cache_directory_path(directory_.path(), cache_.name());
  touch(path + "/precious");
  EXPECT_THAT(destroy().out, HasSubstr("! left " + path));
  EXPECT_TRUE(std::filesystem::exists(path + "/precious"));
}

}  // namespace
}  // namespace kvtrie::test
