// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/cache_store.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <optional>
#include <utility>

#include "tests/support/dies_at.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

class CacheStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_FALSE(read_host_identity(host_));
    options_.cache = cache_.name();
    options_.directory = cache_.directory();
    options_.pages = 128;
    options_.page_bytes = 64;
    options_.planes = 2;
    options_.workers = 3;
    options_.namespaces = 4;
    options_.stripes = 4;
    options_.leases = 8;
  }

  MaybeFailure open(CacheObjects& objects) {
    return open_or_make_cache(
        options_, host_, [this](std::string_view line) { log_ += std::string(line) + "\n"; },
        objects);
  }
  // Options that say which cache, and nothing of its shape.
  Options bare() const {
    Options options;
    options.cache = cache_.name();
    options.directory = cache_.directory();
    return options;
  }
  // Opens and closes again; the text of what went wrong.
  std::string open_problem() {
    CacheObjects objects;
    const MaybeFailure failure = open(objects);
    return failure ? failure->text : "";
  }
  bool there(const std::string& path) const {
    struct stat info {};
    return ::stat(path.c_str(), &info) == 0;
  }
  std::uint64_t id_of(const CacheObjects& objects) const {
    return objects.segment->superblock().cache_id[0];
  }
  void expect_problem(const std::string& part) {
    const std::string problem = open_problem();
    EXPECT_NE(problem.find(part), std::string::npos)
        << "'" << problem << "' does not say: " << part;
  }

  test::TemporaryCache cache_{"store"};
  HostIdentity host_;
  Options options_;
  std::string log_;
};

TEST_F(CacheStoreTest, BuildsAndAdopts) {
  std::uint64_t id = 0;
  {
    CacheObjects made;
    const MaybeFailure failure = open(made);
    ASSERT_FALSE(failure) << failure->text;
    EXPECT_FALSE(made.adopted);
    EXPECT_EQ(made.device->plane_count(), 2U);
    EXPECT_EQ(made.device->plane_bytes(), 128U * 64);
    EXPECT_TRUE(there(cache_.segment_path()) && there(cache_.pool_path(0)) &&
                there(cache_.pool_path(1)));
    EXPECT_FALSE(there(cache_.segment_path() + ".tmp") || there(cache_.pool_path(0) + ".tmp"));
    id = id_of(made);
    EXPECT_NE(id, 0U);
  }
  CacheObjects adopted;
  options_ = bare();
  ASSERT_FALSE(open(adopted)) << "an existing cache needs no geometry";
  EXPECT_TRUE(adopted.adopted);
  EXPECT_EQ(id_of(adopted), id);
}

