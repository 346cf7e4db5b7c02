// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/board.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>

namespace kvtrie::engine {
namespace {

constexpr std::uint64_t kMagic = 0x0144'5242'4756'4B52ULL;

constexpr std::uint64_t aligned(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

}  // namespace

Board::Board(const RunSettings& settings, std::uint32_t requests, std::uint32_t workers) {
  fd_ = ::memfd_create("kvtrie-engine-board", MFD_CLOEXEC);
  if (fd_ < 0) fail("memfd_create");
  const std::uint64_t bytes =
      aligned(sizeof(Header)) + aligned(requests * sizeof(RequestRecord)) + workers * sizeof(WorkerTally);
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) fail("the board's memory");
  map(bytes);
  header_->bytes = bytes;
  header_->requests = requests;
  header_->workers = workers;
  header_->settings = settings;
  header_->magic = kMagic;
  find_parts();
}

Board::Board(int fd) : fd_(fd) {
  struct stat state {};
  if (::fstat(fd, &state) != 0) fail("the board that the parent should have left");
  if (static_cast<std::uint64_t>(state.st_size) < sizeof(Header)) {
    throw std::runtime_error("not a board: workers are started by kvtrie-engine itself");
  }
  map(static_cast<std::uint64_t>(state.st_size));
  if (header_->magic != kMagic || header_->bytes != bytes_) {
    throw std::runtime_error("not a board: workers are started by kvtrie-engine itself");
  }
  find_parts();
}

Board::~Board() {
  if (header_ != nullptr) ::munmap(header_, bytes_);
  if (fd_ >= 0) ::close(fd_);
}

void Board::map(std::uint64_t bytes) {
  void* address = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (address == MAP_FAILED) fail("mapping the board");
  header_ = static_cast<Header*>(address);
  bytes_ = bytes;
}

void Board::find_parts() {
  auto* base = reinterpret_cast<std::byte*>(header_);
  records_ = reinterpret_cast<RequestRecord*>(base + aligned(sizeof(Header)));
  tallies_ =
      reinterpret_cast<WorkerTally*>(base + aligned(sizeof(Header)) + aligned(requests() * sizeof(RequestRecord)));
}

bool Board::own(std::uint32_t index, std::uint32_t worker) {
  std::uint32_t open = RequestRecord::kOpen;
  if (record(index).owner.load(std::memory_order_relaxed) != open) return false;
  if (!record(index).owner.compare_exchange_strong(open, worker + 1)) return false;
  record(index).attempts.fetch_add(1);
  return true;
}

std::optional<std::uint32_t> Board::take(std::uint32_t worker) {
  if (settings().same_tokens > 0) {
    const std::uint32_t group = finished() / workers();
    const std::uint32_t index = group * workers() + worker;
    // A slow worker is the one that announces.
    const auto& begun = tally(0).counts[static_cast<std::size_t>(Count::kBatches)];
    if (settings().slow_worker > 1 && worker > 0 && begun.load() <= group) return {};
    if (index < requests() && own(index, worker)) return index;
    return {};
  }
  const std::uint32_t first = header_->first_open.load(std::memory_order_acquire);
  for (std::uint32_t index = first; index < requests(); ++index) {
    if (!own(index, worker)) continue;
    header_->first_open.store(index + 1, std::memory_order_release);
    return index;
  }
  // The hint may have been raised over one that the parent opened at the same moment.
  for (std::uint32_t index = 0; index < first; ++index) {
    if (own(index, worker)) return index;
  }
  return {};
}

void Board::finish(std::uint32_t index) {
  record(index).owner.store(RequestRecord::kDone, std::memory_order_release);
  header_->finished.fetch_add(1, std::memory_order_acq_rel);
}

void Board::reopen(std::uint32_t worker) {
  for (std::uint32_t index = 0; index < requests(); ++index) {
    std::uint32_t owner = worker + 1;
    record(index).owner.compare_exchange_strong(owner, RequestRecord::kOpen);
  }
  header_->first_open.store(0, std::memory_order_release);
}

std::uint64_t now_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

}  // namespace kvtrie::engine
