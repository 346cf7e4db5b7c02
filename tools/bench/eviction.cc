// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>
#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/evictor.h"
#include "shm/free_pages.h"
#include "tools/bench/aged.h"
#include "tools/bench/floors.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/warm/warm_memory.h"
#include "tools/bench/workload.h"
#include "tools/replay/child_process.h"
#include "tools/replay/histogram.h"
#include "tools/replay/observer.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"
#include "tools/replay/random.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kWorkers = 64;
constexpr double kEvictionsASecond = 10'000;

Spread one(double value) { return {value, value, value}; }

std::string millions(std::uint64_t pages) {
  return pages >= 1U << 20 ? fmt::format("{} M pages", pages >> 20) : fmt::format("{} k pages", pages >> 10);
}

// A cache of its own and one worker that fills it, with prompts that nobody else has.
class Bed {
 public:
  Bed(const Settings& settings, std::uint64_t pages, double low_percent, double high_percent)
      : cache_(options(pages, low_percent, high_percent), settings.kvtried, signals_), plugin_(settings.plugin),
        attachment_(plugin_, cache_.name(), cache_.directory(), "kvtrie-bench", false), observer_(cache_.name()),
        clock_(open_writable(cache_.name())), name_space_(open_namespace(plugin_, attachment_.worker())) {}

  const Segment& segment() const { return observer_.segment(); }
  const Segment& writable_segment() const { return clock_; }
  const replay::Plugin& plugin() const { return plugin_; }
  const replay::OwnCache& cache() const { return cache_; }
  kvtrie_worker worker() const { return attachment_.worker(); }
  kvtrie_namespace name_space() const { return name_space_; }

  // Until the evictor rests.
  void settle() const {
    if (!observer_.settle(std::chrono::seconds(10))) throw std::runtime_error("the evictor does not come to rest");
  }

  // The cache's clock goes on, so that recency is ordered by ticks, too.
  void tick() const { clock_.superblock().driven_tick.fetch_add(1, std::memory_order_relaxed); }

  // What the calls took that found pages; and those of them during which the kernel let nobody else have the core.
  struct Took {
    replay::Histogram all;
    replay::Histogram undisturbed;
  };

  // Publishes the pages of a new prompt; false when there are not enough free ones.
  bool publish(std::uint32_t pages, Took* took = nullptr) {
    const std::vector<std::uint32_t> tokens = random_tokens(next_prompt_++, std::size_t{pages} * kTokensPerPage);
    const kvtrie_sequence sequence = begin(plugin_, worker(), name_space_, tokens).sequence;
    const long preempted = took == nullptr ? 0 : preemptions();
    const double start = now_ns();
    const kvtrie_code code = plugin_->allocate(sequence, tokens.size(), nullptr);
    const auto ns = static_cast<std::uint64_t>(now_ns() - start);
    if (code != KVTRIE_E_NOT_NOW) {
      plugin_.expect(code, "allocate");
      if (took != nullptr) {
        took->all.record(ns);
        if (preemptions() == preempted) took->undisturbed.record(ns);
      }
      plugin_.expect(plugin_->publish(sequence, tokens.size(), nullptr), "publish");
    }
    plugin_.expect(plugin_->release(sequence), "release");
    return code != KVTRIE_E_NOT_NOW;
  }

  // Until about so many pages are free.
  void fill(std::uint32_t prompt_pages, std::uint64_t free_pages = 0) {
    for (std::uint64_t left = FreePages(segment()).count(); left >= free_pages + prompt_pages; left -= prompt_pages) {
      if (!publish(prompt_pages)) break;
      if (next_prompt_ % 64 == 0) tick();
    }
    tick();
  }

  static replay::ReplayOptions options(std::uint64_t pages, double low_percent, double high_percent) {
    replay::ReplayOptions options;
    options.geometry = {.pages = pages, .tokens_per_page = kTokensPerPage, .page_bytes = 8, .workers = kWorkers};
    options.low_percent = low_percent;
    options.high_percent = high_percent;
    return options;
  }

 private:
  // Of this thread, by others.
  static long preemptions() {
    rusage usage{};
    ::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
  }

  replay::Signals signals_;
  replay::OwnCache cache_;
  const replay::Plugin plugin_;
  const replay::Attachment attachment_;
  const replay::Observer observer_;
  const Segment clock_;
  const kvtrie_namespace name_space_;
  std::uint64_t next_prompt_ = 1;
};

