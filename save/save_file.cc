// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "save/save_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "save/whole_io.h"
#include "shm/crash_point.h"

namespace kvtrie {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;

Status failed(const char* what) { return {Code::kSystem, what, errno}; }

// Whether `path` still names what `fd` has open: another save
// may have renamed it before we had the lock.
bool same_file(int fd, const std::string& path) {
  struct stat ours {};
  struct stat named {};
  return ::fstat(fd, &ours) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         ours.st_dev == named.st_dev && ours.st_ino == named.st_ino;
}

// The name of a renamed file is on the disk only when its directory is.
Status sync_directory_of(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const FileDescriptor directory(
      ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.open() || ::fsync(directory.get()) != 0) return failed("syncing the directory");
  return {};
}

}  // namespace

Result<SaveFile> SaveFile::create(const std::string& path) {
  const std::string name = path + ".tmp";
  FileDescriptor fd(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.open()) return failed("making the temporary file");
  const bool locked = ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
  if (!locked && errno != EWOULDBLOCK) return failed("locking the temporary file");
  if (!locked || !same_file(fd.get(), name)) {
    return Status{Code::kBusy, "another save writes this file at the moment"};
  }
  // One that somebody else made, or made readable for others, would give the pages away.
  struct stat about {};
  if (::fstat(fd.get(), &about) != 0 || about.st_uid != ::geteuid()) {
    return Status{Code::kRefused, "FILE.tmp belongs to another user; remove it, or save elsewhere"};
  }
  SaveFile file(path, std::move(fd));
  if (::fchmod(file.file_.get(), 0600) != 0 || ::ftruncate(file.file_.get(), 0) != 0) {
    return failed("emptying the temporary file");
  }
  return file;
}

SaveFile::~SaveFile() {
  if (file_.open()) ::unlink(temporary().c_str());
}

Status SaveFile::append(std::span<const std::byte> bytes) {
  if (buffer_.size() + bytes.size() > kBufferBytes) {
    if (Status status = flush(); !status) return status;
  }
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  return {};
}

Status SaveFile::flush() {
  if (Status status = write_at(file_.get(), buffered_from_, buffer_); !status) return status;
  buffered_from_ += buffer_.size();
  buffer_.clear();
  return {};
}

void SaveFile::go_back_to(std::uint64_t size) {
  if (size >= buffered_from_) {
    buffer_.resize(static_cast<std::size_t>(size - buffered_from_));
    return;
  }
  buffer_.clear();
  buffered_from_ = size;
}

Status SaveFile::commit() {
  if (Status status = flush(); !status) return status;
  // Bytes behind the end are there when it was gone back to last.
  if (::ftruncate(file_.get(), static_cast<off_t>(buffered_from_)) != 0 ||
      ::fsync(file_.get()) != 0) {
    return failed("syncing the file");
  }
  KVTRIE_CRASH_POINT("save.before_rename");
  if (std::rename(temporary().c_str(), path_.c_str()) != 0) return failed("renaming the file");
  file_ = {};
  return sync_directory_of(path_);
}

}  // namespace kvtrie
