// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/small_shm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

namespace kvtrie::replay {
namespace {

constexpr std::uint64_t kPiece = std::uint64_t{2} << 20;
constexpr std::uint64_t kLastPiece = 4096;
constexpr auto kFullFor = std::chrono::milliseconds(700);
constexpr auto kEmptyFor = std::chrono::milliseconds(300);

[[noreturn]] void fail(const char* what) {
  throw std::runtime_error(fmt::format(
      "--fill-shm: {}: {}: it needs a mount namespace of its own: root (CAP_SYS_ADMIN), or user namespaces", what,
      std::strerror(errno)));
}

void write_text(const char* path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  if (!file) fail(path);
}

void enter_mount_namespace() {
  if (::unshare(CLONE_NEWNS) == 0) return;
  const uid_t uid = ::getuid();
  const gid_t gid = ::getgid();
  if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) fail("unshare");
  write_text("/proc/self/setgroups", "deny");
  write_text("/proc/self/uid_map", fmt::format("{} {} 1", uid, uid));
  write_text("/proc/self/gid_map", fmt::format("{} {} 1", gid, gid));
}

}  // namespace

SmallShm::SmallShm() : piece_(kPiece) {
  enter_mount_namespace();
  // Else the mount would be seen outside.
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) fail("making mounts private");
  const std::string size = fmt::format("size={},mode=1777", kBytes);
  if (::mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, size.c_str()) != 0) fail("mounting /dev/shm");
  filler_ = FileDescriptor(::open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!filler_.open()) fail("/dev/shm");
}

void SmallShm::step() {
  if (std::chrono::steady_clock::now() < next_) return;
  if (piece_ == 0) {
    if (::ftruncate(filler_.get(), 0) != 0) fail("emptying /dev/shm");
    size_ = 0;
    piece_ = kPiece;
    next_ = std::chrono::steady_clock::now() + kEmptyFor;
    return;
  }
  const int error = ::posix_fallocate(filler_.get(), static_cast<off_t>(size_), static_cast<off_t>(piece_));
  if (error == 0) {
    size_ += piece_;
    return;
  }
  if (error != ENOSPC) {
    errno = error;
    fail("filling /dev/shm");
  }
  piece_ = piece_ == kPiece ? kLastPiece : 0;
  if (piece_ != 0) return;
  ++times_full_;
  next_ = std::chrono::steady_clock::now() + kFullFor;
}

}  // namespace kvtrie::replay
