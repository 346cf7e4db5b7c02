// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// After fork(2) every handle of the parent answers stale in the child, the parent's go on, and the
// child may attach by itself; and a begin that hits, with its release, makes no system call (the
// kernel says so).

#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <thread>

#include "tests/shm/test_support.h"
#include "tests/worker_plugin/c_api_support.h"

namespace kvtrie::test {
namespace {

using CApiForkTest = CApiTest;

// 0: as it should be; else the number of the first call that is not.
int all_stale(kvtrie_worker worker, kvtrie_namespace space, kvtrie_sequence open,
              const char* message) {
  auto geometry = sized<kvtrie_geometry>();
  auto counters = sized<kvtrie_counters>();
  const kvtrie_field field = {"model", "a"};
  kvtrie_namespace name_space{0};
  void* address = nullptr;
  std::uint32_t value = 0;
  const kvtrie_code codes[] = {
      kvtrie_get_geometry(worker, &geometry),
      kvtrie_open_namespace(worker, &field, 1, nullptr, &name_space),
      begin(worker, space, path({1})).code,
      kvtrie_page_address(worker, 0, 0, &address),
      kvtrie_get_counters(worker, &counters),
      kvtrie_drive_clock(worker, 1),
      kvtrie_append(open, &value, 1),
      kvtrie_allocate(open, 4, nullptr),
      kvtrie_get_pages(open, 0, 1, &value),
      kvtrie_page_count(open, &value),
      kvtrie_publish(open, 4, nullptr),
      kvtrie_release(open),
      kvtrie_detach(worker),
  };
  for (std::size_t i = 0; i < std::size(codes); ++i) {
    if (codes[i] != KVTRIE_E_STALE || !last_error_has(message)) return static_cast<int>(i) + 1;
  }
  return 0;
}

TEST_F(CApiForkTest, EveryHandleOfTheParentIsStaleInTheChild) {
  const kvtrie_sequence open = cache(worker_, space_, path({1}));
  Child child([&](const Line&) { return all_stale(worker_, space_, open, "parent process"); });
  EXPECT_EQ(child.wait(), 0);
  std::uint32_t count = 0;
  EXPECT_EQ(kvtrie_page_count(open, &count), KVTRIE_OK);  // the parent's goes on
  EXPECT_EQ(count, 1U);
  EXPECT_EQ(cache_.leases(), 1U);
  EXPECT_EQ(kvtrie_release(open), KVTRIE_OK);
}

TEST_F(CApiForkTest, ChildAttachesAnewAndItsOwnChildToo) {
  const kvtrie_sequence open = cache(worker_, space_, path({1, 2}));
  // Grants as the coordinator would answer the children; the mapping of the segment is not
  // inherited.
  Attachment for_child = cache_.grant();
  Attachment for_grandchild = cache_.grant();
  Child child([&](const Line&) {
    kvtrie_worker mine{0};
    if (attach_from_grant(std::move(for_child), cache_.address(), &mine) != KVTRIE_OK) return 100;
    if (mine.id == worker_.id) return 101;
    if (const int which = all_stale(worker_, space_, open, "no such"); which != 0) return which;
    const kvtrie_field field = {"model", "a"};
    kvtrie_namespace space{0};
    if (kvtrie_open_namespace(mine, &field, 1, nullptr, &space) != KVTRIE_OK) return 103;
    const Begun begun = begin(mine, space, path({1, 2}));
    if (begun.code != KVTRIE_OK || begun.result.cached_pages != 2) return 104;
    Child grandchild([&](const Line&) {
      if (kvtrie_release(begun.sequence) != KVTRIE_E_STALE) return 110;
      if (kvtrie_release(open) != KVTRIE_E_STALE) return 111;
      kvtrie_worker own{0};
      if (attach_from_grant(std::move(for_grandchild), cache_.address(), &own) != KVTRIE_OK)
        return 112;
      if (kvtrie_open_namespace(own, &field, 1, nullptr, &space) != KVTRIE_OK) return 113;
      if (begin(own, space, path({1, 2})).result.cached_pages != 2) return 114;
      if (kvtrie_release(begun.sequence) != KVTRIE_E_STALE) return 115;
      return kvtrie_detach(own) == KVTRIE_OK ? 0 : 116;
    });
    if (const int result = grandchild.wait(); result != 0) return result;
    if (kvtrie_release(begun.sequence) != KVTRIE_OK) return 105;
    return kvtrie_detach(mine) == KVTRIE_OK ? 0 : 106;
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(cache_.reap_leavers(), 2U);
  EXPECT_EQ(hits(worker_, space_, path({1, 2})), 2U);
  EXPECT_EQ(kvtrie_release(open), KVTRIE_OK);
}

// Whatever other threads are doing at the moment of the fork.
TEST_F(CApiForkTest, ForkWhileOtherThreadsAreInside) {
  std::atomic<bool> stop{false};
  std::vector<std::jthread> threads;
  for (std::uint32_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      while (!stop.load()) {
        const Begun begun = begin(worker_, space_, path({t, t + 10}));
        (void)kvtrie_allocate(begun.sequence, 8, nullptr);
        (void)kvtrie_release(begun.sequence);
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    Attachment grant = cache_.grant();
    Child child([&](const Line&) {
      kvtrie_worker mine{0};
      if (kvtrie_page_address(worker_, 0, 0, nullptr) != KVTRIE_E_INVALID) return 100;
      if (kvtrie_detach(worker_) != KVTRIE_E_STALE) return 101;
      if (attach_from_grant(std::move(grant), cache_.address(), &mine) != KVTRIE_OK) return 102;
      const kvtrie_field field = {"model", "a"};
      kvtrie_namespace space{0};
      if (kvtrie_open_namespace(mine, &field, 1, nullptr, &space) != KVTRIE_OK) return 103;
      const Begun begun = begin(mine, space, path({7}));
      if (begun.code != KVTRIE_OK) return 104;
      return kvtrie_detach(mine) == KVTRIE_OK ? 0 : 105;
    });
    EXPECT_EQ(child.wait(), 0);
    EXPECT_EQ(cache_.reap_leavers(), 1U);
  }
  stop = true;
}

#ifndef KVTRIE_TSAN
TEST_F(CApiForkTest, HitAndReleaseMakeNoSystemCall) {
  cache(worker_, space_, path({1, 2, 3, 4, 5, 6}));
  Attachment grant = cache_.grant();
  Child child([&](const Line&) {
    kvtrie_worker mine{0};
    if (attach_from_grant(std::move(grant), cache_.address(), &mine) != KVTRIE_OK) return 100;
    const kvtrie_field field = {"model", "a"};
    kvtrie_namespace space{0};
    if (kvtrie_open_namespace(mine, &field, 1, nullptr, &space) != KVTRIE_OK) return 101;
    const Tokens tokens = path({1, 2, 3, 4, 5, 6, 7});
    if (hits(mine, space, tokens) != 6) return 102;  // vectors have their size from here on
    // Any system call but read, write and exit is the end of this process.
    if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) return 77;
    int missed = 0;
    for (int i = 0; i < 10'000; ++i)
      missed += hits(mine, space, tokens) == 6 ? 0 : 1;
    ::syscall(SYS_exit, missed == 0 ? 0 : 103);
    return 104;
  });
  const int result = child.wait();
  if (result == 77) GTEST_SKIP() << "no seccomp here";
  EXPECT_EQ(result, 0);
}
#endif

}  // namespace
}  // namespace kvtrie::test
