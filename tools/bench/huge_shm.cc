// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/huge_shm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace kvtrie::bench {

namespace {

// What failed; empty: nothing did.
std::string enter(FileDescriptor& before) {
  const auto failed = [](const char* what) { return fmt::format("{}: {}", what, std::strerror(errno)); };
  FileDescriptor outside(::open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC));
  if (!outside.open() || ::unshare(CLONE_NEWNS) != 0) return failed("a mount namespace, which needs root");
  before = std::move(outside);
  // Else the mount would be seen outside.
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return failed("making mounts private");
  if (::mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "huge=advise,mode=1777,size=90%") == 0) return {};
  return failed("mounting /dev/shm with huge=advise");
}

}  // namespace

HugeShm::HugeShm() : problem_(enter(before_)) {}

HugeShm::~HugeShm() {
  if (before_.open()) (void)::setns(before_.get(), CLONE_NEWNS);
}

}  // namespace kvtrie::bench