void measure_metadata(const Segment& segment, Report& report) {
  std::uint64_t not_counted = 0;
  const Superblock& block = segment.superblock();
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(block.area_count, kAreasMax); ++i) {
    const AreaEntry& area = block.areas[i];
    const auto kind = static_cast<AreaKind>(area.kind);
    if (kind == AreaKind::kRecorder || kind == AreaKind::kGhost) not_counted += area.stride * area.count;
  }
  const double bytes = static_cast<double>(block.segment_bytes - not_counted) / segment.page_count();
  const std::string setting = fmt::format("{}, {} workers", millions(segment.page_count()), kWorkers);
  report.add({"metadata", setting, one(bytes), "bytes/page", {}, {}, at_most(164)});
}

// Workers that hold leases, as inference processes do: the evictor reads them all in every batch.
class Lessees {
 public:
  Lessees(const Bed& bed, std::uint32_t workers, std::uint32_t leases_each, std::uint32_t prompt_pages)
      : plugin_(bed.plugin()) {
    for (std::uint32_t i = 0; i < workers; ++i) {
      attachments_.push_back(std::make_unique<replay::Attachment>(plugin_, bed.cache().name(), bed.cache().directory(),
                                                                  "kvtrie-bench", false));
      const kvtrie_worker worker = attachments_.back()->worker();
      const kvtrie_namespace name_space = open_namespace(plugin_, worker);
      // The same prompts for all, so that most pages can be evicted.
      for (std::uint32_t lease = 0; lease < leases_each; ++lease) {
        const auto [cached, sequence] =
            begin(plugin_, worker, name_space, random_tokens(1 + lease, std::size_t{prompt_pages} * kTokensPerPage));
        if (cached != prompt_pages) throw std::runtime_error("a prompt that is to be leased is not cached");
      }
    }
  }

 private:
  const replay::Plugin& plugin_;
  std::vector<std::unique_ptr<replay::Attachment>> attachments_;
};

// The evictor itself, in this process: the cache's coordinator is stopped meanwhile, so it is the only one.
void measure_batches(const Settings& settings, Report& report) {
  constexpr std::uint32_t kPromptPages = 128;
  Bed bed(settings, settings.pages, 0, 0);
  measure_metadata(bed.segment(), report);
  bed.fill(kPromptPages);
  const std::uint32_t leases = settings.quick ? 16 : 256;
  const Lessees lessees(bed, kWorkers - 2, leases, kPromptPages);
  const std::string where = fmt::format("{}, {} leases", millions(settings.pages), leases * (kWorkers - 2));
  const StoppedCoordinator stopped(bed.cache());
  Evictor evictor(bed.writable_segment());
  std::vector<double> pauses_ms;
  std::vector<double> scans_ms;
  const auto never = [] { return false; };
  for (const double percent : {1.0, 3.0, 10.0}) {
    const auto wanted = static_cast<std::uint64_t>(static_cast<double>(settings.pages) * percent / 100);
    std::vector<double> scanned;
    std::vector<double> ranked;
    for (std::uint32_t round = 0; round <= settings.rounds; ++round) {
      const auto rate = [&](auto&& evict) {
        std::uint64_t evicted = 0;
        warm_memory();
        const double ns = time_ns([&] { evicted = evict([&](double s) { pauses_ms.push_back(s * 1e3); }).evicted; });
        if (evicted != wanted) throw std::runtime_error("the evictor found too few pages");
        bed.fill(kPromptPages);
        return static_cast<double>(wanted) / ns * 1e3;
      };
      const double with_scan = rate([&](auto&& on_pause) { return evictor.evict(wanted, never, on_pause); });
      rate([&](auto&& on_pause) { return evictor.evict_on(wanted, never, on_pause); });
      const double by_reserve = rate([&](auto&& on_pause) { return evictor.evict_on(wanted, never, on_pause); });
      if (round == 0) continue;
      scanned.push_back(with_scan);
      ranked.push_back(by_reserve);
      scans_ms.push_back(static_cast<double>(wanted) * (1 / with_scan - 1 / by_reserve) / 1e3);  // rates are of millions
    }
    const std::string setting = fmt::format("{}, {} % at once", where, percent);
    report.add({"eviction in batches", setting, spread_of(ranked), "M pages/s", {}, {}, at_least(2)});
    report.add({"eviction with a scan of its own", setting, spread_of(scanned), "M pages/s"});
  }
  report.add({"a scan, which serves several passes", where, spread_of(scans_ms), "ms"});
  const Spread pause = spread_of(pauses_ms);
  report.add({"a page is Condemned, median", where, one(pause.median), "ms", {}, {}, at_most(5)});
  report.add({"a page is Condemned, longest", where, one(pause.maximum), "ms", {}, {}, at_most(5)});
}

