// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/warm/warm_memory.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace kvtrie {
namespace {

constexpr std::uintptr_t kPageBytes = 4096;
constexpr std::uintptr_t kLeastBytes = 256 * 1024;  // of a mapping worth looking at
constexpr std::uintptr_t kPieceBytes = 64 * 1024 * 1024;
constexpr std::uintptr_t kFileMost = 32 * 1024 * 1024;  // of a file that is kept warm: larger ones are weights

struct Range {
  std::uintptr_t first;
  std::uintptr_t end;
  bool of_large_file;
};

std::vector<Range> readable_memory() {
  std::ifstream maps("/proc/self/maps");
  std::vector<Range> readable;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t first = 0, end = 0;
    char rights[5] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &first, &end, rights) != 3) continue;
    const std::size_t path = line.find('/');
    const bool file = path != std::string::npos && line.compare(path, 9, "/dev/shm/") != 0;
    if (rights[0] == 'r' && end - first >= kLeastBytes) readable.push_back({first, end, file && end - first > kFileMost});
  }
  return readable;
}

// Calls read(address) for each page of the range that is in memory, a piece at a time.
template <typename Read>
void for_each_page(const Range& range, Read read) {
  std::vector<unsigned char> present(kPieceBytes / kPageBytes);
  for (std::uintptr_t at = range.first; at < range.end; at += kPieceBytes) {
    const std::uintptr_t bytes = std::min(kPieceBytes, range.end - at);
    if (::mincore(reinterpret_cast<void*>(at), bytes, present.data()) != 0) return;
    for (std::size_t i = 0; i < bytes / kPageBytes; ++i) {
      if ((present[i] & 1) != 0) read(at + i * kPageBytes);
    }
  }
}

// By the kernel, which answers with an error where another thread has ended the mapping meanwhile.
class KernelReads {
 public:
  ~KernelReads() { finish(); }
  void operator()(std::uintptr_t address) {
    pages_[count_] = {reinterpret_cast<void*>(address), 1};
    if (++count_ == pages_.size()) finish();
  }

 private:
  void finish() {
    std::array<char, 1024> bytes;
    const iovec to{bytes.data(), count_};
    (void)::process_vm_readv(::getpid(), &to, 1, pages_.data(), count_, 0);
    count_ = 0;
  }
  std::array<iovec, 1024> pages_{};
  std::size_t count_ = 0;
};

}  // namespace

void warm_memory() {
  for (const Range& range : readable_memory()) {
    for_each_page(range, [](std::uintptr_t at) { (void)*reinterpret_cast<const volatile unsigned char*>(at); });
  }
}

KeepWarm::KeepWarm(std::chrono::milliseconds pause)
    : thread_([pause](const std::stop_token& stop) {
        while (!stop.stop_requested()) {
          KernelReads read;
          for (const Range& range : readable_memory()) {
            if (!range.of_large_file) for_each_page(range, [&read](std::uintptr_t at) { read(at); });
          }
          std::this_thread::sleep_for(pause);
        }
      }) {}

}  // namespace kvtrie