TEST_F(CacheStoreTest, ObjectsHaveTheModeThatWasAskedForWhateverTheUmask) {
  options_.mode = 0660;
  const mode_t before = ::umask(0077);
  EXPECT_EQ(open_problem(), "");
  ::umask(before);
  for (const std::string& path : {cache_.segment_path(), cache_.pool_path(0)}) {
    struct stat info {};
    ASSERT_EQ(::stat(path.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0660U);
  }
}

TEST_F(CacheStoreTest, ObserversGetDescriptorsThatCannotWrite) {
  CacheObjects objects;
  ASSERT_FALSE(open(objects));
  const std::uint64_t bytes = objects.segment->size_bytes();
  EXPECT_FALSE(Mapping::map(objects.segment_read_only.get(), bytes, Access::kReadWrite));
  EXPECT_TRUE(Mapping::map(objects.segment_read_only.get(), bytes, Access::kReadOnly));
  const int pool = objects.device->descriptor(1, Access::kReadOnly);
  EXPECT_FALSE(Mapping::map(pool, objects.device->plane_bytes(), Access::kReadWrite));
}

TEST_F(CacheStoreTest, NewCacheNeedsPagesAndPageBytes) {
  options_.pages.reset();
  expect_problem("--pages and --page-bytes are needed");
  options_.pages = 3;
  expect_problem("pages is 3: must be 64");
  EXPECT_FALSE(there(cache_.segment_path()));
}

TEST_F(CacheStoreTest, FullMemoryIsAnErrorAndLeavesNothing) {
  options_.pages = 1 << 24;
  options_.page_bytes = std::uint64_t{1} << 21;  // 32 TiB
  expect_problem("/dev/shm");
  EXPECT_FALSE(there(cache_.pool_path(0) + ".tmp") || there(cache_.segment_path()));
}

TEST_F(CacheStoreTest, OptionsThatDifferFromTheCacheAreRefused) {
  ASSERT_EQ(open_problem(), "");
  options_.pages = 256;
  expect_problem("--pages 256 was given, but the cache there has 128");
  expect_problem("--fresh");
  options_.pages = 128;
  EXPECT_EQ(open_problem(), "");
}

TEST_F(CacheStoreTest, FreshThrowsAwayAndTellsTheOldOnes) {
  CacheObjects old;
  ASSERT_FALSE(open(old));
  old.guard = {};  // its coordinator is gone, a worker still has it mapped
  options_.fresh = true;
  options_.pages = 256;
  options_.planes = 1;
  CacheObjects fresh;
  const MaybeFailure failure = open(fresh);
  ASSERT_FALSE(failure) << failure->text;
  EXPECT_EQ(fresh.segment->page_count(), 256U);
  EXPECT_FALSE(there(cache_.pool_path(1)));
  EXPECT_TRUE(old.segment->poisoned());
  EXPECT_EQ(old.segment->superblock().successor_id[0].load(), id_of(fresh));
  EXPECT_FALSE(fresh.segment->poisoned());
}

TEST_F(CacheStoreTest, FreshThatCannotBeMadeTakesNothingAway) {
  ASSERT_EQ(open_problem(), "");
  Options fresh = bare();
  fresh.fresh = true;
  std::swap(options_, fresh);
  expect_problem("--pages and --page-bytes are needed");
  std::swap(options_, fresh);
  CacheObjects objects;
  ASSERT_FALSE(open(objects));
  EXPECT_TRUE(objects.adopted);
}

// What was asked for is not to be had, but not for want of memory: giving the old cache up would not help.
TEST_F(CacheStoreTest, FreshOnMemoryThatIsNotThereTakesNothingAway) {
  ASSERT_EQ(open_problem(), "");
  const Options old = options_;
  options_.fresh = true;
  options_.memory.numa_node = 999;
  expect_problem("--numa-node 999: there is no such node");
  options_ = old;
  CacheObjects objects;
  ASSERT_FALSE(open(objects));
  EXPECT_TRUE(objects.adopted);
}

TEST_F(CacheStoreTest, PoisonedSegmentGetsASuccessorOfTheSameShape) {
  CacheObjects old;
  ASSERT_FALSE(open(old));
  old.guard = {};
  old.segment->poison(PoisonReason::kCorruptStructure);
  options_ = bare();
  CacheObjects successor;
  ASSERT_FALSE(open(successor));
  EXPECT_FALSE(successor.adopted);
  EXPECT_EQ(successor.segment->geometry(), old.segment->geometry());
  EXPECT_NE(id_of(successor), id_of(old));
  EXPECT_EQ(old.segment->superblock().successor_id[0].load(), id_of(successor));
  EXPECT_EQ(old.segment->superblock().poison_reason.load(),
            static_cast<std::uint32_t>(PoisonReason::kCorruptStructure))
      << "the first reason stands";
  EXPECT_NE(log_.find("event=successor"), std::string::npos);
}

// In a /dev/shm of its own, mounted with these options; the child's exit code.
int in_own_shm(const char* mount_options, const std::function<int()>& work) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", "/dev/shm", "tmpfs", 0, mount_options) != 0) {
      ::_exit(77);
    }
    ::_exit(work());
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

TEST_F(CacheStoreTest, SegmentLiesInHugePagesWhereTheMountGivesThem) {
  options_.memory.huge_pages = true;
  options_.pages = 32768;  // 5 MiB of segment
  const int code = in_own_shm("huge=advise,size=64m", [this] {
    for (const std::string says : {" segment_huge_bytes=", " segment_huge_bytes=as_made"}) {
      log_.clear();
      CacheObjects objects;
      if (const MaybeFailure failure = open(objects)) {
        std::fprintf(stderr, "%s\n", failure->text.c_str());
        return 1;
      }
      // Not all, if the host is short of them; but some.
      if (log_.find(says) == std::string::npos || log_.find(" segment_huge_bytes=0") != std::string::npos) {
        std::fprintf(stderr, "%s\n", log_.c_str());
        return 2;
      }
    }
    return 0;
  });
  if (code == 77) GTEST_SKIP() << "needs root, and a kernel with huge pages in tmpfs";
  EXPECT_EQ(code, 0);
}

TEST_F(CacheStoreTest, SuccessorThatDoesNotFitBesideItsPredecessorWaitsForItsMemory) {
  options_.page_bytes = 16384;  // 2 MiB a plane, 4 MiB in all
  const int code = in_own_shm("size=7m", [this] {
    {
      std::optional<CacheObjects> old(std::in_place);
      if (open(*old)) return 1;
      Result<Mapping> worker = Mapping::map(old->device->descriptor(0, Access::kReadWrite),
                                            old->device->plane_bytes(), Access::kReadWrite);
      if (!worker) return 2;
      old->segment->poison(PoisonReason::kCorruptStructure);
      old.reset();
      options_ = bare();
      // 2 of 4 MiB are gone, the worker holds the others: 5 MiB free were enough. A second worker takes those.
      const Result<FileDescriptor> other = create_object("kvtrie.other", 2U << 20, 0600);
      if (!other) return 3;
      const std::string problem = open_problem();
      if (problem.find("not enough free memory") == std::string::npos) return 4;
      if (!there(cache_.segment_path())) return 5;  // the shape is still known
    }
    (void)remove_object("kvtrie.other");
    CacheObjects successor;
    if (open(successor)) return 6;
    return successor.adopted || successor.segment->page_count() != 128 ? 7 : 0;
  });
  if (code == 77) GTEST_SKIP() << "needs the right to mount";
  EXPECT_EQ(code, 0);
}