double cpu_seconds(pid_t pid) {
  clockid_t clock{};
  timespec time{};
  if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &time) != 0) {
    throw std::runtime_error("the coordinator's CPU time cannot be read");
  }
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

// Does `work` so often that it has done `pages_a_second`, at even times, until `done`.
template <typename Work, typename Done>
void at_a_rate(double pages_a_second, std::uint32_t pages_each, Work work, Done done) {
  const double gap_ns = pages_each / pages_a_second * 1e9;
  for (double due = now_ns(); !done(); due += gap_ns) {
    if (const double early = due - now_ns(); early > 2e5) {
      std::this_thread::sleep_for(std::chrono::nanoseconds(static_cast<std::int64_t>(early - 1e5)));
    }
    while (now_ns() < due) {
    }
    work();
  }
}

// What an eviction costs the coordinator: as much as its share of a core at kEvictionsASecond. At a rate at which a scan
// follows the one before within a second or so: after longer, what the host does to idle memory (warm.h) is most of it.
void measure_cpu(const Settings& settings, std::uint64_t pages, std::pair<double, double> watermarks, Report& report) {
  constexpr double kPagesASecond = 300'000;
  const auto [low_percent, high_percent] = watermarks;
  constexpr std::uint32_t kPromptPages = 64;
  Bed bed(settings, pages, low_percent, high_percent);
  const Segment& segment = bed.segment();
  const auto low = static_cast<std::uint64_t>(static_cast<double>(pages) * low_percent / 100);
  bed.fill(kPromptPages, low - kPromptPages);  // a first pass, which touches the evictor's memory
  bed.settle();
  const auto publish = [&] {
    if (!bed.publish(kPromptPages)) std::this_thread::sleep_for(std::chrono::microseconds(100));
    bed.tick();
  };
  const auto pid = static_cast<pid_t>(segment.superblock().coordinator_pid.load());
  const std::uint64_t passes = segment.total(Counter::kEvictionPasses);
  const std::uint64_t evictions = segment.total(Counter::kEvictions);
  const double cpu = cpu_seconds(pid);
  const double start = now_ns();
  // Several of the evictor's scans, each of which serves for a while.
  at_a_rate(kPagesASecond, kPromptPages, publish,
            [&] { return segment.total(Counter::kEvictions) - evictions >= pages / 8; });
  bed.settle();
  const auto evicted = static_cast<double>(segment.total(Counter::kEvictions) - evictions);
  const double used = cpu_seconds(pid) - cpu;
  report.add({fmt::format("coordinator at {:.0f} evictions/s", kEvictionsASecond),
              fmt::format("{}, watermarks {}/{} %, {} passes at {:.0f}/s", millions(pages), low_percent, high_percent,
                          segment.total(Counter::kEvictionPasses) - passes, evicted / (now_ns() - start) * 1e9),
              one(used / evicted * kEvictionsASecond * 100), "% of a core", {}, {}, at_most(3)});
}

// As much memory as a cache's descriptors, touched in no order: what the machine itself does to a call that touches so
// many lines.
class OtherMemory {
 public:
  explicit OtherMemory(std::uint64_t pages) : bytes_(pages * kDescriptorBytes, 1) {}
  void read(std::uint32_t lines) {
    unsigned sum = 0;
    for (std::uint32_t i = 0; i < lines; ++i) sum += bytes_[random_.below(bytes_.size())];
    keep(sum);
  }

 private:
  std::vector<unsigned char> bytes_;
  replay::Random random_{1};
};

