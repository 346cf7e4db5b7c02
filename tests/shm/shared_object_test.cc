// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/shared_object.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tests/shm/test_support.h"

namespace kvtrie {
namespace {

using test::Child;
using test::Line;
using test::NamedObject;

std::string path_of(const std::string& name) { return "/dev/shm/" + name; }

bool there(const std::string& name) {
  struct stat info {};
  return ::stat(path_of(name).c_str(), &info) == 0;
}

TEST(SharedObjectTest, NamesCarryTheLayoutVersion) {
  EXPECT_EQ(segment_object_name("a"), "kvtrie.a.v" + std::to_string(kLayoutVersion) + ".seg");
  EXPECT_EQ(pool_object_name("a", 3), "kvtrie.a.v" + std::to_string(kLayoutVersion) + ".pool3");
}

TEST(SharedObjectTest, TakesOrdinaryCacheNames) {
  for (const std::string& name : {std::string("a"), std::string("prod-7_b.x"), std::string(63, 'k'),
                                  std::string("0"), std::string("-"), std::string("a..b")}) {
    EXPECT_EQ(cache_name_problem(name), "") << name;
  }
}

TEST(SharedObjectTest, RefusesNamesThatLeadElsewhere) {
  std::vector<std::string> names = {"",     ".",     "..",       ".hidden", "/",
                                    "a/b",  "../x",  "/etc",     "a b",     "a\nb",
                                    "a\tb", "a\x7f", "\xc3\xa4", "a*",      "a\\"};
  names.push_back(std::string(64, 'k'));
  names.push_back(std::string("a\0b", 3));
  for (const std::string& name : names)
    EXPECT_NE(cache_name_problem(name), "") << name;
}

TEST(SharedObjectTest, AppearsUnderItsNameOnlyWhenPublished) {
  const NamedObject object("publish");
  const Result<FileDescriptor> made = create_object(object.name(), 8192, 0600);
  ASSERT_TRUE(made) << made.error().what();
  EXPECT_FALSE(there(object.name()));
  EXPECT_EQ(open_object(object.name(), Access::kReadOnly).error().code(), Code::kNotFound);
  ASSERT_TRUE(publish_object(object.name()));
  EXPECT_TRUE(there(object.name()));
  EXPECT_FALSE(there(object.name() + ".tmp"));
  const Result<FileDescriptor> opened = open_object(object.name(), Access::kReadOnly);
  ASSERT_TRUE(opened);
  EXPECT_EQ(*object_bytes(opened->get()), 8192U);
}

TEST(SharedObjectTest, PublishOfNothingSaysSo) {
  const NamedObject object("nothing");
  const Status status = publish_object(object.name());
  EXPECT_EQ(status.code(), Code::kSystem);
  EXPECT_EQ(status.system_errno(), ENOENT);
}

TEST(SharedObjectTest, ThrowsAnUnfinishedObjectAway) {
  const NamedObject object("unfinished");
  ASSERT_TRUE(create_object(object.name(), 65536, 0600));  // its maker died before the rename
  const Result<FileDescriptor> again = create_object(object.name(), 4096, 0600);
  ASSERT_TRUE(again) << again.error().what();
  EXPECT_EQ(*object_bytes(again->get()), 4096U);
}

TEST(SharedObjectTest, IsZeroAndReservedFromTheStart) {
  const Result<FileDescriptor> fd = test::nameless_object(1 << 20);
  ASSERT_TRUE(fd);
  struct stat info {};
  ASSERT_EQ(::fstat(fd->get(), &info), 0);
  EXPECT_GE(info.st_blocks * 512, 1 << 20) << "memory that is not reserved is a SIGBUS later";
  const Result<Mapping> mapping = Mapping::map(fd->get(), 1 << 20, Access::kReadOnly);
  ASSERT_TRUE(mapping);
  EXPECT_TRUE(std::all_of(mapping->data(), mapping->data() + mapping->size_bytes(),
                          [](std::byte b) { return b == std::byte{0}; }));
}

TEST(SharedObjectTest, HasTheModeAskedForWhateverTheUmask) {
  const mode_t before = ::umask(0077);
  const NamedObject object("mode");
  for (const unsigned mode : {0600U, 0640U, 0660U}) {
    const Result<FileDescriptor> fd = create_object(object.name(), 4096, mode);
    struct stat info {};
    if (fd) ::fstat(fd->get(), &info);
    EXPECT_EQ(info.st_mode & 07777U, mode);
  }
  ::umask(before);
}

TEST(SharedObjectTest, DescriptorsCloseOnExec) {
  const NamedObject object("cloexec");
  const Result<FileDescriptor> made = create_object(object.name(), 4096, 0600);
  ASSERT_TRUE(made);
  EXPECT_NE(::fcntl(made->get(), F_GETFD) & FD_CLOEXEC, 0);
  ASSERT_TRUE(publish_object(object.name()));
  const Result<FileDescriptor> opened = open_object(object.name(), Access::kReadWrite);
  ASSERT_TRUE(opened);
  EXPECT_NE(::fcntl(opened->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(SharedObjectTest, RemoveTakesBothForms) {
  const NamedObject object("remove");
  EXPECT_FALSE(remove_object(object.name()));
  ASSERT_TRUE(create_object(object.name(), 4096, 0600));
  ASSERT_TRUE(publish_object(object.name()));
  ASSERT_TRUE(create_object(object.name(), 4096, 0600));
  EXPECT_TRUE(remove_object(object.name()));
  EXPECT_FALSE(there(object.name()));
  EXPECT_FALSE(there(object.name() + ".tmp"));
}

TEST(SharedObjectTest, OtherProcessesSeeTheSameBytes) {
  const Result<FileDescriptor> fd = test::nameless_object(4096);
  ASSERT_TRUE(fd);
  const Result<Mapping> mine = Mapping::map(fd->get(), 4096, Access::kReadWrite);
  ASSERT_TRUE(mine);
  Child child([&](Line) {
    const Result<Mapping> own = Mapping::map(fd->get(), 4096, Access::kReadWrite);
    if (!own) return 1;
    own->data()[17] = std::byte{42};
    return 0;
  });
  ASSERT_EQ(child.wait(), 0);
  EXPECT_EQ(mine->data()[17], std::byte{42});
}

TEST(SharedObjectTest, MappingIsNotInheritedByFork) {
  const Result<FileDescriptor> fd = test::nameless_object(8192);
  ASSERT_TRUE(fd);
  for (const Access access : {Access::kReadOnly, Access::kReadWrite}) {
    const Result<Mapping> mapping = Mapping::map(fd->get(), 8192, access);
    ASSERT_TRUE(mapping);
    Child asks([&](Line) {
      unsigned char resident[2];
      return ::mincore(mapping->data(), 8192, resident) == 0 ? 1 : errno == ENOMEM ? 0 : 2;
    });
    EXPECT_EQ(asks.wait(), 0) << "the child has the mapping";
    Child touches([&](Line) {
      return static_cast<int>(*reinterpret_cast<volatile unsigned char*>(mapping->data()));
    });
    EXPECT_EQ(touches.wait(), -SIGSEGV);
  }
}

TEST(SharedObjectTest, ReadOnlyMappingRefusesStores) {
  const Result<FileDescriptor> fd = test::nameless_object(4096);
  ASSERT_TRUE(fd);
  Child child([&](Line) {
    const Result<Mapping> own = Mapping::map(fd->get(), 4096, Access::kReadOnly);
    if (!own) return 1;
    *reinterpret_cast<volatile unsigned char*>(own->data()) = 1;
    return 0;
  });
  EXPECT_EQ(child.wait(), -SIGSEGV);
}

TEST(SharedObjectTest, ReadOnlyDescriptorCannotBeMappedWritable) {
  const NamedObject object("readonly");
  ASSERT_TRUE(create_object(object.name(), 4096, 0600));
  ASSERT_TRUE(publish_object(object.name()));
  const Result<FileDescriptor> fd = open_object(object.name(), Access::kReadOnly);
  ASSERT_TRUE(fd);
  EXPECT_TRUE(Mapping::map(fd->get(), 4096, Access::kReadOnly));
  EXPECT_EQ(Mapping::map(fd->get(), 4096, Access::kReadWrite).error().code(), Code::kSystem);
}

TEST(SharedObjectTest, ObjectSmallerThanStatedIsNotMapped) {
  const Result<FileDescriptor> fd = test::nameless_object(4096);
  ASSERT_TRUE(fd);
  EXPECT_EQ(Mapping::map(fd->get(), 4097, Access::kReadWrite).error().code(), Code::kCorrupt);
  EXPECT_EQ(Mapping::map(fd->get(), 0, Access::kReadWrite).error().code(), Code::kCorrupt);
  EXPECT_EQ(Mapping::map(-1, 4096, Access::kReadWrite).error().code(), Code::kSystem);
}

TEST(SharedObjectTest, NameWithASlashIsAnErrorNotAPath) {
  EXPECT_FALSE(open_object("../etc/passwd", Access::kReadOnly));
  EXPECT_FALSE(create_object("a/b", 4096, 0600));
}

TEST(SharedObjectTest, ImpossibleSizeLeavesNothingBehind) {
  const NamedObject object("impossible");
  EXPECT_EQ(create_object(object.name(), std::uint64_t{1} << 63, 0600).error().code(),
            Code::kSystem);
  EXPECT_FALSE(there(object.name() + ".tmp"));
  EXPECT_EQ(create_object(object.name(), 0, 0600).error().code(), Code::kSystem);
  EXPECT_FALSE(there(object.name() + ".tmp"));
}

// In a mount namespace of its own, so that no other process sees the small /dev/shm.
TEST(SharedObjectTest, FullDevShmIsAClearErrorAtOnce) {
  enum {
    kGood = 0,
    kMadeIt = 1,
    kOtherError = 2,
    kUnclear = 3,
    kLeftBehind = 4,
    kNoSmall = 5,
    kSkip = 77
  };
  Child child([&](Line) {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=256k") != 0) {
      return int{kSkip};
    }
    const Result<FileDescriptor> fd = create_object("kvtrie-test.full", 1 << 20, 0600);
    if (fd) return int{kMadeIt};
    if (fd.error().code() != Code::kSystem || fd.error().system_errno() != ENOSPC)
      return int{kOtherError};
    if (std::strstr(fd.error().what(), "/dev/shm") == nullptr) return int{kUnclear};
    if (there("kvtrie-test.full.tmp")) return int{kLeftBehind};
    return create_object("kvtrie-test.small", 1 << 16, 0600) ? int{kGood} : int{kNoSmall};
  });
  const int result = child.wait();
  if (result == kSkip) GTEST_SKIP() << "not permitted to mount in a namespace of its own";
  EXPECT_EQ(result, kGood);
}

TEST(FileDescriptorTest, ClosesOnceAndOnlyItsOwn) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  {
    FileDescriptor first(ends[0]);
    FileDescriptor second(std::move(first));
    EXPECT_FALSE(first.open());
    EXPECT_EQ(second.get(), ends[0]);
    FileDescriptor third(ends[1]);
    second = std::move(third);
    EXPECT_EQ(::fcntl(ends[0], F_GETFD), -1) << "assignment closes what was held";
    EXPECT_EQ(second.get(), ends[1]);
  }
  EXPECT_EQ(::fcntl(ends[1], F_GETFD), -1);
}

}  // namespace
}  // namespace kvtrie
