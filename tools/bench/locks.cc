// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What synchronization costs. Several processes allocate and publish at once, by the number of
// stripes: how fast, how long a stripe's lock is waited for and held. And one process, with atomics
// and locks and without (shm/plain_atomic.h).

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <filesystem>
#include <memory>
#include <stdexcept>

#include "shm/lock_times.h"
#include "tools/bench/crew.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/replay/histogram.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kPromptPages = 256;
constexpr std::uint32_t kDefaultStripes = Geometry{}.stripes;
constexpr std::array kStripes{1U, 16U, 256U, kDefaultStripes, 4096U};
constexpr std::array kProcesses{1U, 2U, 4U};

struct Sizes {
  std::uint64_t pages;    // of a cache
  std::uint32_t prompts;  // of all processes together, at a time
  std::uint32_t rounds;
};

std::string setting_of(std::uint32_t processes, std::uint32_t stripes) {
  return fmt::format("{} process{}, {} stripe{}", processes, processes == 1 ? "" : "es", stripes,
                     stripes == 1 ? "" : "s");
}

std::unique_ptr<replay::OwnCache> cache_with(std::uint32_t stripes, const Settings& settings,
                                             const Sizes& sizes, replay::Signals& signals) {
  replay::ReplayOptions options;
  options.geometry = {.pages = sizes.pages, .tokens_per_page = kTokensPerPage, .page_bytes = 8};
  options.geometry.workers = 8;
  options.geometry.stripes = stripes;
  options.low_percent = options.high_percent = 0;
  return std::make_unique<replay::OwnCache>(options, settings.kvtried, signals);
}

// One worker's prompts in one cache, each step for all of them.
class Publisher {
 public:
  Publisher(const replay::Plugin& plugin, const replay::OwnCache& cache,
            const std::vector<std::vector<std::uint32_t>>& prompts)
      : plugin_(plugin),
        attachment_(plugin, cache.name(), cache.directory(), "kvtrie-bench", false),
        space_(open_namespace(plugin, attachment_.worker())),
        prompts_(prompts),
        sequences_(prompts.size()) {}

  void begin_all(std::uint32_t cached) {
    each([&](std::size_t i) {
      const Begun begun = begin(plugin_, attachment_.worker(), space_, prompts_[i]);
      if (begun.cached_pages != cached)
        throw std::runtime_error("locks: a prompt is not as it was left");
      sequences_[i] = begun.sequence;
    });
  }
  void allocate_all() {
    each([&](std::size_t i) {
      plugin_.expect(plugin_->allocate(sequences_[i], prompts_[i].size(), nullptr), "allocate");
    });
  }
  void publish_all() {
    each([&](std::size_t i) {
      plugin_.expect(plugin_->publish(sequences_[i], prompts_[i].size(), nullptr), "publish");
    });
  }
  void release_all() {
    each([&](std::size_t i) { plugin_.expect(plugin_->release(sequences_[i]), "release"); });
  }
  // All that nobody uses, whose it may be.
  void evict_all() {
    std::uint64_t evicted = 0;
    plugin_.expect(plugin_->evict(attachment_.worker(), {0}, 0, &evicted), "evict");
  }
  // Pages that stayed private since a stripe was not had in time.
  std::uint64_t passed_by() const {
    kvtrie_counters counters{};
    counters.size = sizeof counters;
    plugin_.expect(plugin_->get_counters(attachment_.worker(), &counters), "get_counters");
    return counters.stripes_passed_by;
  }
  double pages() const { return static_cast<double>(prompts_.size()) * kPromptPages; }

 private:
  template <typename Do>
  void each(Do&& what) {
    for (std::size_t i = 0; i < prompts_.size(); ++i)
      what(i);
  }

  const replay::Plugin& plugin_;
  const replay::Attachment attachment_;
  const kvtrie_namespace space_;
  const std::vector<std::vector<std::uint32_t>>& prompts_;
  std::vector<kvtrie_sequence> sequences_;
};

