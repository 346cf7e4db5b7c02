// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/save_cache.h"

#include <sys/file.h>
#include <sys/stat.h>

#include <functional>
#include <random>

#include "tests/save/memory_cache.h"
#include "tests/save/temporary_file.h"
#include "tests/support/dies_at.h"

namespace kvtrie {
namespace {

using test::MemoryCache;

class SaveCacheTest : public testing::Test {
 protected:
  Result<SaveReport> save(const MemoryCache& cache) {
    return save_cache(cache.segment(), cache.planes(), path_);
  }

  test::TemporaryFolder folder_;
  const std::string path_ = folder_.file("cache.save");
};

TEST_F(SaveCacheTest, LeavesNothingBesideTheFileWhichOnlyItsOwnerMayRead) {
  MemoryCache cache;
  cache.publish(cache.open_namespace("a"), {1, 2});
  test::write_file(path_ + ".tmp", "left by a save that died, readable by everybody");
  ASSERT_EQ(::chmod((path_ + ".tmp").c_str(), 0644), 0);
  const Result<SaveReport> report = save(cache);
  ASSERT_TRUE(report) << report.error().what();
  EXPECT_EQ(report->pages, 2U);
  EXPECT_EQ(report->namespaces, 1U);
  struct stat about {};
  ASSERT_EQ(::stat(path_.c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0600U);
  EXPECT_EQ(static_cast<std::uint64_t>(about.st_size), report->file_bytes);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));
}

TEST_F(SaveCacheTest, LeavesOutPagesOfAFlushedRoot) {
  MemoryCache cache;
  const NamespaceId a = cache.open_namespace("a");
  const NamespaceId b = cache.open_namespace("b");
  cache.publish(a, {1, 2, 3});
  cache.publish(b, {1});
  cache.segment().name_space(a).root_generation.fetch_add(1);
  const Result<SaveReport> report = save(cache);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->flushed, 3U);
  EXPECT_EQ(report->pages, 1U);
  EXPECT_EQ(report->namespaces, 1U);
}

TEST_F(SaveCacheTest, SavesCondemnedPagesAndNoOthersThatAreNotLive) {
  MemoryCache cache;
  const NamespaceId a = cache.open_namespace("a");
  const PageIndex condemned = cache.publish(a, {1, 2});
  const PageIndex retiring = cache.publish(a, {1, 3});
  const auto move = [&](PageIndex page, PageState to) {
    AtomicU64& state = cache.segment().descriptor(page).state;
    state.store(StateWord{state.load()}.with(to).raw);
  };
  move(condemned, PageState::kCondemned);
  move(retiring, PageState::kRetiring);
  const Result<SaveReport> report = save(cache);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->pages, 2U);
  MemoryCache loaded;
  (void)test::load_into(loaded, path_);
  EXPECT_EQ(loaded.contents().size(), 2U);
}

TEST_F(SaveCacheTest, RefusesAPoisonedSegmentAndAFileThatAnotherSaveWrites) {
  MemoryCache cache;
  cache.publish(cache.open_namespace("a"), {1});
  const FileDescriptor other(::open((path_ + ".tmp").c_str(), O_RDWR | O_CREAT, 0600));
  ASSERT_EQ(::flock(other.get(), LOCK_EX), 0);
  EXPECT_EQ(save(cache).error().code(), Code::kBusy);
  EXPECT_TRUE(std::filesystem::exists(path_ + ".tmp")) << "it is the other one's";
  cache.segment().poison(PoisonReason::kOperator);
  EXPECT_EQ(save(cache).error().code(), Code::kPoisoned);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SaveCacheTest, SaysWhyAFileCannotBeWritten) {
  MemoryCache cache;
  cache.publish(cache.open_namespace("a"), {1});
  const Result<SaveReport> nowhere =
      save_cache(cache.segment(), cache.planes(), folder_.file("no/such/folder"));
  EXPECT_EQ(nowhere.error().code(), Code::kSystem);
  EXPECT_EQ(nowhere.error().system_errno(), ENOENT);
  const Result<SaveReport> full = save_cache(cache.segment(), cache.planes(), folder_.file(""));
  EXPECT_FALSE(full);
}

TEST_F(SaveCacheTest, AShortPoolIsAnErrorAndLeavesTheOldFile) {
  MemoryCache cache;
  cache.publish(cache.open_namespace("a"), {1});
  ASSERT_TRUE(save(cache));
  const std::string before = test::read_file(path_);
  const FileDescriptor empty(::open(folder_.file("empty").c_str(), O_RDWR | O_CREAT, 0600));
  const PlaneBytes planes({empty.get(), empty.get()}, cache.segment().geometry().page_bytes);
  EXPECT_EQ(save_cache(cache.segment(), planes, path_).error().code(), Code::kCorrupt);
  EXPECT_EQ(test::read_file(path_), before);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));
}

