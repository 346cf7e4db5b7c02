// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/arena.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

constexpr std::size_t kArenaBytes = std::size_t{4} << 20;
constexpr std::size_t kGrain = 64;

alignas(kGrain) std::byte memory[kArenaBytes];
std::size_t used = 0;
bool active = false;

void* allocate(std::size_t bytes) {
  if (!active) return std::malloc(bytes);
  const std::size_t at = used;
  used += (bytes + kGrain - 1) / kGrain * kGrain;
  return used <= kArenaBytes ? memory + at : nullptr;
}

bool in_arena(const void* p) { return p >= memory && p < memory + kArenaBytes; }

}  // namespace

namespace kvtrie::test {
void use_arena() { active = true; }
}  // namespace kvtrie::test

void* operator new(std::size_t bytes) {
  if (void* p = allocate(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept {
  if (!in_arena(p)) std::free(p);
}
void operator delete(void* p, std::size_t) noexcept { operator delete(p); }
