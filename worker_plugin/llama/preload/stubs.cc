// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The symbols that programs find. Each asks where its call goes, and jumps there with all of the
// program's arguments untouched, whatever they are: another llama.cpp has other ones, and
// structures by value of another size.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <type_traits>

#include "worker_plugin/llama/preload/process.h"

namespace kvtrie::llama {

// Read by the code below: two words.
template <typename Ours>
struct Slot {
  Place place;
  Ours* ours;
};
static_assert(std::is_standard_layout_v<Slot<void()>> && sizeof(Slot<void()>) == 16);

namespace {

// As the loader would say it, had the program's symbol not been found here.
[[noreturn]] void is_missing() {
  std::fputs("kvtrie: symbol lookup error: the libllama in this process lacks a function that is called\n", stderr);
  ::_exit(127);
}

}  // namespace
}  // namespace kvtrie::llama

extern "C" {

// NULL: to ours.
__attribute__((used, visibility("hidden"))) kvtrie::llama::Function kvtrie_route(const kvtrie::llama::Place* place,
                                                                                 const void* caller) noexcept {
  using kvtrie::llama::Process;
  const kvtrie::llama::Copy& copy = Process::get().copy_for(*place, caller);
  if (Process::get().looks_at(copy)) return nullptr;
  const kvtrie::llama::Function real = copy.functions[static_cast<std::size_t>(*place)];
  return real != nullptr ? real : &kvtrie::llama::is_missing;
}

#define KVTRIE_LLAMA_SLOT(name, ...)                                                                    \
  extern const kvtrie::llama::Slot<decltype(kvtrie::llama::interposed::name)> kvtrie_slot_##name;       \
  constinit const kvtrie::llama::Slot<decltype(kvtrie::llama::interposed::name)> kvtrie_slot_##name = { \
      kvtrie::llama::Place::name, &kvtrie::llama::interposed::name};
KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_SLOT)
KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_SLOT)
#undef KVTRIE_LLAMA_SLOT

}  // extern "C"

// %r11: the slot. All registers that arguments may be in are as before, and %rax, which counts vector registers.
// clang-format off
__asm__(
    ".text\n"
    ".type kvtrie_jump, @function\n"
    "kvtrie_jump:\n"
    "  .cfi_startproc\n"
    "  push %rdi\n  push %rsi\n  push %rdx\n  push %rcx\n  push %r8\n  push %r9\n  push %rax\n  push %r11\n"
    "  .cfi_adjust_cfa_offset 64\n"
    "  mov 64(%rsp), %rsi\n"  // where the caller goes on
    "  sub $136, %rsp\n"
    "  .cfi_adjust_cfa_offset 136\n"
    "  movups %xmm0, (%rsp)\n  movups %xmm1, 16(%rsp)\n  movups %xmm2, 32(%rsp)\n  movups %xmm3, 48(%rsp)\n"
    "  movups %xmm4, 64(%rsp)\n  movups %xmm5, 80(%rsp)\n  movups %xmm6, 96(%rsp)\n  movups %xmm7, 112(%rsp)\n"
    "  mov %r11, %rdi\n"
    "  call kvtrie_route\n"
    "  mov %rax, %r10\n"
    "  movups (%rsp), %xmm0\n  movups 16(%rsp), %xmm1\n  movups 32(%rsp), %xmm2\n  movups 48(%rsp), %xmm3\n"
    "  movups 64(%rsp), %xmm4\n  movups 80(%rsp), %xmm5\n  movups 96(%rsp), %xmm6\n  movups 112(%rsp), %xmm7\n"
    "  add $136, %rsp\n"
    "  .cfi_adjust_cfa_offset -136\n"
    "  pop %r11\n  pop %rax\n  pop %r9\n  pop %r8\n  pop %rcx\n  pop %rdx\n  pop %rsi\n  pop %rdi\n"
    "  .cfi_adjust_cfa_offset -64\n"
    "  test %r10, %r10\n"
    "  cmovz 8(%r11), %r10\n"
    "  jmp *%r10\n"
    "  .cfi_endproc\n"
    ".size kvtrie_jump, .-kvtrie_jump\n");

#define KVTRIE_LLAMA_STUB(name) KVTRIE_LLAMA_STUB_CPP(name, name)
#define KVTRIE_LLAMA_STUB_CPP(name, symbol)           \
  __asm__(".text\n"                                   \
          ".globl " #symbol "\n"                      \
          ".type " #symbol ", @function\n"            \
          #symbol ":\n"                               \
          "  lea kvtrie_slot_" #name "(%rip), %r11\n" \
          "  jmp kvtrie_jump\n"                       \
          ".size " #symbol ", .-" #symbol "\n");
KVTRIE_LLAMA_INTERPOSED(KVTRIE_LLAMA_STUB)
KVTRIE_LLAMA_INTERPOSED_CPP(KVTRIE_LLAMA_STUB_CPP)
// clang-format on