std::vector<std::vector<std::uint32_t>> prompts_of(std::uint32_t member, std::uint32_t count) {
  std::vector<std::vector<std::uint32_t>> prompts;
  for (std::uint32_t i = 0; i < count; ++i) {
    prompts.push_back(random_tokens(std::uint64_t{member} * 1000 + i,
                                    std::size_t{kPromptPages} * kTokensPerPage));
  }
  return prompts;
}

// What the plugin that measures tells: of this process.
struct LockHistograms {
  replay::Histogram waited;  // ticks
  replay::Histogram held;
};
LockHistograms lock_histograms;

void observe_locks(const std::string& plugin) {
  void* const library = ::dlopen(plugin.c_str(), RTLD_NOW | RTLD_NOLOAD);
  auto* const observer = library == nullptr
                             ? nullptr
                             : static_cast<LockObserver*>(::dlsym(library, "kvtrie_lock_observer"));
  if (observer == nullptr) throw std::runtime_error(plugin + ": does not measure locks");
  observer->waited = [](std::uint64_t ticks) { lock_histograms.waited.record(ticks); };
  observer->held = [](std::uint64_t ticks) { lock_histograms.held.record(ticks); };
}

double ns_of_tick() {
  const std::uint64_t first = lock_ticks();
  const double ns = time_ns([] {
    for (const double end = now_ns() + 2e7; now_ns() < end;) {
    }
  });
  return ns / static_cast<double>(lock_ticks() - first);
}

// Figures of one process, round and cache, in this order. Times of the one clock that all processes
// have.
enum Figure : std::uint8_t {
  kAllocateStart,
  kAllocateEnd,
  kPublishStart,
  kPublishEnd,
  kWait50,
  kWait99,
  kHold50,
  kHold99,
  kFigures
};

// A round: all processes allocate (and announce) at once, then publish at once. With the plugin
// that measures, its histograms too.
class Crew {
 public:
  Crew(const std::vector<std::unique_ptr<replay::OwnCache>>& caches, std::string plugin,
       const Sizes& sizes, bool timed)
      : caches_(caches), plugin_(std::move(plugin)), sizes_(sizes), timed_(timed) {}

  void run(std::uint32_t processes) {
    processes_ = processes;
    figures_ = run_crew(processes, [&](CrewMember& member) { work(member); });
  }
  // By round: from the first process's start to the last one's end, ns a page of them all.
  std::vector<double> page_ns(std::size_t cache, Figure start, Figure end) const {
    const double pages =
        static_cast<double>(sizes_.prompts / processes_ * processes_) * kPromptPages;
    std::vector<double> values;
    for (std::uint32_t round = 0; round < sizes_.rounds; ++round) {
      double first = at(0, round, cache, start);
      double last = at(0, round, cache, end);
      for (std::size_t process = 1; process < processes_; ++process) {
        first = std::min(first, at(process, round, cache, start));
        last = std::max(last, at(process, round, cache, end));
      }
      values.push_back((last - first) / pages);
    }
    return values;
  }
  // By round: of the process where it is most.
  std::vector<double> most(std::size_t cache, Figure figure) const {
    std::vector<double> values;
    for (std::uint32_t round = 0; round < sizes_.rounds; ++round) {
      double value = 0;
      for (std::size_t process = 0; process < processes_; ++process)
        value = std::max(value, at(process, round, cache, figure));
      values.push_back(value);
    }
    return values;
  }
  double passed_by(std::size_t cache) const {
    double sum = 0;
    for (const auto& mine : figures_)
      sum += mine.at(sizes_.rounds * caches_.size() * kFigures + cache);
    return sum;
  }

 private:
  double at(std::size_t process, std::uint32_t round, std::size_t cache, Figure figure) const {
    return figures_.at(process).at((round * caches_.size() + cache) * kFigures + figure);
  }
  void work(CrewMember& member) const {
    const replay::Plugin plugin(plugin_);
    if (timed_) observe_locks(plugin_);
    const auto prompts = prompts_of(member.index(), sizes_.prompts / processes_);
    std::vector<std::unique_ptr<Publisher>> publishers;
    for (const auto& cache : caches_)
      publishers.push_back(std::make_unique<Publisher>(plugin, *cache, prompts));
    for (std::uint32_t round = 0; round <= sizes_.rounds; ++round) {  // the first warms up
      for (const auto& publisher : publishers) {
        const std::array<double, kFigures> figures = measure(member, *publisher);
        for (const double figure : figures) {
          if (round > 0) member.figure(figure);
        }
      }
    }
    for (const auto& publisher : publishers)
      member.figure(static_cast<double>(publisher->passed_by()));
  }

