// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Host planes: where their memory lies, and what is said when it cannot lie there; which device options go together.

#include "coordinator/host_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <fstream>
#include <string>

#include "coordinator/host_memory.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;

class HostDeviceTest : public testing::Test {
 protected:
  PlanesWanted wanted(std::uint64_t page_bytes = 65536) const {
    PlanesWanted wanted;
    wanted.cache = cache_.name();
    wanted.geometry.pages = 64;
    wanted.geometry.page_bytes = page_bytes;
    wanted.geometry.planes = 2;
    return wanted;
  }
  test::TemporaryCache cache_{"host-device"};
};

TEST_F(HostDeviceTest, ReadsTheHugeOptionOfTheTopMount) {
  constexpr char kMounts[] =
      "24 30 0:22 / /proc rw shared:1 - proc proc rw\n"
      "25 30 0:23 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw,size=64k,huge=always,inode64\n"
      "26 25 0:24 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw,huge=advise\n"
      "27 30 0:25 / /dev/shm2 rw - tmpfs tmpfs rw,huge=within_size\n"
      "28 30 0:25 / /plain rw - tmpfs tmpfs rw\n";
  EXPECT_EQ(huge_option_of(kMounts, "/dev/shm"), "advise");
  EXPECT_EQ(huge_option_of(kMounts, "/dev/shm2"), "within_size");
  EXPECT_EQ(huge_option_of(kMounts, "/plain"), "never");
  EXPECT_EQ(huge_option_of(kMounts, "/nowhere"), "never");
}

TEST_F(HostDeviceTest, HugePagesThatAreNotThereAreRefusedWithTheMountToChange) {
  std::ifstream file("/proc/self/mountinfo");
  const std::string mounts(std::istreambuf_iterator<char>(file), {});
  if (huge_option_of(mounts, "/dev/shm") != "never") GTEST_SKIP() << "/dev/shm gives huge pages here";
  HostDevice device({.huge_pages = true, .lock = false, .numa_node = {}});
  const MaybeFailure failure = device.make(wanted());
  ASSERT_TRUE(failure);
  EXPECT_NE(failure->text.find("mount -o remount,huge=advise /dev/shm"), std::string::npos) << failure->text;
}

// In a mount namespace of its own, with a /dev/shm that gives them.
TEST_F(HostDeviceTest, PlanesLieInHugePagesWhereTheMountGivesThem) {
  Child child([&](Line) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", "/dev/shm", "tmpfs", 0, "huge=advise,size=64m") != 0) {
      return 77;
    }
    HostDevice device({.huge_pages = true, .lock = false, .numa_node = {}});
    if (const MaybeFailure failure = device.make(wanted())) {
      std::fprintf(stderr, "%s\n", failure->text.c_str());
      return 1;
    }
    // 4 MiB a plane, two planes. Not all, if the host is short of them; but some.
    const std::string text = device.describe();
    return text.find(" huge_bytes=") != std::string::npos && text.find(" huge_bytes=0") == std::string::npos ? 0 : 2;
  });
  const int end = child.wait();
  if (end == 77) GTEST_SKIP() << "needs root, and a kernel with huge pages in tmpfs";
  EXPECT_EQ(end, 0);
}

TEST_F(HostDeviceTest, PlanesAreBoundToTheNodeThatWasAskedFor) {
  if (::access("/sys/devices/system/node/node0", F_OK) != 0) GTEST_SKIP() << "a kernel without NUMA";
  HostDevice device({.huge_pages = false, .lock = false, .numa_node = 0});
  const MaybeFailure failure = device.make(wanted());
  ASSERT_FALSE(failure) << failure->text;
  const Result<Mapping> mapping =
      Mapping::map(device.descriptor(1, Access::kReadWrite), device.plane_bytes(), Access::kReadWrite);
  ASSERT_TRUE(mapping);
  int mode = -1;
  unsigned long nodes[16] = {};
  ASSERT_EQ(::syscall(SYS_get_mempolicy, &mode, nodes, sizeof nodes * 8, mapping->data(), MPOL_F_ADDR), 0);
  EXPECT_EQ(mode, MPOL_BIND);
  EXPECT_EQ(nodes[0], 1UL);
  EXPECT_NE(device.describe().find(" numa_node=0"), std::string::npos);
}

TEST_F(HostDeviceTest, NodeThatIsNotThereIsRefused) {
  HostDevice device({.huge_pages = false, .lock = false, .numa_node = 999});
  const MaybeFailure failure = device.make(wanted());
  ASSERT_TRUE(failure);
  EXPECT_NE(failure->text.find("--numa-node 999: there is no such node"), std::string::npos) << failure->text;
}

