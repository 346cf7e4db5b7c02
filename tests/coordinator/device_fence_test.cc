// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A dead worker's page is nobody's while something can still write into it: a copy that it asked its device for, or a
// plane writer of its own. Each story is told twice: as it is, and with the protection taken out (shm/mutant.h), which
// must be seen.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "shm/copy_queue.h"
#include "shm/free_pages.h"
#include "shm/mutant.h"
#include "tests/coordinator/running_coordinator.h"
#include "worker_plugin/attachment.h"

namespace kvtrie {
namespace {

using test::Child;
using test::eventually;
using test::Line;
using test::RunningCoordinator;

constexpr std::uint32_t kPages = 64;
constexpr std::uint32_t kPageBytes = 64;
constexpr std::uint32_t kDelayMs = 800;

// One process's attachment.
std::unique_ptr<AttachedCache> attach_as(const test::TemporaryCache& cache, WorkerRole role = WorkerRole::kWorker,
                                         std::uint64_t plane_mask = 0, WorkerTag scheduler = {}) {
  std::string message;
  const CoordinatorAddress address{cache.directory(), cache.name()};
  Result<Attachment> grant = attach({address, "fence", role, plane_mask, scheduler}, message);
  if (!grant) return nullptr;
  Result<std::unique_ptr<AttachedCache>> made = AttachedCache::make(std::move(*grant), address, message);
  return made ? std::move(*made) : nullptr;
}

std::vector<PageIndex> take(const AttachedCache& cache, std::uint32_t count) {
  std::uint32_t cursor = 0;
  std::vector<PageIndex> pages;
  (void)FreePages(cache.segment()).take(cache.grant().slot, count, {kPages}, cursor, pages);
  return pages;
}

SlotState state_of(const Segment& segment, WorkerId slot) { return WorkerTable(segment).word(slot).state(); }

std::string page_text(const AttachedCache& cache, PageIndex page) {
  const PoolView view = cache.pool_view();
  return {reinterpret_cast<const char*>(view.plane[0] + page.value * view.page_bytes), kPageBytes};
}

// What went wrong in a story; told in a process of its own, in which alone the protection is out.
std::string told(Mutant mutant, const std::function<std::string()>& story) {
  int ends[2];
  if (::pipe(ends) != 0) return "pipe";
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(60);
    active_mutant.store(mutant);
    const std::string wrong = story();
    (void)!::write(ends[1], wrong.data(), wrong.size());
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  ::close(ends[1]);
  std::string text;
  char part[512];
  for (ssize_t got; (got = ::read(ends[0], part, sizeof part)) > 0;)
    text.append(part, static_cast<std::size_t>(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  return text;
}

// A worker asks for a copy into its page and is killed before the device performs it. Who gets the page next must never
// see it change.
std::string late_copy() {
  test::TemporaryCache cache("late-copy");
  // Forked before the coordinator's threads start.
  Child child([&](Line line) {
    if (line.hear() != '+') return 1;
    const std::unique_ptr<AttachedCache> mine = attach_as(cache);
    if (mine == nullptr || take(*mine, kPages).size() != kPages) return 2;
    const std::vector<std::byte> bytes(kPageBytes, std::byte{'A'});
    if (!mine->queue_copy({{7}, 0, 0}, bytes)) return 3;
    line.say();
    return line.hear() == '+' ? 0 : 4;
  });
  RunningCoordinator coordinator(cache, [](Options& options) {
    options.pages = kPages;
    options.page_bytes = kPageBytes;
    options.planes = 1;
    options.device = DeviceChoice{DeviceKind::kQueued, {}};
    options.queue_delay_ms = kDelayMs;
  });
  if (!coordinator.problem().empty()) return "the story's coordinator: " + coordinator.problem();
  // Attached before the copy is asked for: the rest is quicker than the device.
  const std::unique_ptr<AttachedCache> next = attach_as(cache);
  if (next == nullptr) return "the story's second worker did not attach";
  child.line().say();
  if (child.line().hear() != '+') return "the story's worker did not come so far";
  child.kill();
  std::size_t got = 0;
  if (!eventually([&] { return (got += take(*next, kPages).size()) == kPages; })) return "its pages never came back";
  const std::string taken = page_text(*next, {7});
  Result<FileDescriptor> fd = open_object(queue_object_name(cache.name()), Access::kReadWrite);
  const Geometry& geometry = next->segment().geometry();
  Result<Mapping> mapping = Mapping::map(fd->get(), CopyQueue::size_bytes(geometry), Access::kReadWrite);
  Result<CopyQueue> queue = CopyQueue::open(std::move(*mapping), geometry, next->segment().superblock().cache_id);
  if (!queue) return "the story's queue: " + std::string(queue.error().what());
  if (!eventually([&] { return queue->idle({2}); })) return "the copy was never performed";
  return page_text(*next, {7}) == taken ? "" : "a page that was taken anew changed";
}

TEST(DeviceFenceTest, CopyThatLandsAfterTheKillChangesNoReusedPage) { EXPECT_EQ(told(Mutant::kNone, late_copy), ""); }

TEST(DeviceFenceTest, WithoutTheDevicesFenceAReusedPageChanges) {
  EXPECT_EQ(told(Mutant::k_no_device_fence, late_copy), "a page that was taken anew changed");
}

// A scheduler dies while its rank lives and may write into its pages.
std::string dead_scheduler() {
  test::TemporaryCache cache("dead-scheduler");
  Child scheduler([&](Line line) {
    if (line.hear() != '+') return 1;
    const std::unique_ptr<AttachedCache> mine = attach_as(cache);
    if (mine == nullptr || take(*mine, 10).size() != 10) return 2;
    line.say();
    return line.hear() == '+' ? 0 : 3;
  });
  Child rank([&](Line line) {
    if (line.hear() != '+') return 1;
    const std::unique_ptr<AttachedCache> mine =
        attach_as(cache, WorkerRole::kPlaneWriter, 1, WorkerTag::of({{1}, 1}));
    if (mine == nullptr) return 2;
    line.say();
    return line.hear() == '+' ? 0 : 3;
  });
  RunningCoordinator coordinator(cache, [](Options& options) { options.pages = kPages; });
  if (!coordinator.problem().empty()) return "the story's coordinator: " + coordinator.problem();
  for (Child* child : {&scheduler, &rank}) {
    child->line().say();
    if (child->line().hear() != '+') return "the story's processes did not come so far";
  }
  const Segment& segment = coordinator.segment();
  scheduler.kill();
  if (!eventually([&] { return state_of(segment, {1}) != SlotState::kActive; })) return "its death was not seen";
  std::string message;
  for (int i = 0; i < 5; ++i)  // each makes the coordinator look at the dead again
    if (!ping({cache.directory(), cache.name()}, message)) return "no answer: " + message;
  if (FreePages(segment).count() != kPages - 10) return "pages came back while a rank could write into them";
  if (!coordinator.logs("event=fence worker=1")) return "the log does not say what it waits for";
  rank.kill();
  if (!eventually([&] { return FreePages(segment).count() == kPages; })) return "its pages never came back";
  // After the pages.
  const auto free = [&](std::uint16_t slot) { return state_of(segment, {slot}) == SlotState::kFree; };
  return eventually([&] { return free(1) && free(2); }) ? "" : "the slots did not come back";
}

TEST(DeviceFenceTest, PagesOfADeadSchedulerStayUntilItsRankIsGone) {
  EXPECT_EQ(told(Mutant::kNone, dead_scheduler), "");
}

TEST(DeviceFenceTest, WithoutTheWritersFencePagesComeBackUnderARank) {
  EXPECT_EQ(told(Mutant::k_no_writer_fence, dead_scheduler), "pages came back while a rank could write into them");
}

}  // namespace
}  // namespace kvtrie
