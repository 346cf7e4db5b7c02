// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtrie_attach and kvtrie_detach: what they refuse, and what an attachment leaves.

#include <linux/futex.h>
#include <sys/syscall.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

TEST_F(CApiTest, EveryCallAnswersStaleAfterDetach) {
  const kvtrie_sequence open = cache(worker_, space_, path({1}));
  ASSERT_EQ(kvtrie_detach(worker_), KVTRIE_OK);
  auto geometry = sized<kvtrie_geometry>();
  auto counters = sized<kvtrie_counters>();
  const kvtrie_field field = {"model", "a"};
  kvtrie_namespace name_space{0};
  void* address = nullptr;
  std::uint32_t value = 0;
  for (const std::uint64_t id :
       {worker_.id, std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{200}, ~std::uint64_t{0}}) {
    const kvtrie_worker stale{id};
    EXPECT_EQ(kvtrie_get_geometry(stale, &geometry), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_open_namespace(stale, &field, 1, nullptr, &name_space), KVTRIE_E_STALE);
    EXPECT_EQ(begin(stale, space_, path({1})).code, KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_page_address(stale, 0, 0, &address), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_get_counters(stale, &counters), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_drive_clock(stale, 1), KVTRIE_E_STALE);
    EXPECT_EQ(kvtrie_detach(stale), KVTRIE_E_STALE);
    EXPECT_TRUE(last_error_has("detached")) << kvtrie_last_error();
  }
  EXPECT_EQ(kvtrie_page_count(open, &value), KVTRIE_E_STALE);
  EXPECT_EQ(kvtrie_release(open), KVTRIE_E_STALE);
  const kvtrie_worker next = cache_.attach();  // the same place in the table
  EXPECT_EQ(kvtrie_drive_clock(worker_, 1), KVTRIE_E_STALE);
  EXPECT_EQ(kvtrie_release(open), KVTRIE_E_STALE);
  EXPECT_EQ(begin(next, space_, path({1})).code, KVTRIE_E_STALE);
  EXPECT_EQ(kvtrie_detach(next), KVTRIE_OK);
}

TEST_F(CApiTest, DetachReleasesEverySequenceAndLeavesTheSlot) {
  cache(worker_, space_, path({1, 2}));
  const Begun half = begin(worker_, space_, path({1, 5, 6}));
  ASSERT_EQ(kvtrie_allocate(half.sequence, 3 * kPageTokens, nullptr), KVTRIE_OK);
  EXPECT_EQ(cache_.leases(), 2U);
  ASSERT_EQ(kvtrie_detach(worker_), KVTRIE_OK);
  EXPECT_EQ(cache_.leases(), 0U);
  EXPECT_EQ(cache_.count(PageState::kLive), 2U);
  EXPECT_EQ(cache_.count(PageState::kFree), 62U);
  EXPECT_EQ(WorkerTable(cache_.segment()).word({1}).state(), SlotState::kLeaving);
  EXPECT_EQ(cache_.reap_leavers(), 1U);
}

// One line of /proc/self/maps, or name in /proc/self/fd, for each; threads by count.
std::vector<std::string> process_state() {
  std::vector<std::string> state;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("kvtrie") != std::string::npos && line.find("memfd") != std::string::npos) {
      state.push_back(line);
    }
  }
  for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(fd.path(), gone);
    if (!gone) state.push_back(target.string());
  }
  std::ranges::sort(state);
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    state.push_back(thread.path().string());
  }
  return state;
}

TEST_F(CApiTest, NothingRemainsAfterDetach) {
  const std::vector<std::string> before = process_state();
  const kvtrie_worker other = cache_.attach();
  cache(other, cache_.open(other, {{"model", "a"}}), path({1, 2}));
  EXPECT_GT(process_state().size(), before.size());
  ASSERT_EQ(kvtrie_detach(other), KVTRIE_OK);
  EXPECT_EQ(process_state(), before);
}

TEST_F(CApiTest, AttachmentKeepsNoFileDescriptor) {
  std::vector<std::string> before = process_state();
  const kvtrie_worker other = cache_.attach();
  std::erase_if(before,
                [](const std::string& line) { return line.find("memfd") != std::string::npos; });
  std::vector<std::string> after = process_state();
  std::erase_if(after,
                [](const std::string& line) { return line.find("memfd") != std::string::npos; });
  EXPECT_EQ(after, before);
  std::size_t fds = 0, fds_of_cache = 0;
  for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    ++fds;
    fds_of_cache += std::filesystem::read_symlink(fd.path(), gone).string().find("memfd:kvtrie") !=
                            std::string::npos
                        ? 1
                        : 0;
  }
  EXPECT_EQ(fds_of_cache, 3U);  // the test's own: a segment and two pools
  EXPECT_EQ(kvtrie_detach(other), KVTRIE_OK);
}

