// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/cache_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "shm/crash_point.h"
#include "shm/runtime_directory.h"

namespace kvtrie {
namespace {

constexpr int kAttempts = 100;

MaybeFailure make_directory(const std::string& path, unsigned mode) {
  if (::mkdir(path.c_str(), mode) == 0 || errno == EEXIST) return {};
  const int error = errno;
  if (error != ENOENT) {
    return system_failure(fmt::format("making {} (give another place with --dir)", path), error);
  }
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos || slash == 0) return system_failure("making " + path, error);
  if (MaybeFailure failure = make_directory(path.substr(0, slash), 0755)) return failure;
  return ::mkdir(path.c_str(), mode) == 0 || errno == EEXIST
             ? MaybeFailure{}
             : system_failure("making " + path, errno);
}

// The pid that a coordinator wrote into its lock file, or "unknown".
std::string pid_inside(int fd) {
  char text[32] = {};
  const ssize_t got = ::pread(fd, text, sizeof text - 1, 0);
  std::string pid(text, got > 0 ? static_cast<std::size_t>(got) : 0);
  pid.erase(std::ranges::find_if(pid, [](char c) { return c < '0' || c > '9'; }), pid.end());
  return pid.empty() ? "unknown" : pid;
}

bool is_file_at(int fd, const std::string& path) {
  struct stat open_one {};
  struct stat there {};
  return fd >= 0 && ::fstat(fd, &open_one) == 0 && ::stat(path.c_str(), &there) == 0 &&
         open_one.st_dev == there.st_dev && open_one.st_ino == there.st_ino;
}

}  // namespace

MaybeFailure CacheDirectory::lock(const std::string& directory, const std::string& cache,
                                  unsigned mode, CacheDirectory& locked) {
  const std::string path = cache_directory_path(directory, cache);
  const std::string file = lock_path(directory, cache);
  FileDescriptor fd;
  // `kvtrie destroy` takes the file away while it holds the lock: what we locked must still be the
  // file there.
  for (int attempt = 0; !is_file_at(fd.get(), file); ++attempt) {
    if (attempt == kAttempts) return Failure{fmt::format("{} is taken away again and again", file)};
    if (MaybeFailure failure = make_directory(path, directory_mode(mode))) return failure;
    fd = FileDescriptor(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!fd.open() && errno == ENOENT) continue;
    if (!fd.open()) return system_failure("opening " + file, errno);
    KVTRIE_CRASH_POINT("directory.before_lock");
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) continue;
    if (errno != EWOULDBLOCK) return system_failure("locking " + file, errno);
    return Failure{
        fmt::format("another coordinator (pid {}) serves cache '{}' in {}; stop it first",
                    pid_inside(fd.get()), cache, path),
        kExitOtherRunning};
  }
  const std::string pid = fmt::format("{}\n", ::getpid());
  if (::ftruncate(fd.get(), 0) != 0 ||
      ::pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return system_failure("writing " + file, errno);
  }
  // The umask may have taken bits away, and --mode may have changed since the last start.
  if (::chmod(path.c_str(), directory_mode(mode)) != 0)
    return system_failure("chmod " + path, errno);
  locked.path_ = path;
  locked.lock_ = std::move(fd);
  return {};
}

}  // namespace kvtrie