TEST_F(CacheStoreTest, TwoBuildersOfOneCacheDoNotMeet) {
  const Result<FileDescriptor> other = claim_object(segment_object_name(cache_.name()));
  ASSERT_TRUE(other);
  CacheObjects objects;
  const MaybeFailure failure = open(objects);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->exit_code, kExitOtherRunning) << failure->text;
  EXPECT_TRUE(there(cache_.segment_path() + ".tmp")) << "what the other one builds is still there";
}

TEST_F(CacheStoreTest, AnotherBootMeansAnEmptyCache) {
  ASSERT_EQ(open_problem(), "");
  host_.boot_id[3] ^= 1;
  CacheObjects objects;
  ASSERT_FALSE(open(objects));
  EXPECT_FALSE(objects.adopted);
  EXPECT_NE(log_.find("reason=other_boot"), std::string::npos);
}

TEST_F(CacheStoreTest, AnotherPidNamespaceIsRefused) {
  ASSERT_EQ(open_problem(), "");
  host_.pid_namespace += 1;
  expect_problem("another PID namespace");
}

TEST_F(CacheStoreTest, CoordinatorOfAnotherDirectoryIsMet) {
  CacheObjects first;
  ASSERT_FALSE(open(first));
  options_.directory += "/elsewhere";
  CacheObjects second;
  const MaybeFailure failure = open(second);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->exit_code, kExitOtherRunning);
  options_.fresh = true;
  EXPECT_TRUE(open(second)) << "nor may --fresh take it away";
  EXPECT_FALSE(first.segment->poisoned());
}

TEST_F(CacheStoreTest, MissingOrCutPoolIsRefused) {
  ASSERT_EQ(open_problem(), "");
  ASSERT_EQ(::truncate(cache_.pool_path(1).c_str(), 64), 0);
  expect_problem("has 64 bytes, the segment says 8192");
  ASSERT_EQ(::unlink(cache_.pool_path(1).c_str()), 0);
  expect_problem("no such object");
  expect_problem("kvtrie destroy");
}

TEST_F(CacheStoreTest, CorruptSegmentIsRefused) {
  const auto spoil = [&](auto change, const std::string& part) {
    CacheObjects objects;
    options_.fresh = true;
    ASSERT_FALSE(open(objects));
    options_.fresh = false;
    change(*objects.segment);
    objects = {};
    expect_problem(part);
    expect_problem("kvtrie destroy");
  };
  spoil([](Segment& s) { s.superblock().magic = 1; }, "magic");
  spoil([](Segment& s) { s.superblock().page_count += 1; }, "checksum");
  spoil([](Segment& s) { s.worker({2}).slot_state.store(0x105); }, "worker slot 2");
  spoil([](Segment& s) { s.name_space({1}).state.store(7); }, "namespace 1");
  spoil([](Segment& s) { s.descriptor({5}).state.store(0xF); }, "page 5");
  spoil(
      [](Segment& s) {
        s.descriptor({6}).state.store(StateWord::make(PageState::kWriting, 0, {9}).raw);
      },
      "page 6");
}

TEST_F(CacheStoreTest, ObjectThatIsNoSegmentIsRefused) {
  const Result<FileDescriptor> fd = create_object(segment_object_name(cache_.name()), 100, 0600);
  ASSERT_TRUE(fd);
  ASSERT_TRUE(publish_object(segment_object_name(cache_.name())));
  expect_problem("smaller than a superblock");
  options_.fresh = true;
  EXPECT_EQ(open_problem(), "");
}

#ifdef KVTRIE_DEV
TEST_F(CacheStoreTest, DiesInBuild) {
  for (const bool replaces : {false, true}) {
    for (const std::string place : {"store.after_pools_made", "store.after_pools_published"}) {
      if (replaces) {
        options_.fresh = false;
        ASSERT_EQ(open_problem(), "");
      }
      options_.fresh = replaces;
      ASSERT_TRUE(test::dies_at(place, [&] { (void)open_problem(); })) << place;
      EXPECT_EQ(there(cache_.segment_path()), replaces) << place << ": the name changes last";
      options_.fresh = false;
      CacheObjects objects;
      const MaybeFailure failure = open(objects);
      ASSERT_FALSE(failure) << place << failure->text;
      EXPECT_EQ(objects.adopted, replaces && place == "store.after_pools_made")
          << "the old one stands until the new one is whole";
      EXPECT_FALSE(there(cache_.segment_path() + ".tmp") || there(cache_.pool_path(0) + ".tmp"))
          << place;
      objects = {};
      (void)remove_object(segment_object_name(cache_.name()));
      remove_planes(cache_.name());
    }
  }
}
#endif

}  // namespace
}  // namespace kvtrie
