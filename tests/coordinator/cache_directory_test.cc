// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/cache_directory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/crash_point.h"
#include "shm/runtime_directory.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

unsigned mode_of(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 ? info.st_mode & 07777 : 0;
}

TEST(CacheDirectoryTest, DefaultPlaceIsARuleOfUserAndEnvironment) {
  EXPECT_EQ(default_runtime_directory(0, "/run/user/0"), "/run/kvtrie");
  EXPECT_EQ(default_runtime_directory(1000, "/run/user/1000"), "/run/user/1000/kvtrie");
  EXPECT_EQ(default_runtime_directory(1000, nullptr), "/run/user/1000/kvtrie");
  EXPECT_EQ(default_runtime_directory(1000, ""), "/run/user/1000/kvtrie");
  EXPECT_EQ(socket_path("/run/kvtrie", "x"), "/run/kvtrie/x/socket");
}

TEST(CacheDirectoryTest, MakesTheDirectoryWithPermissionsOfTheObjects) {
  const test::TemporaryCache cache("directory");
  CacheDirectory directory;
  ASSERT_FALSE(CacheDirectory::lock(cache.directory() + "/a/b", cache.name(), 0600, directory));
  EXPECT_EQ(mode_of(directory.path()), 0700U);
  EXPECT_EQ(directory_mode(0660), 0770U);
  EXPECT_EQ(directory_mode(0644), 0755U);
}

TEST(CacheDirectoryTest, SecondHolderHearsThePidOfTheFirst) {
  const test::TemporaryCache cache("directory");
  test::Child first([&](test::Line line) {
    CacheDirectory directory;
    if (CacheDirectory::lock(cache.directory(), cache.name(), 0600, directory)) return 1;
    line.say();
    return line.hear() == '+' ? 0 : 1;
  });
  ASSERT_EQ(first.line().hear(), '+');
  CacheDirectory second;
  const MaybeFailure failure = CacheDirectory::lock(cache.directory(), cache.name(), 0600, second);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->exit_code, kExitOtherRunning);
  EXPECT_NE(failure->text.find("pid " + std::to_string(first.pid())), std::string::npos)
      << failure->text;
  first.kill();
  EXPECT_FALSE(CacheDirectory::lock(cache.directory(), cache.name(), 0600, second))
      << "the dead hold no lock";
}

#ifdef KVTRIE_DEV
std::string taken_away;  // by the hook, once

// As `kvtrie destroy` does it; a lock on a file that is no longer there would exclude nobody.
TEST(CacheDirectoryTest, LockIsOnTheFileThatIsThere) {
  const test::TemporaryCache cache("directory");
  taken_away = lock_path(cache.directory(), cache.name());
  crash_hook.store([](const char*) {
    if (taken_away.empty()) return;
    ::unlink(taken_away.c_str());
    ::close(
        ::open(taken_away.c_str(), O_CREAT | O_CLOEXEC, 0600));  // and a new one is there already
    taken_away.clear();
  });
  CacheDirectory first;
  EXPECT_FALSE(CacheDirectory::lock(cache.directory(), cache.name(), 0600, first));
  crash_hook.store(nullptr);
  EXPECT_EQ(taken_away, "");
  CacheDirectory second;
  EXPECT_TRUE(CacheDirectory::lock(cache.directory(), cache.name(), 0600, second));
}
#endif

TEST(CacheDirectoryTest, PlaceThatCannotBeIsAnError) {
  CacheDirectory directory;
  EXPECT_TRUE(CacheDirectory::lock("/proc/nowhere", "x", 0600, directory));
  EXPECT_TRUE(CacheDirectory::lock("/dev/null", "x", 0600, directory));
}

}  // namespace
}  // namespace kvtrie
