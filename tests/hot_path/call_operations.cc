// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// The operations that must make no system call, in a cache that a kvtried serves:
//
//   call_operations PLUGIN DIRECTORY CACHE
//
// Each is done often between two marks that strace shows: a write to no descriptor, of the
// operation's name and of "end". The last makes system calls, so that who looks can see that he
// would see them.

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <exception>

#include "tests/hot_path/plugin_calls.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kPromptPages = 2048;
constexpr unsigned kTimes = 100;

void mark(const char* text) {
  if (::write(-1, text, std::strlen(text)) == 0) throw std::runtime_error("wrote to no descriptor");
}

// Done before, so that nothing is first: memory of the C library's heap that such a call needs is
// there.
template <typename Once>
void operation(const char* name, Once once) {
  for (unsigned i = 0; i < 4; ++i)
    once();
  mark(name);
  for (unsigned i = 0; i < kTimes; ++i)
    once();
  mark("end");
}

void run(const char* plugin, const char* directory, const char* cache) {
  const PluginLibrary library(plugin);
  const PluginCalls calls(library, directory, cache);
  const auto prompt = &PluginCalls::prompt;
  const Tokens cached = prompt(1, kPromptPages);
  calls.cache(cached);
  Tokens half(cached.begin(), cached.begin() + static_cast<std::ptrdiff_t>(cached.size() / 2));
  const Tokens other = prompt(2, kPromptPages / 2);
  half.insert(half.end(), other.begin(), other.end());
  const Tokens missed = prompt(3, kPromptPages);
  std::vector<std::uint64_t> hashes(kPromptPages);
  calls.hash(cached, hashes);
  std::vector<Tokens> fresh;
  for (std::uint32_t i = 0; i < 4 + kTimes; ++i)
    fresh.push_back(prompt(100 + i, 16));
  std::size_t next = 0;

  operation("begin, hit", [&] { calls.hit(cached); });
  operation("begin, half hit", [&] { calls.look_up(half, kPromptPages / 2); });
  operation("begin, miss", [&] { calls.look_up(missed, 0); });
  operation("probe", [&] { calls.probe(cached, kPromptPages); });
  operation("hash_tokens", [&] { calls.hash(cached, hashes); });
  operation("probe_hashes", [&] { calls.probe_hashes(hashes, kPromptPages); });
  operation("allocate, publish, release", [&] { calls.cache(fresh.at(next++)); });
  operation("allocate, release", [&] {
    kvtrie_sequence sequence{};
    (void)calls.begin(missed, sequence);
    calls.allocate(sequence, 256 * kTokensPerPage);
    calls.release(sequence);
  });
  kvtrie_sequence parent{};
  (void)calls.begin(cached, parent);
  operation("fork", [&] { calls.fork_and_release(parent); });
  calls.allocate(parent, cached.size() + 40);  // pages of its own, which a fork copies
  operation("fork with copies", [&] { calls.fork_and_release(parent); });
  calls.release(parent);

  auto wait = sized<kvtrie_allocate_options>();
  wait.wait_ms = 1;
  kvtrie_sequence large{};
  (void)calls.begin(missed, large);
  kvtrie_sequence rest{};
  (void)calls.begin({}, rest);
  calls.allocate(rest, std::size_t{kPromptPages} * kTokensPerPage);
  mark("allocate, waits");
  // More than are free: whether the evictor makes room in time or not, it is asked to.
  (void)calls.api().allocate(large, std::size_t{2} * kPromptPages * kTokensPerPage, &wait);
  mark("end");
  calls.release(rest);
  calls.release(large);
  calls.must(calls.api().detach(calls.worker()), "detach");
}

}  // namespace
}  // namespace kvtrie::test

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: call_operations PLUGIN DIRECTORY CACHE");
  kvtrie::test::run(argv[1], argv[2], argv[3]);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "call_operations: %s\n", error.what());
  return 1;
}
