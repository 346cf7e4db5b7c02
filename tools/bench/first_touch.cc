// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tools/bench/huge_shm.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"
#include "tools/replay/random.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kPromptPages = 2048;
constexpr std::uint64_t kPageBytes = 512;
constexpr std::uint64_t kMetadataBytes = 256;  // of a page, and some
constexpr std::uint64_t kUsedBefore = 3;       // times that: what is freed is not always what is given out next
constexpr std::uint32_t kRoundsMax = 3;        // of starts: each makes all memory anew
constexpr double kPrefaultLimitNs = 60e9;

// In a virtual machine, memory that was free for a while may have gone back to the host, and whoever uses it next pays
// for that, whatever is measured. So it is used and freed again right before.
void use_memory(std::uint64_t bytes) {
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("not enough memory");
  (void)::madvise(memory, bytes, MADV_HUGEPAGE);
  std::memset(memory, 1, bytes);
  ::munmap(memory, bytes);
}

// A cache that nobody has touched, and how long it took to be there.
class FreshCache {
 public:
  FreshCache(const Settings& settings, const replay::Plugin& plugin, replay::Signals& signals,
             std::vector<std::string> flags)
      : plugin_(plugin), pages_(settings.pages) {
    replay::ReplayOptions options;
    options.geometry = {.pages = pages_, .tokens_per_page = kTokensPerPage, .page_bytes = kPageBytes};
    options.low_percent = options.high_percent = 0;
    options.kvtried_flags = std::move(flags);
    use_memory(kUsedBefore * pages_ * (kPageBytes + kMetadataBytes));
    start_ns_ = now_ns();
    cache_.emplace(options, settings.kvtried, signals);
    ready_ns_ = now_ns() - start_ns_;
  }