// Calls of a worker that takes pages as fast as keeps the evictor busy. Only calls that found pages count: the others
// were answered "not now".
void measure_allocation(const Settings& settings, Report& report) {
  constexpr double kPagesASecond = 200'000;
  constexpr double kWarmNs = 1e7;  // each call takes pages that nobody touched since the pool turned over
  Bed bed(settings, settings.pages, 1, 2);
  bed.fill(64, settings.pages / 50);
  const Superblock& block = bed.segment().superblock();
  OtherMemory other(settings.pages);
  for (const std::uint32_t prompt_pages : {1U, 16U, 64U}) {
    std::vector<double> median_us;
    std::vector<double> tail_us;
    std::vector<double> undisturbed_us;
    std::vector<double> rest_us;
    std::vector<double> other_us;
    std::uint64_t without_pages = 0;
    std::uint64_t calls = 0;
    const std::uint64_t evictions = bed.segment().total(Counter::kEvictions);
    for (std::uint32_t round = 0; round < settings.rounds; ++round) {
      Bed::Took while_evicting;
      Bed::Took at_rest;
      replay::Histogram other_took;
      double warm_ns = 0;
      at_a_rate(kPagesASecond, prompt_pages, [&] {
        if (now_ns() - warm_ns > kWarmNs) {
          warm_memory();
          warm_ns = now_ns();
        }
        const bool busy = block.evictor_busy.load(std::memory_order_relaxed) != 0;
        if (!bed.publish(prompt_pages, busy ? &while_evicting : &at_rest)) {
          ++without_pages;
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
        // The two buckets and the descriptor of each page.
        other_took.record(static_cast<std::uint64_t>(time_ns([&] { other.read(3 * prompt_pages); })));
        if (++calls % 64 == 0) bed.tick();
      }, [&, end = now_ns() + (settings.quick ? 2e7 : 4e8)] { return now_ns() > end; });
      const auto us = [](const replay::Histogram& took, double percent) {
        return static_cast<double>(took.percentile(percent)) / 1e3;
      };
      if (while_evicting.undisturbed.count() > 0) {
        median_us.push_back(us(while_evicting.all, 50));
        tail_us.push_back(us(while_evicting.all, 99.9));
        undisturbed_us.push_back(us(while_evicting.undisturbed, 99.9));
      }
      other_us.push_back(us(other_took, 99.9));
      if (at_rest.all.count() > 0) rest_us.push_back(us(at_rest.all, 99.9));
    }
    const std::string setting = fmt::format("{}, {} pages a call", millions(settings.pages), prompt_pages);
    report.add({"allocate while it evicts, median", setting, spread_of(median_us), "us"});
    // What a page costs grows with a call's pages, and with it the share of calls that the machine holds up.
    const auto target = prompt_pages == 1 ? std::optional(at_most(10, "us")) : std::nullopt;
    report.add({"as many lines of other memory, p99.9", setting, spread_of(other_us), "us"});
    report.add({"allocate while it evicts, p99.9", setting, spread_of(tail_us), "us", "other memory",
                ratio_of(tail_us, other_us), target});
    report.add({"the same, of calls that were not preempted", setting, spread_of(undisturbed_us), "us"});
    report.add({"allocate while it rests, p99.9", setting, spread_of(rest_us), "us"});
    report.note(fmt::format("{}, {:.0f} pages/s: {} calls, {} of them found no pages; {} pages evicted", setting,
                            kPagesASecond, calls, without_pages, bed.segment().total(Counter::kEvictions) - evictions));
  }
}

// Looks up pages that are about to be evicted, again and again. A lookup may miss a page only when that is past return.
class EdgeOfEviction {
 public:
  explicit EdgeOfEviction(Bed& bed) : bed_(bed) {}

  // Publishes one page, and looks up one of those that are next to be evicted.
  void step() {
    publish();
    while (!queue_.empty() && !cached(queue_.front())) queue_.pop_front();
    if (queue_.size() < 2048) return;
    const std::size_t place = replay::mix64(++looks_) % 1024;
    const Known known = queue_[place];
    queue_[place] = queue_.front();
    queue_.pop_front();
    const std::vector<std::uint32_t> tokens = tokens_of(known.seed);
    const auto [pages, sequence] = begin(bed_.plugin(), bed_.worker(), bed_.name_space(), tokens);
    if (pages == 0) {
      ++misses_;
      if (cached(known)) ++false_misses_;
    } else {
      ++hits_;
      queue_.push_back(known);
    }
    bed_.plugin().expect(bed_.plugin()->release(sequence), "release");
    bed_.tick();
  }
  std::uint64_t hits() const { return hits_; }
  std::uint64_t misses() const { return misses_; }
  std::uint64_t false_misses() const { return false_misses_; }

 private:
  struct Known {
    std::uint64_t seed;
    Handle page;
  };

  static std::vector<std::uint32_t> tokens_of(std::uint64_t seed) {
    return random_tokens(0x8000'0000 + seed, kTokensPerPage);
  }
  bool cached(const Known& known) const {
    const StateWord word{bed_.segment().descriptor(known.page.page_index()).state.load(std::memory_order_seq_cst)};
    return known.page.same_life(word) && word.readable();
  }
  void publish() {
    const std::vector<std::uint32_t> tokens = tokens_of(next_);
    const replay::Plugin& plugin = bed_.plugin();
    const kvtrie_sequence sequence = begin(plugin, bed_.worker(), bed_.name_space(), tokens).sequence;
    if (const kvtrie_code code = plugin->allocate(sequence, tokens.size(), nullptr); code != KVTRIE_E_NOT_NOW) {
      plugin.expect(code, "allocate");
      std::uint32_t page = 0;
      plugin.expect(plugin->get_pages(sequence, 0, 1, &page), "get_pages");
      plugin.expect(plugin->publish(sequence, tokens.size(), nullptr), "publish");
      const StateWord word{bed_.segment().descriptor({page}).state.load(std::memory_order_acquire)};
      queue_.push_back({next_++, Handle::page({page}, word)});
    }
    plugin.expect(plugin->release(sequence), "release");
  }

  Bed& bed_;
  std::deque<Known> queue_;  // the least recently used first
  std::uint64_t next_ = 0;
  std::uint64_t looks_ = 0;
  std::uint64_t hits_ = 0;
  std::uint64_t misses_ = 0;
  std::uint64_t false_misses_ = 0;
};

void measure_rescues(const Settings& settings, Report& report) {
  Bed bed(settings, settings.quick ? 1U << 14 : 1U << 18, 5, 10);
  EdgeOfEviction edge(bed);
  const double end = now_ns() + (settings.quick ? 2e8 : 4e9);
  while (now_ns() < end) edge.step();
  const std::string setting =
      fmt::format("{}, {} hits, {} misses of evicted pages", millions(bed.segment().page_count()), edge.hits(),
                  edge.misses() - edge.false_misses());
  const auto rescues = static_cast<double>(bed.segment().total(Counter::kRescues));
  const auto false_misses = static_cast<double>(edge.false_misses());
  report.add({"lookups that missed a cached page", setting, one(false_misses), "lookups", {}, {}, at_most(0)});
  report.add({"lookups that rescued a Condemned page", setting, one(rescues), "lookups"});
}

// Hit ratio and run length trade against each other: more free pages are fewer cached ones, and longer free runs.
void measure_ageing(const Settings& settings, Report& report) {
  const std::uint64_t pages = settings.quick ? 1U << 14 : settings.pages / 4;
  const std::uint64_t requests = settings.quick ? 400 : 5000;
  for (const auto& [low, high] : {std::pair{1.0, 2.0}, std::pair{2.0, 5.0}, std::pair{5.0, 10.0}}) {
    for (const std::uint32_t workers : {1U, 4U}) {
      replay::Signals signals;
      const replay::OwnCache cache(Bed::options(pages, low, high), settings.kvtried, signals);
      const Aged aged = age(settings, {.workers = workers, .requests = requests}, cache);
      const std::string setting =
          fmt::format("{}, watermarks {}/{} %, {} workers, {} of {} requests, turned over {:.1f} times", millions(pages),
                      low, high, workers, requests, settings.trace.empty() ? "generated" : "the trace's", aged.turnovers);
      report.add({"aged: hits", setting, one(aged.hit_ratio * 100), "% of blocks"});
      report.add({"aged: mean run length", setting, one(aged.run_length), "pages"});
    }
  }
}

}  // namespace

void run_eviction(const Settings& settings, Report& report) {
  const std::uint64_t many = settings.quick ? settings.pages : std::uint64_t{1} << 23;
  measure_batches(settings, report);
  measure_allocation(settings, report);
  measure_rescues(settings, report);
  for (const auto& watermarks : {std::pair{1.0, 2.0}, std::pair{2.0, 5.0}, std::pair{0.1, 0.2}}) {
    measure_cpu(settings, many, watermarks, report);
  }
  measure_ageing(settings, report);
}

}  // namespace kvtrie::bench