TEST_F(CApiTest, AttachmentsToSeveralCachesAreApart) {
  TestCache second_cache({}, "second");
  const kvtrie_worker second = second_cache.attach();
  const kvtrie_namespace theirs = second_cache.open(second, {{"model", "a"}});
  const kvtrie_sequence mine = cache(worker_, space_, path({1, 2}));
  EXPECT_EQ(hits(second, theirs, path({1, 2})), 0U);
  EXPECT_EQ(begin(second, space_, path({1})).code, KVTRIE_E_STALE);
  EXPECT_EQ(kvtrie_detach(second), KVTRIE_OK);
  EXPECT_EQ(kvtrie_release(mine), KVTRIE_OK);
}

TEST(CApiAttachTest, MoreSequencesThanLeasesAnswersFull) {
  TestCacheOptions options;
  options.leases = 4;  // one is for moves
  TestCache cache(options);
  const kvtrie_worker worker = cache.attach();
  const kvtrie_namespace space = cache.open(worker, {{"model", "a"}});
  for (int i = 0; i < 3; ++i)
    EXPECT_EQ(begin(worker, space, path({1})).code, KVTRIE_OK);
  const Begun fourth = begin(worker, space, path({1}));
  EXPECT_EQ(fourth.code, KVTRIE_E_FULL);
  EXPECT_EQ(fourth.sequence.id, 0U);
  EXPECT_TRUE(last_error_has("--leases")) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST(CApiAttachTest, GrantsThatDoNotFitAreRefusedAndLeaveNothing) {
  const TestCache cache;
  kvtrie_worker worker{7};
  const auto refused = [&](kvtrie_code expected, auto spoil) {
    Attachment grant = cache.grant();
    const WorkerId slot = grant.grant.slot;
    spoil(grant);
    EXPECT_EQ(attach_from_grant(std::move(grant), cache.address(), &worker), expected);
    EXPECT_EQ(worker.id, 0U);
    EXPECT_EQ(WorkerTable(cache.segment()).word(slot).state(), SlotState::kAttaching);
    EXPECT_TRUE(last_error_has("unit")) << kvtrie_last_error();
    // As when the connection closes unconfirmed.
    EXPECT_TRUE(
        WorkerTable(cache.segment()).begin_reap(slot, WorkerTable(cache.segment()).word(slot)));
    WorkerTable(cache.segment()).finish_reap(slot);
  };
  refused(KVTRIE_E_CORRUPT, [](Attachment& grant) { grant.pools.pop_back(); });
  refused(KVTRIE_E_CORRUPT, [](Attachment& grant) { grant.pool_bytes /= 2; });
  refused(KVTRIE_E_CORRUPT, [](Attachment& grant) { grant.cache_id[0] ^= 1; });
  refused(KVTRIE_E_CORRUPT, [](Attachment& grant) { grant.segment_bytes *= 2; });
  refused(KVTRIE_E_CORRUPT, [](Attachment& grant) { grant.grant.slot = {999}; });
  refused(KVTRIE_E_STALE, [](Attachment& grant) { ++grant.grant.incarnation; });
  cache.segment().poison(PoisonReason::kOperator);
  refused(KVTRIE_E_POISONED, [](Attachment&) {});
}

TEST(CApiAttachTest, MoreAttachmentsThanATableHasAnswerFull) {
  TestCacheOptions options;
  options.workers = 80;
  const TestCache cache(options);
  std::vector<kvtrie_worker> workers;
  kvtrie_code code = KVTRIE_OK;
  while (code == KVTRIE_OK && workers.size() < 80) {
    kvtrie_worker worker{0};
    code = attach_from_grant(cache.grant(), cache.address(), &worker);
    if (code == KVTRIE_OK) workers.push_back(worker);
  }
  EXPECT_EQ(code, KVTRIE_E_FULL);
  EXPECT_EQ(workers.size(), 64U);
  for (const kvtrie_worker worker : workers)
    EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST(CApiAttachTest, ThreadOfARawCloneIsRefused) {
  // Its robust list is taken away, as a thread of a raw clone() has none.
  kvtrie_code code = KVTRIE_OK;
  std::string message;
  std::jthread([&] {
    if (::syscall(SYS_set_robust_list, nullptr, sizeof(robust_list_head)) != 0) return;
    auto options = sized<kvtrie_attach_options>();
    options.cache = "unit";
    options.directory = "/nonexistent";
    kvtrie_worker worker{0};
    code = kvtrie_attach(&options, &worker);
    message = kvtrie_last_error();
  }).join();
  EXPECT_EQ(code, KVTRIE_E_REFUSED);
  EXPECT_NE(message.find("pthread_create"), std::string::npos) << message;
}

TEST(CApiAttachTest, WithoutACoordinatorAttachFailsAtOnceAndSaysWhatToStart) {
  auto options = sized<kvtrie_attach_options>();
  options.cache = "nobody-serves-this";
  options.directory = "/nonexistent";
  kvtrie_worker worker{7};
  EXPECT_EQ(kvtrie_attach(&options, &worker), KVTRIE_E_NO_COORDINATOR);
  EXPECT_EQ(worker.id, 0U);
  EXPECT_TRUE(last_error_has("kvtried --cache nobody-serves-this")) << kvtrie_last_error();
}

}  // namespace
}  // namespace kvtrie::test