// Any bytes in the descriptors: no crash, no endless loop, and
// a file that loads into a sound cache.
TEST_F(SaveCacheTest, SurvivesDamagedSegments) {
  std::mt19937_64 random(20260101);
  for (int round = 0; round < 60; ++round) {
    MemoryCache cache;
    const NamespaceId a = cache.open_namespace("a");
    for (std::uint32_t i = 0; i < 20; ++i)
      cache.publish(a, {i % 3, i % 5, i});
    for (int i = 0; i < 200; ++i) {
      auto* words = reinterpret_cast<AtomicU64*>(&cache.segment().descriptor({0}));
      const std::uint64_t count =
          cache.segment().page_count() * cache.segment().layout().descriptor_stride / 8;
      AtomicU64& word = words[random() % count];
      word.store(random() % 2 == 0 ? words[random() % count].load()
                                   : word.load() ^ std::uint64_t{1} << random() % 64);
    }
    const Result<SaveReport> report = save(cache);
    ASSERT_TRUE(report) << report.error().what();
    MemoryCache loaded;
    (void)test::load_into(loaded, path_);
    EXPECT_EQ(loaded.findings(), "") << "round " << round;
  }
}

#ifdef KVTRIE_DEV

// Does `work` at the n-th passage of a crash point.
struct Interference {
  std::string place;
  int at;
  std::function<void()> work;
  int passed = 0;
};
Interference* interference = nullptr;

class Interfere {
 public:
  explicit Interfere(Interference& with) {
    interference = &with;
    crash_hook.store([](const char* here) {
      if (interference->place == here && ++interference->passed == interference->at) {
        interference->work();
      }
    });
  }
  ~Interfere() { crash_hook.store(nullptr); }
};

// The page is evicted, taken and written by somebody else between its bytes and the second look.
TEST_F(SaveCacheTest, APageThatIsRecycledWhileItIsCopiedIsLeftOutWithAllBelow) {
  for (const std::uint64_t page_bytes : {24, 1 << 21}) {  // also one that does not fit the buffer
    MemoryCache cache({.page_bytes = page_bytes});
    const NamespaceId a = cache.open_namespace("a");
    const PageIndex lost = cache.publish(a, {1, 2});
    cache.publish(a, {1, 2, 3});
    cache.publish(a, {1, 4});
    Interference recycle{"save.before_second_look", 3, [&] {
                           AtomicU64& state = cache.segment().descriptor(lost).state;
                           state.store(StateWord{state.load()}.recycled().raw);
                         }};
    const Interfere hook(recycle);
    const Result<SaveReport> report = save(cache);
    ASSERT_TRUE(report);
    EXPECT_EQ(report->pages, 2U);
    EXPECT_EQ(report->changed, 1U);
    EXPECT_EQ(report->below_changed, 1U);
    MemoryCache loaded({.page_bytes = page_bytes});
    const auto loading = test::load_into(loaded, path_);
    ASSERT_TRUE(loading);
    EXPECT_TRUE(loading->whole);
    EXPECT_EQ(loaded.contents().size(), 2U);
  }
}

TEST_F(SaveCacheTest, AFlushMeanwhileEndsTheSave) {
  MemoryCache cache;
  const NamespaceId a = cache.open_namespace("a");
  cache.publish(a, {1, 2, 3});
  Interference flush{"save.after_page", 2,
                     [&] { cache.segment().name_space(a).root_generation.fetch_add(1); }};
  const Interfere hook(flush);
  EXPECT_EQ(save(cache).error().code(), Code::kRefused);
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp"));
}

TEST_F(SaveCacheTest, DiesWhileItSaves) {
  MemoryCache cache;
  const NamespaceId a = cache.open_namespace("a");
  cache.publish(a, {1});
  ASSERT_TRUE(save(cache));
  const std::string before = test::read_file(path_);
  cache.publish(a, {1, 2});
  for (const char* place : {"save.after_page", "save.before_rename"}) {
    test::Child child([&](const test::Line&) {
      test::detail::fatal_place = place;
      crash_hook.store([](const char* here) {
        if (test::detail::fatal_place == here) ::raise(SIGKILL);
      });
      return save_cache(cache.map_again(), cache.planes(), path_) ? 0 : 1;
    });
    EXPECT_EQ(child.wait(), -SIGKILL) << place;
    EXPECT_EQ(test::read_file(path_), before) << place;
    EXPECT_TRUE(std::filesystem::exists(path_ + ".tmp")) << place;
  }
  ASSERT_TRUE(save(cache)) << "what the dead left is no hindrance";
  MemoryCache loaded;
  EXPECT_EQ(test::load_into(loaded, path_)->pages, 2U);
}

#endif

}  // namespace
}  // namespace kvtrie