  static std::array<double, kFigures> measure(CrewMember& member, Publisher& publisher) {
    std::array<double, kFigures> figures{};
    lock_histograms = {};
    publisher.begin_all(0);
    member.meet();
    figures[kAllocateStart] = now_ns();
    publisher.allocate_all();
    figures[kAllocateEnd] = now_ns();
    member.meet();
    figures[kPublishStart] = now_ns();
    publisher.publish_all();
    figures[kPublishEnd] = now_ns();
    member.meet();
    publisher.release_all();
    member.meet();
    if (member.index() == 0) publisher.evict_all();
    member.meet();
    figures[kWait50] = static_cast<double>(lock_histograms.waited.percentile(50));
    figures[kWait99] = static_cast<double>(lock_histograms.waited.percentile(99));
    figures[kHold50] = static_cast<double>(lock_histograms.held.percentile(50));
    figures[kHold99] = static_cast<double>(lock_histograms.held.percentile(99));
    return figures;
  }

  const std::vector<std::unique_ptr<replay::OwnCache>>& caches_;
  const std::string plugin_;
  const Sizes sizes_;
  const bool timed_;
  std::uint32_t processes_ = 0;
  std::vector<std::vector<double>> figures_;
};

std::vector<double> scaled(std::vector<double> values, double by) {
  for (double& value : values)
    value *= by;
  return values;
}

// ns a page of all processes together, by stripes; the ratio is to the default number of stripes.
void add_throughput(const Crew& crew, std::uint32_t processes, Report& report, Plot& plot) {
  struct What {
    const char* name;
    Figure start, end;
  };
  constexpr std::array kWhat{What{"allocate, announce", kAllocateStart, kAllocateEnd},
                             What{"publish", kPublishStart, kPublishEnd}};
  for (const auto& [what, start, end] : kWhat) {
    std::size_t normal = 0;
    while (kStripes.at(normal) != kDefaultStripes)
      ++normal;
    const std::vector<double> of_default = crew.page_ns(normal, start, end);
    Plot::Series series{fmt::format("{}, processes: {}", what, processes), {}};
    for (std::size_t i = 0; i < kStripes.size(); ++i) {
      const std::vector<double> rounds = crew.page_ns(i, start, end);
      Row row{what, setting_of(processes, kStripes.at(i)), spread_of(rounds), "ns/page"};
      if (i != normal) {
        row.to = fmt::format("{} stripes", kDefaultStripes);
        row.ratio = ratio_of(rounds, of_default);
      }
      series.points.push_back({static_cast<double>(kStripes.at(i)), row.value});
      report.add(std::move(row));
    }
    plot.series.push_back(std::move(series));
  }
}

void add_lock_times(const Crew& crew, std::uint32_t processes, double tick_ns, Report& report) {
  constexpr std::array kWhat{
      std::pair{kWait50, "lock wait, p50"}, std::pair{kWait99, "lock wait, p99"},
      std::pair{kHold50, "lock hold, p50"}, std::pair{kHold99, "lock hold, p99"}};
  for (const auto& [figure, what] : kWhat) {
    for (std::size_t i = 0; i < kStripes.size(); ++i) {
      report.add({what, setting_of(processes, kStripes.at(i)),
                  spread_of(scaled(crew.most(i, figure), tick_ns)), "ns"});
    }
  }
  for (std::size_t i = 0; i < kStripes.size(); ++i) {
    if (const double pages = crew.passed_by(i); pages > 0) {
      report.note(fmt::format(
          "{}: {} times a stripe was not had within 1 ms, and the page tried again later",
          setting_of(processes, kStripes.at(i)), pages));
    }
  }
}

