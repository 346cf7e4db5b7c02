// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "shm/shared_object.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/interprocess/permissions.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <memory>
#include <string_view>
#include <utility>

#include "shm/format.h"

namespace kvtrie {
namespace {

namespace bip = boost::interprocess;

constexpr char kShmDirectory[] = "/dev/shm/";
constexpr int kClaimTries = 16;

// What mapped_region wants of a memory source, for a descriptor that came over a socket.
struct DescriptorSource {
  int fd;
  bip::mapping_handle_t get_mapping_handle() const {
    return bip::ipcdetail::mapping_handle_from_file_handle(fd);
  }
};

std::string temporary(const std::string& name) { return name + ".tmp"; }

}  // namespace

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.release();
  }
  return *this;
}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

std::string segment_object_name(const std::string& cache) {
  return fmt::format("kvtrie.{}.v{}.seg", cache, kLayoutVersion);
}

std::string pool_object_name(const std::string& cache, std::uint32_t plane) {
  return fmt::format("kvtrie.{}.v{}.pool{}", cache, kLayoutVersion, plane);
}

std::string queue_object_name(const std::string& cache) {
  return fmt::format("kvtrie.{}.v{}.queue", cache, kLayoutVersion);
}

std::vector<std::uint32_t> other_layouts_of(const std::string& cache) {
  std::vector<std::uint32_t> found;
  const std::string prefix = fmt::format("kvtrie.{}.v", cache);
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir("/dev/shm"),
                                                      [](DIR* open) { return ::closedir(open); });
  while (const dirent* const entry = directory ? ::readdir(directory.get()) : nullptr) {
    const std::string_view name = entry->d_name;
    if (!name.starts_with(prefix) || !name.ends_with(".seg")) continue;
    const std::string_view number = name.substr(prefix.size(), name.size() - prefix.size() - 4);
    std::uint32_t version = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), version);
    const bool whole = error == std::errc() && end == number.data() + number.size();
    if (whole && version != kLayoutVersion) found.push_back(version);
  }
  std::ranges::sort(found);
  return found;
}

std::string cache_name_problem(const std::string& cache) {
  const bool good = std::ranges::all_of(cache, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
  if (cache.empty() || cache.size() > 63 || !good || cache.front() == '.') {
    return fmt::format("cache name '{}': use 1 to 63 of A-Z a-z 0-9 . _ - and no dot in front", cache);
  }
  return {};
}

Status reserve_object(int fd, std::uint64_t bytes, unsigned mode) {
  // The umask may have taken bits away that the operator asked for.
  int rc = ::fchmod(fd, mode) == 0 ? 0 : errno;
  while (rc == 0 || rc == EINTR) {  // a signal interrupts the reserving of a large pool
    rc = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes));
    if (rc != EINTR) break;
  }
  if (rc == 0) return {};
  return {Code::kSystem,
          rc == ENOSPC ? "/dev/shm has not enough free memory for this cache; make it larger "
                         "(mount -o remount,size=...) or ask for fewer or smaller pages"
                       : "reserving memory in /dev/shm",
          rc};
}

Result<FileDescriptor> create_object(const std::string& name, std::uint64_t bytes, unsigned mode,
                                     const std::function<Status(int fd)>& place) {
  const std::string made = temporary(name);
  bip::shared_memory_object::remove(made.c_str());
  try {
    bip::permissions permissions(mode);
    bip::shared_memory_object object(bip::create_only, made.c_str(), bip::read_write, permissions);
    FileDescriptor fd(::fcntl(object.get_mapping_handle().handle, F_DUPFD_CLOEXEC, 0));
    Status status = fd.open() ? Status{} : Status{Code::kSystem, "duplicating a descriptor", errno};
    if (status && place) status = place(fd.get());
    if (status) status = reserve_object(fd.get(), bytes, mode);
    if (status) return fd;
    bip::shared_memory_object::remove(made.c_str());
    return status;
  } catch (const bip::interprocess_exception& failure) {
    return Status{Code::kSystem, "making an object in /dev/shm", failure.get_native_error()};
  }
}

