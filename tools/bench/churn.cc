// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/churn.h"

#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tools/bench/prompts.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kPromptPages = 256;
constexpr std::uint64_t kPartEvicted = 256;  // of the cache: then the evictor is at work
constexpr auto kLimit = std::chrono::seconds(60);  // first it takes what is free
constexpr auto kRestLimit = std::chrono::seconds(3);
constexpr int kStopsMax = 4;

void write_for_ever(const Settings& settings, const BenchCache& cache) {
  const BenchWorker worker(settings, cache.own(), cache.model());
  const replay::Plugin& plugin = worker.plugin();
  std::vector<std::uint32_t> tokens =
      random_tokens(~std::uint64_t{99}, std::size_t{kPromptPages} * kTokensPerPage);
  kvtrie_allocate_options wait{};
  wait.size = sizeof wait;
  wait.wait_ms = 10'000;
  ::raise(SIGSTOP);
  for (;; ++tokens[0]) {
    std::uint32_t cached = 0;
    const kvtrie_sequence sequence = worker.begin(tokens, cached);
    plugin.expect(plugin->allocate(sequence, tokens.size(), &wait), "allocate");
    plugin.expect(plugin->publish(sequence, tokens.size(), nullptr), "publish");
    worker.release(sequence);
  }
}

[[noreturn]] void be_writer(const Settings& settings, const BenchCache& cache) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    write_for_ever(settings, cache);
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvtrie-bench: the writer: {}\n", error.what());
  }
  std::fflush(nullptr);
  ::_exit(1);
}

}  // namespace

Churn::Churn(const Settings& settings, const BenchCache& cache) : observer_(cache.own().name()) {
  if (::sched_getaffinity(0, sizeof allowed_, &allowed_) != 0)
    throw std::runtime_error("sched_getaffinity");
  std::fflush(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) be_writer(settings, cache);
  if (pid_ < 0) throw std::runtime_error("fork failed");
  await_stop();
  if (CPU_COUNT(&allowed_) < 2) return;
  int mine = 0;
  while (!CPU_ISSET(mine, &allowed_))
    ++mine;
  cpu_set_t one{}, others = allowed_;
  CPU_SET(mine, &one);
  CPU_CLR(mine, &others);
  place(others);
  ::sched_setaffinity(0, sizeof one, &one);
}

Churn::~Churn() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  place(allowed_);
  ::sched_setaffinity(0, sizeof allowed_, &allowed_);
}

// The writer, and each thread of the coordinator. One that has ended by now needs no place.
void Churn::place(const cpu_set_t& writers) const {
  ::sched_setaffinity(pid_, sizeof writers, &writers);
  const std::uint32_t coordinator = observer_.segment().superblock().coordinator_pid.load();
  std::error_code gone;
  for (const auto& task :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", coordinator), gone)) {
    ::sched_setaffinity(std::stoi(task.path().filename().string()), sizeof writers, &writers);
  }
}

std::uint64_t Churn::evictions() const { return observer_.segment().total(Counter::kEvictions); }

void Churn::await_stop() const {
  int status = 0;
  while (::waitpid(pid_, &status, WUNTRACED) < 0 && errno == EINTR) {
  }
  if (!WIFSTOPPED(status))
    throw std::runtime_error("the writer beside the lookups " + replay::describe_end(status));
}

void Churn::go_on() const {
  const std::uint64_t wanted = evictions() + observer_.segment().page_count() / kPartEvicted;
  const auto deadline = std::chrono::steady_clock::now() + kLimit;
  ::kill(pid_, SIGCONT);
  while (evictions() < wanted) {
    if (std::chrono::steady_clock::now() > deadline)
      throw std::runtime_error("the writer beside the lookups makes nobody evict");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// A writer that stops after it took the last pages and before it said so leaves the evictor asleep: then it goes on for a
// moment.
void Churn::stop() const {
  for (int tries = 0; tries < kStopsMax; ++tries) {
    ::kill(pid_, SIGSTOP);
    await_stop();
    if (observer_.settle(kRestLimit)) return;
    ::kill(pid_, SIGCONT);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  throw std::runtime_error("the evictor does not come to rest");
}

}  // namespace kvtrie::bench
