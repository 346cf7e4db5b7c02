// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/prefault.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

namespace kvtrie {
namespace {

constexpr std::uint64_t kPieceBytes = 4 << 20;  // some milliseconds: bounds how long the end waits
#ifdef MADV_POPULATE_WRITE
constexpr int kPopulateWrite = MADV_POPULATE_WRITE;
#else
constexpr int kPopulateWrite = 23;  // older headers; the kernel decides
#endif

}  // namespace

Prefault::~Prefault() { stop(); }

void Prefault::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  if (thread_.joinable()) thread_.join();
}

MaybeFailure Prefault::start(std::vector<PrefaultObject> objects) {
  objects_ = std::move(objects);
  for (const PrefaultObject& object : objects_)
    total_ += object.size_bytes;
  ended_ = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!ended_.open()) return system_failure("eventfd", errno);
  // The new thread inherits the mask: signals are the loop's.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return {};
}

void Prefault::run() {
  // Of this thread only, on Linux. When it fails, the work is done at ordinary priority.
  (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 19);
  const auto start = std::chrono::steady_clock::now();
  for (const PrefaultObject& object : objects_) {
    if (error_ == 0) error_ = populate(object);
  }
  objects_.clear();
  const auto took = std::chrono::steady_clock::now() - start;
  took_ms_ = std::chrono::duration_cast<std::chrono::milliseconds>(took).count();
  const std::uint64_t one = 1;
  const ssize_t ignored = ::write(ended_.get(), &one, sizeof one);
  (void)ignored;
}

int Prefault::populate(const PrefaultObject& object) {
  for (std::uint64_t at = 0; at < object.size_bytes && !stopping_.load(std::memory_order_relaxed);
       at += kPieceBytes) {
    const std::uint64_t bytes = std::min(kPieceBytes, object.size_bytes - at);
    void* piece = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, object.memory.get(),
                         static_cast<off_t>(at));
    if (piece == MAP_FAILED) return errno;
    int rc = 0;
    do {
      rc = ::madvise(piece, bytes, kPopulateWrite) == 0 ? 0 : errno;
    } while (rc == EINTR || rc == EAGAIN);
    ::munmap(piece, bytes);
    if (rc != 0) return rc;
    done_.fetch_add(bytes, std::memory_order_relaxed);
  }
  return 0;
}

std::string Prefault::result() const {
  const PrefaultFigures f = figures();
  if (error_ == 0) return fmt::format("event=prefault bytes={} took_ms={}", f.done_bytes, took_ms_);
  const char* why =
      error_ == EINVAL
          ? "this kernel has no MADV_POPULATE_WRITE (Linux 5.14): workers touch pages first"
          : std::strerror(error_);
  return fmt::format("event=prefault_gave_up bytes={} of={} why=\"{}\"", f.done_bytes,
                     f.total_bytes, why);
}

}  // namespace kvtrie
