// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Every shared mapping of a fuzzed program lies between two pages that nobody may touch, so that a read or write just
// outside the segment, a pool or the copy queue ends the program. The linker sends the calls of mmap and munmap here
// (--wrap, CMakeLists.txt).

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>

extern "C" {
void* __real_mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void* at, std::size_t bytes);
void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void* at, std::size_t bytes);
}

namespace {

constexpr std::size_t kGuardBytes = 64 * 1024;

std::mutex mutex;
std::map<char*, std::size_t>& guarded() {
  static auto* const all = new std::map<char*, std::size_t>;  // it outlives whoever unmaps last
  return *all;
}

std::size_t whole_pages(std::size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (at != nullptr || fd < 0 || (flags & MAP_SHARED) == 0)
    return __real_mmap(at, bytes, protection, flags, fd, offset);
  const std::size_t all = whole_pages(bytes) + 2 * kGuardBytes;
  void* const around = __real_mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (around == MAP_FAILED) return around;
  char* const inside = static_cast<char*>(around) + kGuardBytes;
  void* const made = __real_mmap(inside, bytes, protection, flags | MAP_FIXED, fd, offset);
  if (made == MAP_FAILED) {
    (void)__real_munmap(around, all);
    return made;
  }
  const std::lock_guard lock(mutex);
  guarded()[inside] = all;
  return made;
}

int __wrap_munmap(void* at, std::size_t bytes) {
  std::size_t all = 0;
  {
    const std::lock_guard lock(mutex);
    if (const auto found = guarded().find(static_cast<char*>(at)); found != guarded().end()) {
      all = found->second;
      guarded().erase(found);
    }
  }
  return all == 0 ? __real_munmap(at, bytes) : __real_munmap(static_cast<char*>(at) - kGuardBytes, all);
}
