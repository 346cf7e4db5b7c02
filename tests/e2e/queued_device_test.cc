// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtried with a queued device and with CUDA planes (the stub of the driver), through the C calls.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "shm/free_pages.h"
#include "shm/verify.h"
#include "shm/worker_table.h"
#include "tests/support/kvtried_process.h"
#include "worker_plugin/kvtrie_device.h"

namespace kvtrie {
namespace {

using test::Child;
using test::eventually;
using test::KvtriedProcess;
using test::Line;

constexpr std::uint32_t kPages = 64;

kvtrie_worker attach_to(const test::TemporaryCache& cache) {
  kvtrie_attach_options options{};
  options.size = sizeof options;
  options.cache = cache.name().c_str();
  options.directory = cache.directory().c_str();
  kvtrie_worker worker{0};
  (void)kvtrie_attach(&options, &worker);
  return worker;
}

std::vector<std::string> with(std::vector<std::string> more) {
  std::vector<std::string> words = {"--pages",   "64", "--page-bytes", "1K", "--planes", "2",
                                    "--workers", "4",  "--metrics",    "off"};
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

class QueuedDeviceTest : public testing::Test {
 protected:
  const std::vector<std::string> queued(int delay_ms) const {
    return with({"--device", "queued", "--queue-delay-ms", std::to_string(delay_ms)});
  }
  test::TemporaryCache cache_{"queued-device"};
};

TEST_F(QueuedDeviceTest, CopiesAreWrittenInOrderAndPlanesAreMappedToRead) {
  KvtriedProcess daemon(cache_, queued(0));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const kvtrie_worker worker = attach_to(cache_);
  ASSERT_NE(worker.id, 0U) << kvtrie_last_error();
  const std::string old(100, 'o');
  const std::string text = "bytes of a page";
  ASSERT_EQ(kvtrie_queue_copy(worker, 5, 1, 10, old.data(), old.size()), KVTRIE_OK) << kvtrie_last_error();
  ASSERT_EQ(kvtrie_queue_copy(worker, 5, 1, 10, text.data(), text.size()), KVTRIE_OK);
  ASSERT_EQ(kvtrie_wait_copies(worker, 20'000), KVTRIE_OK) << kvtrie_last_error();
  void* address = nullptr;
  ASSERT_EQ(kvtrie_page_address(worker, 5, 1, &address), KVTRIE_OK);
  EXPECT_EQ(std::memcmp(static_cast<char*>(address) + 10, (text + old).data(), 100), 0);
  Child writer([&](Line) {
    const kvtrie_worker mine = attach_to(cache_);
    void* page = nullptr;
    if (kvtrie_page_address(mine, 0, 0, &page) != KVTRIE_OK) return 1;
    *static_cast<volatile char*>(page) = 1;
    return 0;
  });
  EXPECT_EQ(writer.wait(), -SIGSEGV) << "only the copy engine writes";
  EXPECT_EQ(kvtrie_queue_copy(worker, kPages, 0, 0, text.data(), 1), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_queue_copy(worker, 0, 2, 0, text.data(), 1), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_queue_copy(worker, 0, 0, 1020, text.data(), 5), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_queue_copy(worker, 0, 0, ~std::uint64_t{0}, text.data(), 5), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST_F(QueuedDeviceTest, NineCopiesAtATimeAreOneTooMany) {
  KvtriedProcess daemon(cache_, queued(60'000));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const kvtrie_worker worker = attach_to(cache_);
  for (int i = 0; i < 8; ++i)
    ASSERT_EQ(kvtrie_queue_copy(worker, 0, 0, 0, "x", 1), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(kvtrie_queue_copy(worker, 0, 0, 0, "x", 1), KVTRIE_E_NOT_NOW);
  EXPECT_EQ(kvtrie_wait_copies(worker, 1), KVTRIE_E_TIMEOUT);
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
  EXPECT_TRUE(daemon.logs("event=fence worker=1")) << "detaching does not end what is under way";
}

// The worker dies, then the coordinator, with a copy under way: whoever sees the page free sees it written.
TEST_F(QueuedDeviceTest, CoordinatorThatDiesMeanwhileLeavesTheFenceToTheNext) {
  auto daemon = std::make_unique<KvtriedProcess>(cache_, queued(60'000));
  ASSERT_TRUE(daemon->ready()) << daemon->err();
  Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
  ASSERT_TRUE(segment);
  Child child([&](Line line) {
    const kvtrie_worker worker = attach_to(cache_);
    const Result<Segment> mine = open_segment(cache_.name(), Access::kReadWrite);  // a mapping is not inherited
    std::uint32_t cursor = 0;
    std::vector<PageIndex> pages;
    if (FreePages(*mine).take({1}, 3, {0}, cursor, pages) != 3) return 1;
    if (kvtrie_queue_copy(worker, pages[1].value, 0, 0, "late", 4) != KVTRIE_OK) return 2;
    line.say();
    return line.hear() == '+' ? 0 : 3;
  });
  ASSERT_EQ(child.line().hear(), '+');
  child.kill();
  ASSERT_TRUE(daemon->logs("event=fence worker=1"));
  // Another death meanwhile is not kept waiting.
  Child other([&](Line line) { return attach_to(cache_).id != 0 && line.say() && line.hear() == '+' ? 0 : 1; });
  ASSERT_EQ(other.line().hear(), '+');
  other.kill();
  EXPECT_TRUE(daemon->logs("event=reap worker=2"));
  EXPECT_EQ(FreePages(*segment).count(), kPages - 3);
  daemon->send(SIGKILL);
  daemon->wait();
  daemon = std::make_unique<KvtriedProcess>(cache_, with({"--queue-delay-ms", "700"}));
  ASSERT_TRUE(daemon->ready()) << daemon->err();
  EXPECT_TRUE(daemon->logs("event=reap worker=1"));
  EXPECT_EQ(FreePages(*segment).count(), kPages);
  Result<FileDescriptor> fd = open_object(pool_object_name(cache_.name(), 0), Access::kReadOnly);
  Result<Mapping> pool = Mapping::map(fd->get(), kPages * 1024, Access::kReadOnly);
  bool landed = false;
  for (std::uint32_t page = 0; page < kPages; ++page)
    landed = landed || std::memcmp(pool->data() + page * 1024, "late", 4) == 0;
  EXPECT_TRUE(landed) << "the page was free before the copy was written";
  EXPECT_EQ(daemon->stop(), 0);
  const VerifyReport report = verify(*segment, {.at_rest = true});
  EXPECT_TRUE(report.clean()) << to_string(report.findings.at(0));
}

TEST_F(QueuedDeviceTest, CacheKeepsItsDevice) {
  {
    KvtriedProcess daemon(cache_, queued(0));
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    EXPECT_EQ(daemon.stop(), 0);
  }
  KvtriedProcess host(cache_, with({"--device", "host"}));
  EXPECT_NE(host.wait(), 0);
  EXPECT_NE(host.err().find("--device host was given, but the cache there has queued"), std::string::npos)
      << host.err();
  {
    KvtriedProcess same(cache_, {"--metrics", "off"});
    ASSERT_TRUE(same.ready()) << same.err();
    EXPECT_TRUE(same.logs("device=host planes=2 plane_bytes=65536 locked=0 queued=1"));
    EXPECT_EQ(same.stop(), 0);
  }
  EXPECT_TRUE(open_object(queue_object_name(cache_.name()), Access::kReadOnly));
  KvtriedProcess fresh(cache_, with({"--device", "host", "--fresh"}));
  ASSERT_TRUE(fresh.ready()) << fresh.err();
  EXPECT_FALSE(open_object(queue_object_name(cache_.name()), Access::kReadOnly)) << "the queue went with its cache";
}

// --- CUDA planes, through the stub of the driver

class CudaCacheTest : public QueuedDeviceTest {
 protected:
  void SetUp() override { ::setenv("LD_LIBRARY_PATH", KVTRIE_TEST_STUB_CUDA_DIR, 1); }
  void TearDown() override { ::unsetenv("LD_LIBRARY_PATH"); }
};

TEST_F(CudaCacheTest, WorkerGetsThePlanesDescriptorAndNoAddress) {
  KvtriedProcess daemon(cache_, with({"--device", "cuda:0"}));
  ASSERT_TRUE(daemon.ready()) << daemon.err();
  const kvtrie_worker worker = attach_to(cache_);
  ASSERT_NE(worker.id, 0U) << kvtrie_last_error();
  void* address = nullptr;
  EXPECT_EQ(kvtrie_page_address(worker, 0, 0, &address), KVTRIE_E_INVALID);
  EXPECT_NE(std::string(kvtrie_last_error()).find("import kvtrie_plane_descriptor()"), std::string::npos);
  int fd = -1;
  ASSERT_EQ(kvtrie_plane_descriptor(worker, 1, &fd), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_EQ(::fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  void* const data = ::mmap(nullptr, kPages * 1024, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  EXPECT_NE(data, MAP_FAILED) << "the stub's memory is a file";
  ::munmap(data, kPages * 1024);
  ::close(fd);
  EXPECT_EQ(kvtrie_plane_descriptor(worker, 2, &fd), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_queue_copy(worker, 0, 0, 0, "x", 1), KVTRIE_E_INVALID);
  EXPECT_EQ(kvtrie_wait_copies(worker, 0), KVTRIE_OK);
  EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK);
}

TEST_F(CudaCacheTest, NextCoordinatorMakesASuccessorSinceThePlanesAreGone) {
  {
    KvtriedProcess daemon(cache_, with({"--device", "cuda:0"}));
    ASSERT_TRUE(daemon.ready()) << daemon.err();
    daemon.send(SIGKILL);
    daemon.wait();
  }
  KvtriedProcess unsaid(cache_, {"--metrics", "off"});
  EXPECT_EQ(unsaid.wait(), 2);
  EXPECT_NE(unsaid.err().find("say on which with --device cuda:N"), std::string::npos) << unsaid.err();
  KvtriedProcess next(cache_, {"--metrics", "off", "--device", "cuda:0"});
  ASSERT_TRUE(next.ready()) << next.err();
  EXPECT_EQ(next.value("adopted"), "0");
  EXPECT_EQ(next.value("pages"), "64");
  EXPECT_TRUE(next.logs("reason=planes_gone"));
}

}  // namespace
}  // namespace kvtrie