  [[nodiscard]] double ready_ns() const { return ready_ns_; }
  // From the start, too.
  double prefaulted_ns() const {
    while (cache_->log().find("event=prefault") == std::string::npos) {
      if (now_ns() - start_ns_ > kPrefaultLimitNs) throw std::runtime_error("no end of --prefault");
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return now_ns() - start_ns_;
  }
  void attach() {
    attachment_.emplace(plugin_, cache_->name(), cache_->directory(), "kvtrie-bench", false);
    space_ = open_namespace(plugin_, attachment_->worker());
  }

  // Nanoseconds a page of begin, allocate, publish and release of prompts over the whole segment. Their pages are kept.
  double fill(std::uint64_t seed) {
    double ns = 0;
    for (std::uint64_t i = 0; i < pages_ / kPromptPages; ++i)
      ns += fill_one(seed + i);
    return ns / static_cast<double>(pages_ / kPromptPages * kPromptPages);
  }
  // Nanoseconds a page of writing all bytes of pages that were filled.
  double write_bytes() {
    const double ns = time_ns([&] {
      for (const std::uint32_t page : filled_) {
        void* address = nullptr;
        plugin_.expect(plugin_->page_address(attachment_->worker(), page, 0, &address), "page_address");
        std::memset(address, 1, kPageBytes);
      }
    });
    return ns / static_cast<double>(filled_.size());
  }
  // Nanoseconds a page of full hits, prompts of `pages` pages each, of which `tokens` has many.
  double hit(std::span<const std::uint32_t> tokens, std::uint32_t pages) {
    const std::size_t length = std::size_t{pages} * kTokensPerPage;
    const std::size_t count = tokens.size() / length;
    const double ns = time_ns([&] {
      for (std::size_t i = 0; i < count; ++i) {
        // In no order of memory.
        const std::span<const std::uint32_t> prompt = tokens.subspan(i * 100'003 % count * length, length);
        const auto [cached, sequence] = begin_span(prompt);
        if (cached != pages) throw std::runtime_error("a prompt that was cached is not");
        plugin_.expect(plugin_->release(sequence), "release");
      }
    });
    return ns / static_cast<double>(count * pages);
  }
  void cache(std::span<const std::uint32_t> tokens, std::uint32_t pages) {
    const std::size_t length = std::size_t{pages} * kTokensPerPage;
    for (std::size_t at = 0; at + length <= tokens.size(); at += length) {
      const kvtrie_sequence sequence = begin_span(tokens.subspan(at, length)).sequence;
      plugin_.expect(plugin_->allocate(sequence, length, nullptr), "allocate");
      plugin_.expect(plugin_->publish(sequence, length, nullptr), "publish");
      plugin_.expect(plugin_->release(sequence), "release");
    }
  }

 private:
  Begun begin_span(std::span<const std::uint32_t> tokens) {
    kvtrie_begin_result result{};
    result.size = sizeof result;
    kvtrie_sequence sequence{};
    plugin_.expect(
        plugin_->begin(attachment_->worker(), space_, tokens.data(), tokens.size(), nullptr, &result, &sequence),
        "begin");
    return {result.cached_pages, sequence};
  }
  double fill_one(std::uint64_t seed) {
    const std::vector<std::uint32_t> tokens = random_tokens(seed, std::size_t{kPromptPages} * kTokensPerPage);
    const std::size_t before = filled_.size();
    filled_.resize(before + kPromptPages);
    return time_ns([&] {
      const kvtrie_sequence sequence = begin_span(tokens).sequence;
      plugin_.expect(plugin_->allocate(sequence, tokens.size(), nullptr), "allocate");
      plugin_.expect(plugin_->get_pages(sequence, 0, kPromptPages, filled_.data() + before), "get_pages");
      plugin_.expect(plugin_->publish(sequence, tokens.size(), nullptr), "publish");
      plugin_.expect(plugin_->release(sequence), "release");
    });
  }

  const replay::Plugin& plugin_;
  std::uint64_t pages_;
  double start_ns_ = 0;
  double ready_ns_ = 0;
  std::optional<replay::OwnCache> cache_;
  std::optional<replay::Attachment> attachment_;
  kvtrie_namespace space_{};
  std::vector<std::uint32_t> filled_;
};

// Of one way to start, by round.
struct Starts {
  const char* name;
  std::vector<std::string> flags;
  bool huge;
  std::vector<double> ready_ms{};
  std::vector<double> made_ms{};  // of all memory; with --prefault
  std::vector<double> fill_ns{};
  std::vector<double> write_ns{};
};

// Why there are no huge pages, or empty.
std::string start_once(const Settings& settings, const replay::Plugin& plugin, replay::Signals& signals,
                       Starts& starts) {
  std::optional<HugeShm> shm;
  if (starts.huge) shm.emplace();
  if (shm && !shm->problem().empty()) return shm->problem();
  FreshCache cache(settings, plugin, signals, starts.flags);
  starts.ready_ms.push_back(cache.ready_ns() / 1e6);
  if (!starts.flags.empty() && !starts.huge) starts.made_ms.push_back(cache.prefaulted_ns() / 1e6);
  cache.attach();
  starts.fill_ns.push_back(cache.fill(1));
  starts.write_ns.push_back(cache.write_bytes());
  return {};
}

void measure_starts(const Settings& settings, const replay::Plugin& plugin, replay::Signals& signals, Report& report) {
  std::vector<Starts> all{{"as it is", {}, false},
                          {"--prefault", {"--prefault"}, false},
                          {"--huge-pages", {"--huge-pages"}, true}};
  std::string problem;
  for (std::uint32_t round = 0; round < std::min(settings.rounds, kRoundsMax); ++round) {
    for (Starts& starts : all) {
      if (std::string why = start_once(settings, plugin, signals, starts); !why.empty()) problem = why;
    }
  }
  if (!problem.empty()) report.note(fmt::format("no rows with --huge-pages: {}", problem));
  const Starts& plain = all.front();
  const auto add = [&](const char* what, std::vector<double> Starts::*figures, const char* unit) {
    for (const Starts& starts : all) {
      if ((starts.*figures).empty()) continue;
      Row row{what, starts.name, spread_of(starts.*figures), unit};
      if (&starts != &plain) {
        row.to = plain.name;
        row.ratio = ratio_of(starts.*figures, plain.*figures);
      }
      report.add(std::move(row));
    }
  };
  add("start to ready", &Starts::ready_ms, "ms");
  for (const Starts& starts : all) {
    if (starts.made_ms.empty()) continue;
    report.add({"start to event=prefault", starts.name, spread_of(starts.made_ms), "ms", "its start to ready",
                ratio_of(starts.made_ms, starts.ready_ms)});
  }
  add("first begin, allocate, publish", &Starts::fill_ns, "ns/page");
  add("first write of a page's bytes", &Starts::write_ns, "ns/page");
  report.note(
      fmt::format("{} pages of {} bytes, one process; a first touch by a worker is a page fault, which also clears the "
                  "memory where --prefault has not",
                  settings.pages, kPageBytes));
}

// What the kernel says of this process's mappings of /dev/shm.
double huge_percent() {
  std::ifstream smaps("/proc/self/smaps");
  double resident = 0;
  double huge = 0;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    const auto kib = [&](const char* key) {
      return line.starts_with(key) ? std::stod(line.substr(line.find(':') + 1)) : 0;
    };
    if (line.find('-') < line.find(' ')) inside = line.find("/kvtrie.") != std::string::npos;
    if (!inside) continue;
    resident += kib("Rss:");
    huge += kib("ShmemPmdMapped:");
  }
  return resident == 0 ? 0 : 100 * huge / resident;
}

void measure_lookups(const Settings& settings, const replay::Plugin& plugin, replay::Signals& signals, Report& report) {
  // Half of the cache long prompts, half prompts of a page.
  const std::uint64_t half = settings.pages / 2 / kPromptPages * kPromptPages;
  const std::vector<std::uint32_t> long_prompts = random_tokens(1, half * kTokensPerPage);
  const std::vector<std::uint32_t> short_prompts = random_tokens(2, half * kTokensPerPage);
  FreshCache small(settings, plugin, signals, {"--prefault"});
  small.prefaulted_ns();
  const HugeShm shm;
  if (!shm.problem().empty()) return;
  FreshCache huge(settings, plugin, signals, {"--huge-pages"});
  double percent = 0;
  for (FreshCache* cache : {&huge, &small}) {
    cache->attach();
    cache->cache(long_prompts, kPromptPages);
    cache->cache(short_prompts, 1);
    if (cache == &huge) percent = huge_percent();
  }
  const std::pair<const char*, std::pair<const std::vector<std::uint32_t>*, std::uint32_t>> prompts[] = {
      {"prompts of 2,048 pages", {&long_prompts, kPromptPages}}, {"prompts of 1 page, at random", {&short_prompts, 1}}};
  for (const auto& [name, shape] : prompts) {
    const auto& [tokens, pages] = shape;
    const Rounds ns = alternate(settings.rounds, {[&, t = tokens, p = pages] { return huge.hit(*t, p); },
                                                  [&, t = tokens, p = pages] { return small.hit(*t, p); }});
    report.add({"begin, release", fmt::format("{}, 4 KiB pages", name), spread_of(ns[1]), "ns/page"});
    report.add({"begin, release", fmt::format("{}, --huge-pages", name), spread_of(ns[0]), "ns/page", "4 KiB pages",
                ratio_of(ns[0], ns[1])});
  }
  report.note(
      fmt::format("with --huge-pages, {:.0f} % of what the worker has mapped of the cache are huge pages", percent));
}

}  // namespace

void run_first_touch(const Settings& settings, Report& report) {
  replay::Signals signals;
  const replay::Plugin plugin(settings.plugin);
  measure_starts(settings, plugin, signals, report);
  measure_lookups(settings, plugin, signals, report);
}

}  // namespace kvtrie::bench
