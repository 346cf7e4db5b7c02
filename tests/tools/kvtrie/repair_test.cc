// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie verify --repair: what it shows, refuses and does, with processes, objects and a real kvtried. What is kept
// of which damage: tests/shm/repair_test.cc.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <kvtrie.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>

#include "shm/copy_queue.h"
#include "shm/page_checksum.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "shm/runtime_directory.h"
#include "shm/verify.h"
#include "shm/worker_table.h"
#include "tests/support/attached_worker.h"
#include "tests/support/death_in_child.h"
#include "tests/support/kvtried_process.h"
#include "tests/tools/kvtrie/json_schema.h"
#include "tests/tools/kvtrie/small_cache.h"

namespace kvtrie::test {
namespace {

using inspect::Exit;
using inspect::Json;
using inspect::Outcome;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Outcome repair(const std::string& cache, const std::string& directory, std::vector<std::string> more = {}) {
  std::vector<std::string> words = {"verify", "--repair", "--cache", cache, "--dir", directory};
  words.insert(words.end(), more.begin(), more.end());
  return run_kvtrie(words);
}

bool clean(const std::string& cache) {
  const Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  return segment && verify(*segment, {.at_rest = true, .settle_ms = 0}).clean();
}

std::uint64_t live_pages(const std::string& cache) {
  const Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  return segment ? PageTable(*segment).stats().of(PageState::kLive) : 0;
}

// Four pages in a path of one namespace, two in another's; the third of the four is damaged.
class RepairCommandTest : public ::testing::Test {
 protected:
  explicit RepairCommandTest(const SmallCacheOptions& options = {}) : cache_(options) {}
  void SetUp() override {
    const WorkerId gone = cache_.attach("gone", 0x7FFFFFF0);
    PathEnd end = cache_.open_namespace("m");
    pages_ = cache_.publish(gone, end, 4, 100);
    PathEnd other = cache_.open_namespace("o");
    cache_.publish(gone, other, 2, 500);
    cache_.take(gone, 3);
  }
  void damage() const { cache_.segment().descriptor(pages_[2]).prefix_hash.fetch_xor(1); }
  Outcome run(std::vector<std::string> more = {}) const { return repair(cache_.name(), directory_.path(), more); }
  // Each form of the command, with everything as it was afterwards.
  void expect_refused(const std::string& why, const std::vector<std::vector<std::string>>& forms = {{}, {"--yes"}}) {
    const std::string before = contents(cache_.segment_path());
    for (const std::vector<std::string>& form : forms) {
      const Outcome outcome = run(form);
      EXPECT_EQ(outcome.code, Exit::kRefused) << outcome.out;
      EXPECT_THAT(outcome.err, HasSubstr(why));
    }
    EXPECT_TRUE(contents(cache_.segment_path()) == before);
  }

