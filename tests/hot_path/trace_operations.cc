// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One worker of two whose memory accesses are compared (written_lines_test.cc):
//
//   trace_operations PLUGIN DIRECTORY CACHE cache     caches the prompt, and ends
//   trace_operations PLUGIN DIRECTORY CACHE           says "ready"; when it is told a tick, does
//   each phase; then says
//                                                     where it has the segment, and "done"; ends
//                                                     with its input

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>

#include "shm/shared_object.h"
#include "tests/hot_path/plugin_calls.h"
#include "tests/hot_path/written_lines.h"

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kPromptPages = 64;

volatile char* phase_marks() {
  void* const wanted = reinterpret_cast<void*>(kPhaseMarks);
  if (::mmap(wanted, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
             0) != wanted) {
    throw std::runtime_error("no memory for the marks");
  }
  return static_cast<volatile char*>(wanted);
}

void say_where(const char* cache) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/" + segment_object_name(cache)) != std::string::npos)
      std::printf("segment %s\n", line.c_str());
  }
}

void run(const char* plugin, const char* directory, const char* cache, bool only_cache) {
  const PluginLibrary library(plugin);
  const PluginCalls calls(library, directory, cache);
  const Tokens prompt = PluginCalls::prompt(1, kPromptPages);
  if (only_cache) {
    calls.cache(prompt);
    calls.must(calls.api().detach(calls.worker()), "detach");
    return;
  }
  volatile char* const marks = phase_marks();
  const auto begin = [&](Phase phase) { marks[static_cast<std::size_t>(phase)] = 1; };
  calls.hit(prompt);
  std::printf("ready\n");
  std::fflush(stdout);
  std::uint32_t tick = 0;
  if (!(std::cin >> tick)) throw std::runtime_error("was told no tick");
  calls.must(calls.api().drive_clock(calls.worker(), tick), "drive_clock");
  const Tokens mine = PluginCalls::prompt(tick, 1);

  begin(Phase::kFirstHit);
  calls.hit(prompt);
  begin(Phase::kSecondHit);
  calls.hit(prompt);
  begin(Phase::kPublish);
  calls.cache(mine);
  begin(Phase::kRest);

  say_where(cache);
  kvtrie_sequence sequence{};
  std::uint32_t deepest = 0;
  (void)calls.begin(prompt, sequence);
  calls.must(calls.api().get_pages(sequence, kPromptPages - 1, 1, &deepest), "get_pages");
  calls.release(sequence);
  std::printf("deepest %u\ndone\n", deepest);
  std::fflush(stdout);
  std::cin.ignore(1 << 20, '.');  // none comes: up to the end
  calls.must(calls.api().detach(calls.worker()), "detach");
}

}  // namespace
}  // namespace kvtrie::test

int main(int argc, char** argv) try {
  if (argc != 4 && argc != 5)
    throw std::runtime_error("usage: trace_operations PLUGIN DIRECTORY CACHE [cache]");
  kvtrie::test::run(argv[1], argv[2], argv[3], argc == 5);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "trace_operations: %s\n", error.what());
  return 1;
}