std::uint64_t locked_kib() {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    std::uint64_t kib = 0;
    if (word == "VmLck:" && file >> kib) return kib;
  }
  return 0;
}

// The address sanitizer replaces mlock by one that does nothing.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kLocks = false;
#else
constexpr bool kLocks = true;
#endif

TEST_F(HostDeviceTest, LockedPlanesAreLocked) {
  if (!kLocks) GTEST_SKIP() << "no mlock under the address sanitizer";
  const std::uint64_t before = locked_kib();
  HostDevice device({.huge_pages = false, .lock = true, .numa_node = {}});
  const MaybeFailure failure = device.make(wanted(1024));
  ASSERT_FALSE(failure) << failure->text;
  EXPECT_EQ(locked_kib() - before, 2U * 64);
  EXPECT_NE(device.describe().find(" locked=1"), std::string::npos);
}

TEST_F(HostDeviceTest, LimitOfLockedMemoryIsNamedAndNothingIsLeft) {
  if (!kLocks) GTEST_SKIP() << "no mlock under the address sanitizer";
  Child child([&](Line) {
    const rlimit none{0, 0};
    if (::setrlimit(RLIMIT_MEMLOCK, &none) != 0) return 1;
    if (::geteuid() == 0 && ::setuid(65534) != 0) return 77;
    HostDevice device({.huge_pages = false, .lock = true, .numa_node = {}});
    const MaybeFailure failure = device.make(wanted(1024));
    if (!failure || failure->text.find("LimitMEMLOCK=infinity") == std::string::npos) return 2;
    return open_temporary(pool_object_name(cache_.name(), 0), Access::kReadOnly) ? 3 : 0;
  });
  const int end = child.wait();
  if (end == 77) GTEST_SKIP() << "cannot become a user without privileges";
  EXPECT_EQ(end, 0);
}

TEST_F(HostDeviceTest, AdoptedPlanesAreTheSameBytes) {
  {
    HostDevice device({});
    ASSERT_FALSE(device.make(wanted(1024)));
    ASSERT_FALSE(device.publish());
    ASSERT_FALSE(device.start());
    ASSERT_EQ(::pwrite(device.descriptor(1, Access::kReadWrite), "kept", 4, 100), 4);
    EXPECT_EQ(::pwrite(device.descriptor(1, Access::kReadOnly), "x", 1, 0), -1);
  }
  HostDevice next({});
  ASSERT_FALSE(next.adopt(wanted(1024)));
  ASSERT_FALSE(next.start());
  char text[5] = {};
  ASSERT_EQ(::pread(next.descriptor(1, Access::kReadOnly), text, 4, 100), 4);
  EXPECT_STREQ(text, "kept");
  HostDevice other({});
  EXPECT_TRUE(other.adopt(wanted(2048))) << "another size";
}

TEST(DeviceOptionsTest, DevicesAreNamedByKindAndOrdinals) {
  EXPECT_EQ(parse_device("host")->kind, DeviceKind::kHost);
  EXPECT_EQ(parse_device("queued")->kind, DeviceKind::kQueued);
  EXPECT_EQ(parse_device("cuda:0")->ordinals, std::vector<int>{0});
  EXPECT_EQ(parse_device("cuda:2,0")->ordinals, (std::vector<int>{2, 0}));
  for (const char* bad : {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:0,", "cuda:-1", "cuda:0 ", "cuda:256", "hostx"})
    EXPECT_FALSE(parse_device(bad)) << bad;
}

TEST(DeviceOptionsTest, OptionsOfAnotherDeviceAreRefused) {
  Options options;
  EXPECT_EQ(device_problem(options, DeviceKind::kHost, 2), "");
  EXPECT_NE(device_problem(options, DeviceKind::kCuda, 2), "") << "which one?";
  options.device = *parse_device("cuda:0,1");
  EXPECT_EQ(device_problem(options, DeviceKind::kCuda, 2), "");
  EXPECT_NE(device_problem(options, DeviceKind::kCuda, 3).find("2 CUDA devices for 3 planes"), std::string::npos);
  options.memory.lock = true;
  EXPECT_NE(device_problem(options, DeviceKind::kCuda, 2).find("--mlock"), std::string::npos);
  EXPECT_EQ(device_problem(options, DeviceKind::kQueued, 2), "");
  options.queue_delay_ms = 5;
  EXPECT_EQ(device_problem(options, DeviceKind::kQueued, 2), "");
  EXPECT_NE(device_problem(options, DeviceKind::kHost, 2).find("--queue-delay-ms"), std::string::npos);
}

}  // namespace
}  // namespace kvtrie