  SmallCache cache_;
  TemporaryDirectory directory_;
  std::vector<PageIndex> pages_;
};

TEST_F(RepairCommandTest, ShowsThePlanAndChangesNoByte) {
  damage();
  const std::string before = contents(cache_.segment_path());
  const Outcome shown = run();
  EXPECT_EQ(shown.code, Exit::kFindings);
  EXPECT_THAT(shown.out, AllOf(HasSubstr("C3.hash page"), HasSubstr("would keep        4 pages, 2 namespaces, 0 pins"),
                               HasSubstr("would throw away  2 pages, 0 namespaces, 0 pins"),
                               HasSubstr("- 1 page: its prefix hash is not that of its parent and tokens (page 2)"),
                               HasSubstr("- 1 page: its parent is not kept (page 3)"),
                               HasSubstr("3 pages of dead processes"), HasSubstr("page bytes        not looked at"),
                               HasSubstr("--repair --yes --cache " + cache_.name())));
  const Json json = Json::parse(run({"--json"}).out);
  EXPECT_THAT(schema_problems(load_schema("verify-repair"), json), IsEmpty());
  EXPECT_EQ(json["pages_kept"], 4);
  EXPECT_EQ(json["lost"][1]["examples"][0], 2);
  EXPECT_EQ(json["namespaces"][0]["pages_lost"], 2);
  EXPECT_TRUE(contents(cache_.segment_path()) == before);
  EXPECT_FALSE(std::filesystem::exists(cache_.segment_path() + ".tmp"));
}

TEST_F(RepairCommandTest, WithYesANewSegmentTakesItsName) {
  damage();
  ASSERT_EQ(::chmod(cache_.segment_path().c_str(), 0640), 0);
  const Outcome done = run({"--yes"});
  EXPECT_EQ(done.code, Exit::kOk) << done.err;
  EXPECT_THAT(done.out, AllOf(HasSubstr("kept         4 pages"), HasSubstr("repaired: start kvtried")));
  EXPECT_TRUE(clean(cache_.name()));
  EXPECT_EQ(live_pages(cache_.name()), 4U);
  struct stat info {};
  ASSERT_EQ(::stat(cache_.segment_path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640U);
  const Outcome again = run({"--yes", "--json"});
  EXPECT_EQ(again.code, Exit::kOk);
  EXPECT_THAT(schema_problems(load_schema("verify-repair"), Json::parse(again.out)), IsEmpty());
  EXPECT_FALSE(Json::parse(again.out)["needed"].get<bool>());
}

TEST_F(RepairCommandTest, OfAnotherUserItStaysHis) {
  if (::geteuid() != 0) GTEST_SKIP() << "not root";
  damage();
  ASSERT_EQ(::chown(cache_.segment_path().c_str(), 4711, 4712), 0);
  EXPECT_EQ(run({"--yes"}).code, Exit::kOk);
  struct stat info {};
  ASSERT_EQ(::stat(cache_.segment_path().c_str(), &info), 0);
  EXPECT_EQ(info.st_uid, 4711U);
  EXPECT_EQ(info.st_gid, 4712U);
}

TEST_F(RepairCommandTest, ASoundSegmentIsLeftAlone) {
  const std::string before = contents(cache_.segment_path());
  const Outcome outcome = run({"--yes"});
  EXPECT_EQ(outcome.code, Exit::kOk);
  EXPECT_THAT(outcome.out, HasSubstr("there is nothing to repair"));
  EXPECT_TRUE(contents(cache_.segment_path()) == before);
}

TEST_F(RepairCommandTest, OneThatWasGivenUpLosesNothing) {
  cache_.segment().poison(PoisonReason::kLockNotRecoverable);
  EXPECT_EQ(run({"--yes"}).code, Exit::kOk);
  EXPECT_TRUE(clean(cache_.name()));
  EXPECT_EQ(live_pages(cache_.name()), 6U);
}

TEST_F(RepairCommandTest, IsAskedForByName) {
  damage();
  EXPECT_EQ(run_kvtrie({"verify", "--repair", "--yes"}).code, Exit::kUsage);
  EXPECT_EQ(run_kvtrie({"verify", "--yes", "--cache", cache_.name()}).code, Exit::kUsage);
  EXPECT_EQ(repair("no-such-cache-" + cache_.name(), directory_.path()).code, Exit::kNotFound);
}

TEST_F(RepairCommandTest, IsRefusedWhileACoordinatorRuns) {
  damage();
  std::filesystem::create_directory(cache_directory_path(directory_.path(), cache_.name()));
  const std::string lock = lock_path(directory_.path(), cache_.name());
  std::ofstream(lock) << "4711\n";
  {
    const FileDescriptor held(::open(lock.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(::flock(held.get(), LOCK_EX | LOCK_NB), 0);
    expect_refused("stop it first (kill 4711)");
  }
  const FileDescriptor held(::open(cache_.segment_path().c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::flock(held.get(), LOCK_EX | LOCK_NB), 0);
  expect_refused("in another --dir");
}

TEST_F(RepairCommandTest, IsRefusedWhileAWorkerLives) {
  damage();
  cache_.attach("alive");
  expect_refused("1 process still works with it (pid " + std::to_string(::getpid()), {{"--yes"}});
  EXPECT_THAT(run().out, HasSubstr("(worker slot 2, alive)"));
}

TEST_F(RepairCommandTest, WhoDetachedIsInNobodysWay) {
  damage();
  const WorkerId me = cache_.attach("detached");
  AtomicU64& word = cache_.segment().worker(me).slot_state;
  word.store(SlotWord{word.load()}.with(SlotState::kLeaving).raw);
  EXPECT_EQ(run({"--yes"}).code, Exit::kOk);
}

TEST_F(RepairCommandTest, IsRefusedWhileAProcessWithoutASlotHasItMapped) {
  damage();
  for (const std::string& path : {cache_.segment_path(), "/dev/shm/" + pool_object_name(cache_.name(), 1)}) {
    Child other([&](const Line& line) {
      const FileDescriptor fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
      if (::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0) == MAP_FAILED) return 1;
      line.say();
      return int{line.hear()};
    });
    ASSERT_EQ(other.line().hear(), '+');
    expect_refused("pid " + std::to_string(other.pid()), {{"--yes"}});
    if (path != cache_.segment_path()) continue;
    const Json json = Json::parse(run({"--json"}).out);
    EXPECT_THAT(schema_problems(load_schema("verify-repair"), json), IsEmpty());
    EXPECT_EQ(json["living"][0]["pid"], other.pid());
    EXPECT_EQ(json["living"][0]["slot"], 0);
  }
}

TEST_F(RepairCommandTest, IsRefusedWhereThePagesAreNotThere) {
  damage();
  cache_.segment().superblock().successor_id[1].store(7);
  expect_refused("given up for a successor");
  cache_.segment().superblock().successor_id[1].store(0);
  const std::string pool = "/dev/shm/" + pool_object_name(cache_.name(), 1);
  ASSERT_EQ(::truncate(pool.c_str(), 64), 0);
  expect_refused("has 64 bytes, the segment says");
  ASSERT_EQ(::unlink(pool.c_str()), 0);
  expect_refused("no such object");
  cache_.segment().superblock().magic = 0;
  const Outcome unreadable = run({"--yes"});
  EXPECT_EQ(unreadable.code, Exit::kCorrupt);
  EXPECT_THAT(unreadable.err, HasSubstr("nothing of it can be saved: kvtrie destroy"));
}

TEST_F(RepairCommandTest, IsRefusedWhileAnotherMakesTheSegment) {
  damage();
  const Result<FileDescriptor> claimed = claim_object(segment_object_name(cache_.name()));
  ASSERT_TRUE(claimed);
  expect_refused("another process is making it", {{"--yes"}});
  EXPECT_TRUE(std::filesystem::exists(cache_.segment_path() + ".tmp")) << "it is the other's";
  discard_object(segment_object_name(cache_.name()));
}

class RepairElsewhereTest : public RepairCommandTest, public ::testing::WithParamInterface<int> {
 protected:
  RepairElsewhereTest()
      : RepairCommandTest({.this_boot = GetParam() != 0,
                           .this_pid_namespace = GetParam() != 1,
                           .device = GetParam() == 2 ? DeviceKind::kCuda : DeviceKind::kHost}) {}
};

TEST_P(RepairElsewhereTest, IsRefused) {
  damage();
  const std::string why[] = {"another boot", "another PID namespace", "device memory"};
  expect_refused(why[GetParam()]);
}
INSTANTIATE_TEST_SUITE_P(Each, RepairElsewhereTest, ::testing::Range(0, 3));

class RepairChecksumTest : public RepairCommandTest {
 protected:
  RepairChecksumTest() : RepairCommandTest({.page_checksums = true}) {}
};

TEST_F(RepairChecksumTest, PagesWhoseBytesChangedGo) {
  std::vector<Mapping> planes;
  for (std::uint32_t plane = 0; plane < 2; ++plane) {
    const Result<FileDescriptor> fd = open_object(pool_object_name(cache_.name(), plane), Access::kReadWrite);
    planes.push_back(std::move(*Mapping::map(fd->get(), 256 * 64, Access::kReadWrite)));
  }
  const auto plane_at = [&](std::uint32_t plane) { return planes[plane].data(); };
  for (const PageIndex page : pages_) {
    std::memset(planes[1].data() + page.value * 64, static_cast<int>(page.value + 1), 64);
    cache_.segment().descriptor(page).checksum.store(page_checksum(2, 64, page.value, plane_at));
  }
  planes[1].data()[pages_[3].value * 64 + 63] ^= std::byte{1};
  cache_.segment().poison(PoisonReason::kCorruptStructure);
  planes.clear();
  const Json json = Json::parse(run({"--yes", "--json"}).out);
  EXPECT_EQ(json["checksums_compared"], 4);
  EXPECT_EQ(json["pages_lost"], 1);
  EXPECT_EQ(json["lost"][0]["reason"], "checksum");
  EXPECT_TRUE(clean(cache_.name()));
  const Result<Segment> made = open_segment(cache_.name(), Access::kReadOnly);
  EXPECT_TRUE(made->page_checksums());
  EXPECT_EQ(made->descriptor(pages_[0]).checksum.load(), cache_.segment().descriptor(pages_[0]).checksum.load());
}

// --- deaths

// As RepairCommandTest's, but made by a process that is gone: nobody has it mapped.
class RepairDeathTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Child maker([this](const Line& line) {
      auto* const cache = new SmallCache;  // never destroyed: its objects stay
      const WorkerId gone = cache->attach("gone", 0x7FFFFFF0);
      PathEnd end = cache->open_namespace("m");
      const std::vector<PageIndex> pages = cache->publish(gone, end, 4, 100);
      cache->segment().descriptor(pages[2]).prefix_hash.fetch_xor(1);
      for (const char c : cache->name()) line.say(c);
      line.say('\n');
      return 0;
    });
    for (char c = 0; (c = maker.line().hear()) > ' ';) name_ += c;
    ASSERT_EQ(maker.wait(), 0);
    path_ = "/dev/shm/" + segment_object_name(name_);
    damaged_ = contents(path_);
  }
  void TearDown() override {
    remove_object(segment_object_name(name_));
    for (std::uint32_t plane = 0; plane < 2; ++plane) remove_object(pool_object_name(name_, plane));
  }
  Outcome run() const { return repair(name_, directory_.path(), {"--yes"}); }
  // The old one or the new one; the next run has the new one and nothing else. Then it is damaged again as before.
  bool expect_old_or_new(const std::string& where) {
    const bool old = contents(path_) == damaged_;
    EXPECT_TRUE(old || (clean(name_) && live_pages(name_) == 2)) << where;
    const Outcome next = run();
    EXPECT_EQ(next.code, Exit::kOk) << where << ": " << next.err;
    EXPECT_TRUE(clean(name_)) << where;
    EXPECT_EQ(live_pages(name_), 2U) << where;
    EXPECT_FALSE(std::filesystem::exists(path_ + ".tmp")) << where;
    std::ofstream(path_, std::ios::binary) << damaged_;
    return old;
  }

  TemporaryDirectory directory_;
  std::string name_;
  std::string path_;
  std::string damaged_;
};

TEST_F(RepairDeathTest, AtASystemCallLeavesTheOldOrTheNewSegment) {
  const auto work = [this] { (void)run(); };
  const unsigned calls = run_by_calls(work, [](unsigned) { return true; });
  ASSERT_TRUE(clean(name_));
  std::ofstream(path_, std::ios::binary) << damaged_;
  EXPECT_GT(calls, 50U);
  unsigned old = 0;
  unsigned fresh = 0;
  // What it reads of /proc is most of its calls, and differs from run to run: all of those at the end, some before, and
  // on until runs come to their end.
  constexpr unsigned kLast = 80;
  constexpr unsigned kFresh = 3;
  for (unsigned place = 1; fresh < kFresh && place <= 8 * calls;
       place += place + kLast < calls || place > calls ? 1 + calls / 60 : 1) {
    (void)run_by_calls(work, [&](unsigned n) { return n < place; });
    ++(expect_old_or_new("died at call " + std::to_string(place)) ? old : fresh);
    if (HasFailure()) return;
  }
  EXPECT_GT(old, 5U);
  EXPECT_EQ(fresh, kFresh);
}

#ifdef KVTRIE_DEV
TEST_F(RepairDeathTest, AtACrashPointLeavesTheOldOrTheNewSegment) {
  unsigned points = 0;
  unsigned fresh = 0;
  while (dies_at_passage(points + 1, [this] { (void)run(); })) {
    ++points;
    if (!expect_old_or_new("died at point " + std::to_string(points))) ++fresh;
    if (HasFailure()) return;
  }
  EXPECT_EQ(points, 7U) << "all of command_repair.cc and repair.cc";
  EXPECT_EQ(fresh, 1U) << "repair.after_publish";
}
#endif

// --- with kvtried and its workers

class RepairedCacheTest : public ::testing::Test {
 protected:
  static constexpr std::uint32_t kPageBytes = 1024;
  static std::vector<std::uint8_t> bytes_of(const std::vector<std::uint32_t>& tokens) {
    std::vector<std::uint8_t> bytes;
    for (std::size_t page = 0; page < tokens.size() / 16; ++page) {
      for (std::uint32_t i = 0; i < kPageBytes; ++i)
        bytes.push_back(static_cast<std::uint8_t>(tokens[page * 16] * 7 + i * 13 + page));
    }
    return bytes;
  }
  std::vector<std::string> flags(std::vector<std::string> more) const {
    const std::vector<std::string> all = {"--pages", "256", "--page-bytes", "1K", "--workers", "4", "--metrics", "off"};
    more.insert(more.begin(), all.begin(), all.end());
    return more;
  }
  void fill(const std::vector<std::vector<std::uint32_t>>& prompts) const {
    AttachedWorker worker({cache_.directory(), cache_.name()});
    ASSERT_TRUE(worker.attached());
    for (const std::vector<std::uint32_t>& tokens : prompts) {
      kvtrie_sequence sequence{};
      const std::uint64_t hit = worker.begin(worker.open("m"), tokens, sequence);
      const std::vector<std::uint8_t> bytes = bytes_of(tokens);
      ASSERT_EQ(kvtrie_allocate(sequence, tokens.size(), nullptr), KVTRIE_OK);
      ASSERT_EQ(kvtrie_copy_in(sequence, hit, tokens.size() - hit, 0, nullptr, bytes.data() + hit / 16 * kPageBytes),
                KVTRIE_OK);
      ASSERT_EQ(kvtrie_publish(sequence, tokens.size(), nullptr), KVTRIE_OK);
      (void)kvtrie_release(sequence);
    }
  }
  // How many tokens are cached; their bytes are looked at.
  std::uint64_t cached(const std::vector<std::uint32_t>& tokens) const {
    AttachedWorker worker({cache_.directory(), cache_.name()});
    kvtrie_sequence sequence{};
    const std::uint64_t hit = worker.begin(worker.open("m"), tokens, sequence);
    std::vector<std::uint8_t> bytes(hit / 16 * kPageBytes);
    if (hit != 0) {
      EXPECT_EQ(kvtrie_copy_out(sequence, 0, hit, 0, nullptr, bytes.data()), KVTRIE_OK);
    }
    std::vector<std::uint8_t> expected = bytes_of(tokens);
    expected.resize(bytes.size());
    EXPECT_TRUE(bytes == expected);
    (void)kvtrie_release(sequence);
    return hit;
  }

  TemporaryCache cache_{"repair"};
};

TEST_F(RepairedCacheTest, KvtriedRefusesRepairsAdoptsAndServesWhatWasKept) {
  const std::vector<std::uint32_t> a = AttachedWorker::prompt(0, 6);
  const std::vector<std::uint32_t> b = AttachedWorker::prompt(5000, 3);
  for (const std::vector<std::string>& more : {std::vector<std::string>{}, {"--page-checksums"}}) {
    {
      KvtriedProcess daemon(cache_, flags(more));
      ASSERT_TRUE(daemon.ready()) << daemon.err();
      fill({a, b});
      EXPECT_THAT(repair(cache_.name(), cache_.directory()).err, HasSubstr("kill " + std::to_string(daemon.pid())));
      EXPECT_EQ(daemon.stop(), 0);
    }
    {
      const Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
      ASSERT_TRUE(segment);
      for (std::uint32_t i = 0; i < segment->page_count(); ++i) {
        const Descriptor& d = segment->descriptor({i});
        const bool of_a = (segment->token_words({i})[0].load() & 0xFFFF'FFFF) < 5000;
        if (!StateWord{d.state.load()}.readable() || !of_a || depth_in(d.depth_class.load()) != 5) continue;
        if (more.empty()) segment->token_words({i})[3].fetch_xor(1);
        else segment->descriptor({i}).state.fetch_or(0xF);
      }
    }
    const std::string pool = contents(cache_.pool_path(0));
    {
      KvtriedProcess refusing(cache_, flags({}));
      EXPECT_EQ(refusing.wait(), 1);
      EXPECT_THAT(refusing.err(), AllOf(HasSubstr("is corrupt"), HasSubstr("kvtrie verify --repair"),
                                        HasSubstr("kvtrie destroy")));
    }
    const Outcome shown = repair(cache_.name(), cache_.directory());
    EXPECT_EQ(shown.code, Exit::kFindings) << shown.err;
    EXPECT_THAT(shown.out, HasSubstr(more.empty() ? "not looked at" : "compared with the checksums of 7 pages"));
    const Outcome done = repair(cache_.name(), cache_.directory(), {"--yes"});
    EXPECT_EQ(done.code, Exit::kOk) << done.err;
    EXPECT_TRUE(contents(cache_.pool_path(0)) == pool);
    KvtriedProcess next(cache_, flags({}));
    ASSERT_TRUE(next.ready()) << next.err();
    EXPECT_EQ(next.value("adopted"), "1");
    EXPECT_EQ(cached(a), 4U * 16);
    EXPECT_EQ(cached(b), 3U * 16);
    fill({a});  // what was lost is computed again
    EXPECT_EQ(cached(a), 6U * 16);
    EXPECT_EQ(next.stop(), 0);
    EXPECT_TRUE(clean(cache_.name()));
    EXPECT_EQ(run_kvtrie({"destroy", "--cache", cache_.name(), "--dir", cache_.directory()}).code, Exit::kOk);
    std::filesystem::create_directories(cache_.directory());
  }
}

// Copies of the dead that nobody wrote yet must not land in pages that are somebody's by then.
TEST_F(RepairedCacheTest, CopiesThatWereQueuedAreDropped) {
  {
    KvtriedProcess daemon(cache_, flags({"--device", "queued"}));
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    EXPECT_EQ(daemon.stop(), 0);
  }
  const auto open_queue = [&](const Segment& segment) {
    const Result<FileDescriptor> fd = open_object(queue_object_name(cache_.name()), Access::kReadWrite);
    Result<Mapping> mapping =
        Mapping::map(fd->get(), CopyQueue::size_bytes(segment.geometry()), Access::kReadWrite);
    return std::move(*CopyQueue::open(std::move(*mapping), segment.geometry(), segment.superblock().cache_id));
  };
  {
    const Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
    ASSERT_TRUE(segment);
    const std::vector<std::byte> bytes(kPageBytes, std::byte{7});
    ASSERT_TRUE(open_queue(*segment).submit(WorkerId{2}, {PageIndex{9}, 0, 0}, bytes));
    segment->poison(PoisonReason::kCorruptStructure);
  }
  const Outcome done = repair(cache_.name(), cache_.directory(), {"--yes"});
  ASSERT_EQ(done.code, Exit::kOk) << done.err;
  {
    const Result<Segment> segment = open_segment(cache_.name(), Access::kReadOnly);
    EXPECT_TRUE(open_queue(*segment).idle(WorkerId{2}));
  }
  KvtriedProcess next(cache_, flags({"--device", "queued"}));
  ASSERT_TRUE(next.ready()) << next.err();
  EXPECT_EQ(next.value("adopted"), "1");
  EXPECT_EQ(next.stop(), 0);
  EXPECT_EQ(contents(cache_.pool_path(0)), std::string(256 * kPageBytes, '\0'));
}

}  // namespace
}  // namespace kvtrie::test