Result<FileDescriptor> claim_object(const std::string& name) {
  const std::string path = kShmDirectory + temporary(name);
  for (int i = 0; i < kClaimTries; ++i) {
    FileDescriptor fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    const bool made = fd.open();
    if (!made && errno == EEXIST) fd = FileDescriptor(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (!fd.open() && errno == ENOENT) continue;
    if (!fd.open()) return Status{Code::kSystem, "making an object in /dev/shm", errno};
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return Status{Code::kBusy, "somebody else is making it", errno};
      return Status{Code::kSystem, "locking an object in /dev/shm", errno};
    }
    struct stat mine {};
    struct stat there {};
    const bool still = ::fstat(fd.get(), &mine) == 0 && ::stat(path.c_str(), &there) == 0 &&
                       mine.st_ino == there.st_ino;
    if (!still) continue;  // renamed or thrown away before we had its lock
    if (made) return fd;
    ::unlink(path.c_str());  // left by a death; only who has its lock does this
  }
  return Status{Code::kBusy, "somebody else is making it"};
}

Status publish_object(const std::string& name) {
  const std::string from = kShmDirectory + temporary(name);
  const std::string to = kShmDirectory + name;
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return {Code::kSystem, "renaming a whole object in /dev/shm", errno};
  }
  return {};
}

Result<FileDescriptor> open_temporary(const std::string& name, Access access) {
  return open_object(temporary(name), access);
}

Result<FileDescriptor> open_object(const std::string& name, Access access) {
  const std::string path = kShmDirectory + name;
  const int mode = access == Access::kReadOnly ? O_RDONLY : O_RDWR;
  // Anybody may put anything at a name in /dev/shm: not to wait for a pipe's other end, not to follow a link.
  FileDescriptor fd(::open(path.c_str(), mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  if (!fd.open() && errno == ENOENT) return Status{Code::kNotFound, "no such object in /dev/shm", errno};
  if (!fd.open()) return Status{Code::kSystem, "opening an object in /dev/shm", errno};
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return Status{Code::kSystem, "fstat of a shared object", errno};
  if (!S_ISREG(info.st_mode)) return Status{Code::kRefused, "what is at that name in /dev/shm is no file"};
  // Who owns it can cut it short or read what is written to it.
  if (access == Access::kReadWrite && info.st_uid != ::geteuid()) {
    return Status{Code::kRefused, "the object in /dev/shm belongs to another user: run as that user, or remove it"};
  }
  return fd;
}

bool discard_object(const std::string& name) {
  return bip::shared_memory_object::remove(temporary(name).c_str());
}

bool remove_object(const std::string& name) {
  const bool whole = bip::shared_memory_object::remove(name.c_str());
  const bool temp = discard_object(name);
  return whole || temp;
}

Result<std::uint64_t> object_bytes(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return Status{Code::kSystem, "fstat of a shared object", errno};
  return static_cast<std::uint64_t>(info.st_size);
}

Mapping::Mapping(Mapping&& other) noexcept
    : region_(std::move(other.region_)), kept_(other.kept_.load(std::memory_order_relaxed)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this == &other) return *this;
  leave_if_kept();
  region_ = std::move(other.region_);
  kept_.store(other.kept_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  return *this;
}

Mapping::~Mapping() { leave_if_kept(); }

// Moved to where nobody destroys it. Without memory for that, ending is all that is left.
void Mapping::leave_if_kept() {
  struct Kept {
    bip::mapped_region region;
    Kept* next;
  };
  static std::atomic<Kept*> all{nullptr};  // so that they are not lost, for leak checkers
  if (!kept_.load(std::memory_order_relaxed)) return;
  auto* const kept = new Kept{std::move(region_), all.load()};
  while (!all.compare_exchange_weak(kept->next, kept)) {
  }
}

Result<Mapping> Mapping::map(int fd, std::uint64_t bytes, Access access) {
  const Result<std::uint64_t> there = object_bytes(fd);
  if (!there) return there.error();
  if (bytes == 0 || *there < bytes) {
    return Status{Code::kCorrupt, "the object is smaller than it should be", 0};
  }
  try {
    Mapping mapping;
    mapping.region_ = bip::mapped_region(
        DescriptorSource{fd}, access == Access::kReadOnly ? bip::read_only : bip::read_write, 0,
        static_cast<std::size_t>(bytes));
    if (::madvise(mapping.region_.get_address(), mapping.region_.get_size(), MADV_DONTFORK) != 0) {
      return Status{Code::kSystem, "madvise(MADV_DONTFORK)", errno};
    }
    return mapping;
  } catch (const bip::interprocess_exception& failure) {
    return Status{Code::kSystem, "mapping a shared object", failure.get_native_error()};
  }
}

}  // namespace kvtrie