// In one process, in turn, in two caches alike.
void compare_with_plain(const Settings& settings, const std::string& plain, const Sizes& sizes,
                        replay::Signals& signals, Report& report) {
  std::vector<std::unique_ptr<replay::OwnCache>> caches;
  for (int i = 0; i < 2; ++i)
    caches.push_back(cache_with(kDefaultStripes, settings, sizes, signals));
  constexpr std::array kWhat{"allocate, announce", "publish", "begin, hit", "release"};
  const auto figures = run_crew(1, [&](CrewMember& member) {
    const replay::Plugin normal_plugin(settings.plugin);
    const replay::Plugin plain_plugin(plain);
    const auto prompts = prompts_of(0, sizes.prompts);
    Publisher normal(normal_plugin, *caches[0], prompts);
    Publisher other(plain_plugin, *caches[1], prompts);
    for (std::uint32_t round = 0; round <= sizes.rounds; ++round) {
      for (Publisher* const publisher : {&normal, &other}) {
        std::array<double, kWhat.size()> ns{};
        publisher->begin_all(0);
        ns[0] = time_ns([&] { publisher->allocate_all(); });
        ns[1] = time_ns([&] { publisher->publish_all(); });
        publisher->release_all();
        ns[2] = time_ns([&] { publisher->begin_all(kPromptPages); });
        ns[3] = time_ns([&] { publisher->release_all(); });
        publisher->evict_all();
        if (round == 0) continue;
        for (const double each : ns)
          member.figure(each / publisher->pages());
      }
    }
  });
  for (std::size_t i = 0; i < kWhat.size(); ++i) {
    std::array<std::vector<double>, 2> rounds;
    for (std::size_t at = i; at < figures.at(0).size(); at += kWhat.size()) {
      rounds.at(at / kWhat.size() % 2).push_back(figures.at(0).at(at));
    }
    report.add({kWhat.at(i), "1 process, no atomics, no locks", spread_of(rounds[1]), "ns/page"});
    report.add({kWhat.at(i), setting_of(1, kDefaultStripes), spread_of(rounds[0]), "ns/page",
                "without atomics and locks", ratio_of(rounds[0], rounds[1])});
  }
}

}  // namespace

void run_locks(const Settings& settings, Report& report) {
  const std::filesystem::path folder =
      std::filesystem::path(replay::own_path()).parent_path().parent_path() / "lib";
  const std::string plain = folder / "libkvtrie_worker_plain.so";
  const std::string timed = folder / "libkvtrie_worker_timed.so";
  const Sizes sizes = settings.quick ? Sizes{1U << 12, 8, std::min(settings.rounds, 2U)}
                                     : Sizes{1U << 16, 128, settings.rounds};
  replay::Signals signals;
  if (std::filesystem::exists(plain)) {
    compare_with_plain(settings, plain, sizes, signals, report);
  } else {
    report.note(
        "price of atomics: not measured, libkvtrie_worker_plain.so is not built (no dev build has "
        "it)");
  }
  std::vector<std::unique_ptr<replay::OwnCache>> caches;
  for (const std::uint32_t stripes : kStripes)
    caches.push_back(cache_with(stripes, settings, sizes, signals));
  Plot plot{"locks",   "allocating and publishing by the number of stripes",
            "stripes", "ns/page",
            true,      true,
            {}};
  for (const std::uint32_t processes : kProcesses) {
    Crew crew(caches, settings.plugin, sizes, false);
    crew.run(processes);
    add_throughput(crew, processes, report, plot);
  }
  report.plot(std::move(plot));
  if (!std::filesystem::exists(timed)) {
    report.note("lock times: not measured, libkvtrie_worker_timed.so is not built");
    return;
  }
  const double tick_ns = ns_of_tick();
  for (const std::uint32_t processes : kProcesses) {
    Crew crew(caches, timed, sizes, true);
    crew.run(processes);
    add_lock_times(crew, processes, tick_ns, report);
  }
}

}  // namespace kvtrie::bench
