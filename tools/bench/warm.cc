// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/warm.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tools/bench/floors.h"
#include "tools/replay/random.h"

namespace kvtrie::bench {
namespace {

constexpr std::uintptr_t kPageBytes = 4096;
constexpr std::uintptr_t kLeastBytes = 256 * 1024;  // of a mapping worth looking at

// A piece at a time: another thread may end a mapping meanwhile, and mincore then says so.
constexpr std::uintptr_t kPieceBytes = 64 * 1024 * 1024;

void warm(std::uintptr_t first, std::uintptr_t end) {
  std::vector<unsigned char> present((end - first) / kPageBytes);
  if (::mincore(reinterpret_cast<void*>(first), end - first, present.data()) != 0) return;
  for (std::size_t i = 0; i < present.size(); ++i) {
    if ((present[i] & 1) != 0) keep(*reinterpret_cast<const volatile unsigned char*>(first + i * kPageBytes));
  }
}

}  // namespace

void warm_memory() {
  std::ifstream maps("/proc/self/maps");
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> readable;
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t first = 0, end = 0;
    char rights[5] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &first, &end, rights) != 3) continue;
    if (rights[0] == 'r' && end - first >= kLeastBytes) readable.emplace_back(first, end);
  }
  for (const auto& [first, end] : readable) {
    for (std::uintptr_t at = first; at < end; at += kPieceBytes) warm(at, std::min(end, at + kPieceBytes));
  }
}

Spread idle_lines_us(double idle_seconds, std::uint32_t lines) {
  constexpr std::size_t kBytes = 256 * 1024 * 1024;
  void* const memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* const bytes = static_cast<volatile unsigned char*>(memory);
  for (std::size_t at = 0; at < kBytes; at += kPageBytes) bytes[at] = 1;
  std::this_thread::sleep_for(std::chrono::duration<double>(idle_seconds));
  replay::Random random(lines);
  std::vector<double> us;
  for (std::uint32_t i = 0; i < lines; ++i) {
    const std::size_t at = random.below(kBytes);
    us.push_back(time_ns([&] { keep(bytes[at]); }) / 1e3);
  }
  ::munmap(memory, kBytes);
  return spread_of(std::move(us));
}

}  // namespace kvtrie::bench
