// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Replaces the heap of a whole program, its libraries' too. For one source file of a program, which says what goes
// before each allocation.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace kvtrie::test {

void before_allocation();  // may throw std::bad_alloc

// Not inlined: g++ 12 would take the pairs for mismatched.
[[gnu::noinline]] inline void* allocated(std::size_t bytes) {
  before_allocation();
  if (void* const memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace kvtrie::test

void* operator new(std::size_t bytes) { return kvtrie::test::allocated(bytes); }
void* operator new[](std::size_t bytes) { return kvtrie::test::allocated(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
