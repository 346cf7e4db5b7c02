// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/prefault.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string>

namespace kvtrie {
namespace {

FileDescriptor memory(std::uint64_t bytes) {
  FileDescriptor fd(::memfd_create("kvtrie-prefault", MFD_CLOEXEC));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  return fd;
}

std::uint64_t bytes_there(int fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return static_cast<std::uint64_t>(info.st_blocks) * 512;
}

bool ends(const Prefault& prefault) {
  pollfd end{prefault.event_fd(), POLLIN, 0};
  return ::poll(&end, 1, 20'000) == 1;
}

TEST(PrefaultTest, MemoryIsThereAfterwardsAndNoByteIsWritten) {
  constexpr std::uint64_t kBytes = (9 << 20) + 4096;  // not a whole number of pieces
  const FileDescriptor kept = memory(kBytes);
  ASSERT_EQ(::pwrite(kept.get(), "KV", 2, 5 << 20), 2);
  ASSERT_LT(bytes_there(kept.get()), kBytes);
  std::vector<PrefaultObject> objects;
  objects.push_back({FileDescriptor(::dup(kept.get())), kBytes});
  Prefault prefault;
  ASSERT_FALSE(prefault.start(std::move(objects)));
  ASSERT_TRUE(ends(prefault));
  if (prefault.result().find("no MADV_POPULATE_WRITE") != std::string::npos) {
    GTEST_SKIP() << "the kernel cannot do it: " << prefault.result();
  }
  EXPECT_TRUE(prefault.result().starts_with("event=prefault bytes=" + std::to_string(kBytes)))
      << prefault.result();
  EXPECT_EQ(bytes_there(kept.get()), kBytes);
  std::string bytes(kBytes, 'x');
  ASSERT_EQ(::pread(kept.get(), bytes.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  EXPECT_EQ(bytes.substr(5 << 20, 2), "KV");
  EXPECT_EQ(static_cast<std::uint64_t>(std::count(bytes.begin(), bytes.end(), '\0')), kBytes - 2);
}

TEST(PrefaultTest, SaysWhyItGaveUp) {
  std::vector<PrefaultObject> objects;
  objects.push_back(
      {FileDescriptor(::open("/proc/self/stat", O_RDONLY | O_CLOEXEC)), 4096});  // cannot be mapped
  Prefault prefault;
  ASSERT_FALSE(prefault.start(std::move(objects)));
  ASSERT_TRUE(ends(prefault));
  EXPECT_TRUE(prefault.result().starts_with("event=prefault_gave_up bytes=0 of=4096 why="))
      << prefault.result();
}

TEST(PrefaultTest, EndsSoonWhenItIsToStop) {
  std::vector<PrefaultObject> objects;
  objects.push_back({memory(std::uint64_t{1} << 40), std::uint64_t{1} << 30});
  Prefault prefault;
  ASSERT_FALSE(prefault.start(std::move(objects)));
  prefault.stop();
  EXPECT_LT(prefault.figures().done_bytes, prefault.figures().total_bytes);
}

}  // namespace
}  // namespace kvtrie
