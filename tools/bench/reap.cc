// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/reap.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "shm/free_pages.h"
#include "tools/bench/prompts.h"
#include "tools/replay/child_process.h"
#include "tools/replay/observer.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kHoldLimit = std::chrono::seconds(60);
constexpr auto kReapLimit = std::chrono::seconds(10);

// Full but for the last page of each chunk.
void fill_but_one_a_chunk(const replay::Plugin& plugin, kvtrie_worker worker,
                          kvtrie_namespace name_space, std::uint64_t chunks) {
  constexpr std::uint64_t kPublished = std::uint64_t{kChunkPages - 1} * kTokensPerPage;
  std::vector<kvtrie_sequence> open;
  for (std::uint64_t i = 0; i < chunks; ++i) {
    const std::vector<std::uint32_t> tokens = random_tokens(i, kChunkPages * kTokensPerPage);
    open.push_back(begin(plugin, worker, name_space, tokens).sequence);
    plugin.expect(plugin->allocate(open.back(), tokens.size(), nullptr), "allocate");
    plugin.expect(plugin->publish(open.back(), kPublished, nullptr), "publish");
  }
  for (const kvtrie_sequence sequence : open) plugin.expect(plugin->release(sequence), "release");
}

class Holder {
 public:
  Holder(const ReapOptions& options, const replay::OwnCache& cache, std::uint64_t pages,
         const char* state, replay::Signals& signals) {
    std::array<int, 2> pipe{};
    if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
    const FileDescriptor mine(pipe[0]);
    FileDescriptor its(pipe[1]);
    replay::ChildOptions child;
    child.program = replay::own_path();
    child.arguments = {kHoldFlag, fmt::format("{}", its.get()), cache.name(), cache.directory(),
                       options.plugin, fmt::format("{}", pages), state};
    child.inherited = its.get();
    pid_ = replay::start_child(child);
    its = {};
    signals.wait(kHoldLimit, mine.get());
    char said = 0;
    if (::read(mine.get(), &said, 1) != 1 || said != '+') {
      throw std::runtime_error("the worker that is to be killed did not get its pages");
    }
    pidfd_ = FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
    if (!pidfd_.open()) throw std::runtime_error("pidfd_open");
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  // Returns when the kernel says that it is dead.
  void kill() const {
    ::kill(pid_, SIGKILL);
    pollfd death{pidfd_.get(), POLLIN, 0};
    if (::poll(&death, 1, -1) != 1) throw std::runtime_error("poll");
  }

 private:
  pid_t pid_ = -1;
  FileDescriptor pidfd_;
};

Spread measure(const ReapOptions& options, const replay::OwnCache& cache, const Segment& segment,
               std::uint64_t pages, const char* state, replay::Signals& signals) {
  std::vector<double> took_ms;
  const FreePages free_pages(segment);
  for (std::uint32_t round = 0; round <= options.rounds; ++round) {
    const Holder holder(options, cache, pages, state, signals);
    if (free_pages.count() != 0) throw std::runtime_error("the worker does not hold all free pages");
    holder.kill();
    const auto reported = Clock::now();
    while (free_pages.count() != pages) {
      if (Clock::now() - reported > kReapLimit) throw std::runtime_error("the pages did not come back");
    }
    const std::chrono::duration<double, std::milli> took = Clock::now() - reported;
    if (round > 0) took_ms.push_back(took.count());
  }
  return spread_of(took_ms);
}

}  // namespace

ReapResult measure_reap(const ReapOptions& options) {
  const std::uint64_t chunks = options.pages / kChunkPages;
  replay::Signals signals;
  replay::ReplayOptions cache_options;
  cache_options.geometry = {.pages = chunks * kChunkPages,
                            .tokens_per_page = kTokensPerPage,
                            .page_bytes = 8,
                            .leases_per_worker = static_cast<std::uint32_t>(chunks + 8)};
  cache_options.low_percent = cache_options.high_percent = 0;
  const replay::OwnCache cache(cache_options, options.kvtried, signals);
  const replay::Plugin plugin(options.plugin);
  const replay::Attachment attachment(plugin, cache.name(), cache.directory(), "kvtrie-bench", false);
  fill_but_one_a_chunk(plugin, attachment.worker(), open_namespace(plugin, attachment.worker()), chunks);
  const replay::Observer observer(cache.name());
  ReapResult result;
  result.pages_held = chunks;
  result.pending_ms = measure(options, cache, observer.segment(), chunks, "pending", signals);
  result.writing_ms = measure(options, cache, observer.segment(), chunks, "writing", signals);
  return result;
}

int hold_pages(int argc, char** argv) {
  if (argc != 8) return 2;
  const int report = std::atoi(argv[2]);
  const std::uint64_t tokens = std::strtoull(argv[6], nullptr, 10) * kTokensPerPage;
  try {
    const replay::Plugin plugin(argv[5]);
    const replay::Attachment attachment(plugin, argv[3], argv[4], "to be killed", true);
    const bool announced = std::string_view(argv[7]) == "pending";
    const std::vector<std::uint32_t> known =
        random_tokens(~std::uint64_t{0}, announced ? tokens : 0);
    const kvtrie_sequence sequence =
        begin(plugin, attachment.worker(), open_namespace(plugin, attachment.worker()), known).sequence;
    kvtrie_allocate_options wait{};
    wait.size = sizeof wait;
    wait.wait_ms = 5000;
    plugin.expect(plugin->allocate(sequence, tokens, &wait), "allocate");
    if (::write(report, "+", 1) != 1) return 1;
    for (;;) ::pause();
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvtrie-bench {}: {}\n", kHoldFlag, error.what());
    return 1;
  }
}

}  // namespace kvtrie::bench
