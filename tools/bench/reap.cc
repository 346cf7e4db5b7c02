// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/reap.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <vector>

#include "shm/ids.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/replay/child_process.h"
#include "tools/replay/death_watch.h"
#include "tools/replay/observer.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kHoldLimitMs = 60'000;
constexpr auto kWarmUpLimit = std::chrono::seconds(60);
constexpr std::uint32_t kWorkerSlots = 64;
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

// The worker that is to be killed, and holds its pages.
class Holder {
 public:
  Holder(const Settings& settings, const replay::OwnCache& cache, std::uint64_t pages,
         const char* state, replay::Signals& signals) {
    std::array<int, 2> pipe{};
    if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
    const FileDescriptor mine(pipe[0]);
    FileDescriptor its(pipe[1]);
    replay::ChildOptions child;
    child.program = replay::own_path();
    child.arguments = {kHoldFlag, fmt::format("{}", its.get()), cache.name(), cache.directory(),
                       settings.plugin, fmt::format("{}", pages), state};
    child.inherited = its.get();
    pid_ = replay::start_child(child);
    its = {};
    pollfd said{mine.get(), POLLIN, 0};
    while (::poll(&said, 1, kHoldLimitMs) < 0 && errno == EINTR) {
    }
    char word = 0;
    if (said.revents == 0 || ::read(mine.get(), &word, 1) != 1 || word != '+' || signals.asked_to_end()) {
      throw std::runtime_error("the worker that is to be killed did not get its pages");
    }
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

// A replay on the cache that goes on until the end.
class BusyWorkers {
 public:
  // Returns when they evict.
  BusyWorkers(const Settings& settings, const replay::OwnCache& cache, const replay::Observer& observer)
      : log_(::open((cache.directory() + "/busy").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)) {
    replay::ChildOptions child;
    child.program = settings.replay;
    child.arguments = {"--cache", cache.name(), "--dir", cache.directory(), "--workers", fmt::format("{}", settings.busy),
                       "--generate", "1000000", "--plugin", settings.plugin};
    child.standard_output = child.standard_error = log_.get();
    child.death_signal = SIGTERM;
    pid_ = replay::start_child(child);
    try {
      warm_up(observer);
    } catch (...) {
      end();
      throw;
    }
  }
  BusyWorkers(const BusyWorkers&) = delete;
  BusyWorkers& operator=(const BusyWorkers&) = delete;
  ~BusyWorkers() { end(); }
  // Throws when it has ended.
  void check() const {
    siginfo_t info{};
    if (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid != 0) {
      throw std::runtime_error("the replay that keeps workers busy has ended");
    }
  }

 private:
  void end() const {
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  void warm_up(const replay::Observer& observer) const {
    const auto deadline = Clock::now() + kWarmUpLimit;
    const std::uint64_t before = observer.segment().total(Counter::kEvictions);
    while (observer.segment().total(Counter::kEvictions) < before + observer.segment().page_count() / 20) {
      if (Clock::now() > deadline) throw std::runtime_error("the replay that keeps workers busy evicts nothing");
      check();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }

  FileDescriptor log_;
  pid_t pid_ = -1;
};

WorkerId slot_of(const Segment& segment, pid_t pid) {
  for (std::uint16_t slot = 1; slot < segment.slot_count(); ++slot) {
    if (segment.worker(WorkerId{slot}).pid.load() == static_cast<std::uint32_t>(pid)) return WorkerId{slot};
  }
  throw std::runtime_error("the worker that is to be killed has no slot");
}

std::uint64_t owned_by(const Segment& segment, WorkerId slot) {
  std::uint64_t count = 0;
  for (std::uint64_t page = 0; page < segment.page_count(); ++page) {
    const StateWord word{segment.descriptor(PageIndex{static_cast<std::uint32_t>(page)}).state.load()};
    if (word.owned() && word.owner() == slot) ++count;
  }
  return count;
}

replay::Histogram measure(const Settings& settings, const replay::OwnCache& cache, const Segment& segment,
                          std::uint64_t pages, const char* state, const BusyWorkers* busy, replay::Signals& signals) {
  replay::Histogram took;
  for (std::uint32_t round = 0; round <= settings.rounds; ++round) {
    replay::DeathWatch watch(segment, settings.realtime);
    const Holder holder(settings, cache, pages, state, signals);
    const WorkerId slot = slot_of(segment, holder.pid());
    if (owned_by(segment, slot) < pages) throw std::runtime_error("the worker does not hold its pages");
    watch.expect(holder.pid());
    ::kill(holder.pid(), SIGKILL);
    while (watch.pending() > 0) {
      if (const std::string late = watch.overdue(kReapLimit); !late.empty()) throw std::runtime_error(late);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    // Nobody else attaches meanwhile, so the slot is still the dead one's.
    if (const std::uint64_t left = owned_by(segment, slot); left > 0) {
      throw std::runtime_error(fmt::format("{} pages of the dead worker have not come back", left));
    }
    if (busy != nullptr) busy->check();
    if (round > 0) took.merge(watch.result().served);
  }
  return took;
}

}  // namespace

void run_reap(const Settings& settings, Report& report) {
  const std::uint64_t chunks = settings.pages / kChunkPages;
  replay::Signals signals;
  replay::ReplayOptions cache_options;
  cache_options.geometry = {.pages = chunks * kChunkPages,
                            .tokens_per_page = kTokensPerPage,
                            .page_bytes = 8,
                            .workers = kWorkerSlots,
                            .leases_per_worker = static_cast<std::uint32_t>(chunks + 8)};
  if (settings.busy == 0) cache_options.low_percent = cache_options.high_percent = 0;
  cache_options.realtime = settings.realtime;
  const replay::OwnCache cache(cache_options, settings.kvtried, signals);
  const replay::Plugin plugin(settings.plugin);
  const replay::Attachment attachment(plugin, cache.name(), cache.directory(), "kvtrie-bench", false);
  fill_but_one_a_chunk(plugin, attachment.worker(), open_namespace(plugin, attachment.worker()), chunks);
  const replay::Observer observer(cache.name());
  std::optional<BusyWorkers> busy;
  if (settings.busy > 0) busy.emplace(settings, cache, observer);
  const BusyWorkers* others = busy ? &*busy : nullptr;
  for (const char* state : {"pending", "writing"}) {
    const replay::Histogram took = measure(settings, cache, observer.segment(), chunks, state, others, signals);
    const std::string setting = fmt::format("{} {} pages of {}, {} busy workers{}", chunks, state, settings.pages, settings.busy,
                                            settings.realtime > 0 ? ", real-time" : "");
    for (const double percent : {50.0, 99.0}) {
      const double ms = static_cast<double>(took.percentile(percent)) / 1e6;
      report.add({fmt::format("death to all free, p{:.0f}", percent), setting, {ms, ms, ms}, "ms", {}, {}, at_most(10)});
    }
  }
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
