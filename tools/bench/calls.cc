// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Single calls on a cache of fresh prompts, each beside a floor in the same rounds. What takes new
// pages: fresh_pages.cc.

#include "tools/bench/calls.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "shm/lease.h"
#include "shm/page_table.h"
#include "tools/bench/floors.h"
#include "tools/bench/prompts.h"
#include "tools/bench/spread.h"
#include "tools/bench/workload.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kLongPrompt = 2048;
// Calls that are timed together.
constexpr std::size_t kBatch = 32;
constexpr std::size_t kProbesABatch = 8;

// Beside each other in all rounds; a floor is measured as the others are.
struct Measurement {
  std::string what;
  std::string setting;
  const char* unit;
  std::function<double()> measure;
  std::string floor{};  // `what` of another one
  std::optional<Target> target{};
};

void expect(bool as_it_should) {
  if (!as_it_should)
    throw std::runtime_error("a call found other pages than it should: the run is void");
}

class CachedCalls {
 public:
  CachedCalls(const Settings& settings, const BenchCache& cache)
      : calls_(settings.quick ? 1000 : 10'000),
        worker_(settings, cache.own(), cache.model()),
        observer_(cache.own().name()),
        writable_(open_writable(cache.own().name())),
        short_(cache.prompts(kPromptPages.front(), 1).at(0)),
        long_(cache.prompts(kLongPrompt, 128)),
        lines_(static_cast<std::uint32_t>(cache.state().pages)) {
    expect(!long_.empty());
    for (const Prompt& prompt : long_) {
      std::size_t count = 0;
      hashes_.emplace_back(kLongPrompt);
      worker_.plugin().expect(
          api().hash_tokens(worker_.worker(), worker_.name_space(), prompt.tokens.data(),
                            prompt.tokens.size(), hashes_.back().data(), kLongPrompt, &count),
          "hash_tokens");
    }
    std::uint32_t cached = 0;
    open_ = worker_.begin(short_.tokens, cached);
    open_long_ = worker_.begin(long_.front().tokens, cached);
  }

  std::vector<Measurement> all() {
    std::vector<Measurement> all;
    add_leases(all);
    add_probes(all);
    add_misses(all);
    add_forks(all);
    return all;
  }

 private:
  const kvtrie_api& api() const { return *worker_.plugin().operator->(); }

  // As an engine calls: nothing but the two calls and a look at their codes.
  double begin_and_release(std::size_t tokens, std::uint32_t flags, std::uint32_t expected) const {
    kvtrie_begin_options options{};
    options.size = sizeof options;
    options.flags = flags;
    kvtrie_begin_result result{};
    result.size = sizeof result;
    bool good = true;
    const double ns = call_ns(calls_, kBatch, [&](std::size_t) {
      kvtrie_sequence sequence{};
      good &= api().begin(worker_.worker(), worker_.name_space(), short_.tokens.data(), tokens,
                          &options, &result, &sequence) == KVTRIE_OK;
      good &= result.cached_pages == expected;
      good &= api().release(sequence) == KVTRIE_OK;
    });
    expect(good);
    return ns;
  }

  // In a row that no worker has, behind the mark up to which an evictor reads: nobody sees it.
  double lease_and_release() const {
    const Segment& segment = writable_;
    const WorkerId nobody{static_cast<std::uint16_t>(segment.slot_count() - 1)};
    LeaseSlot& slot = segment.leases(nobody).back();
    const PageIndex page{short_.pages.front()};
    const Handle handle = Handle::page(page, PageTable(segment).state(page));
    bool good = segment.worker(nobody).leases_high_water.load() == 0;
    const double ns = call_ns(calls_, kBatch, [&](std::size_t) {
      good &= acquire_lease(segment, slot, handle) == LeaseOutcome::kHeld;
      drop_lease(slot);
    });
    expect(good);
    return ns;
  }

  void add_leases(std::vector<Measurement>& all) {
    all.push_back({"store, full fence", "a word of one's own", "ns", [this] {
                     return call_ns(calls_, kBatch, [&](std::size_t i) { store_and_fence(word_, i); });
                   }});
    all.push_back({"entering a call", "kvtrie_page_count of an open sequence", "ns", [this] {
                     std::uint32_t count = 0;
                     const double ns =
                         call_ns(calls_, kBatch, [&](std::size_t) { api().page_count(open_, &count); });
                     expect(count == kPromptPages.front());
                     return ns;
                   }});
    all.push_back({"begin + release, no tokens", "two calls, nothing to match or lease", "ns",
                   [this] { return begin_and_release(0, 0, 0); }, "entering a call"});
    all.push_back({"lease + release", "of one cached, hot page: what begin and release do for it", "ns",
                   [this] { return lease_and_release(); }, "store, full fence", at_most(40, "ns")});
    all.push_back({"begin + release", "of one cached, hot page: the two calls", "ns",
                   [this] { return begin_and_release(kTokensPerPage, 0, 1); }, "begin + release, no tokens"});
    all.push_back({"begin + release, tokens stay", "of one cached, hot page: the two calls", "ns",
                   [this] { return begin_and_release(kTokensPerPage, KVTRIE_TOKENS_STAY, 1); },
                   "begin + release, no tokens"});
  }

  void add_probes(std::vector<Measurement>& all) {
    const std::string setting = fmt::format("prompts of {} cached pages", kLongPrompt);
    const auto prompts = static_cast<std::uint32_t>(long_.size());
    all.push_back({"random line", "each names the next, as many as pages", "ns",
                   [this] { return time_ns([&] { keep(lines_.dependent()); }) / lines_.count(); }});
    all.push_back({"probe, hashes given", setting, "ns",
                   [this, prompts] {
                     bool good = true;
                     const double ns = call_ns(prompts, kProbesABatch, [&](std::size_t i) {
                       kvtrie_probe_result result{};
                       result.size = sizeof result;
                       good &= api().probe_hashes(worker_.worker(), worker_.name_space(),
                                                  hashes_[i].data(), kLongPrompt,
                                                  &result) == KVTRIE_OK &&
                               result.cached_pages == kLongPrompt;
                     });
                     expect(good);
                     return ns;
                   },
                   "random line", at_most(2000, "ns")});
    all.push_back({"stream", setting, "ns/page", [this, prompts] { return stream_ns(prompts); }});
    all.push_back({"probe, tokens given", setting, "ns/page",
                   [this, prompts] {
                     bool good = true;
                     const double ns = call_ns(prompts, 1, [&](std::size_t i) {
                       kvtrie_probe_result result{};
                       result.size = sizeof result;
                       good &= api().probe(worker_.worker(), worker_.name_space(),
                                           long_[i].tokens.data(), long_[i].tokens.size(),
                                           &result) == KVTRIE_OK &&
                               result.cached_pages == kLongPrompt;
                     });
                     expect(good);
                     return ns / kLongPrompt;
                   },
                   "stream"});
  }

  double stream_ns(std::uint32_t prompts) const {
    std::uint64_t different = 0;
    const auto* descriptors =
        reinterpret_cast<const std::byte*>(&observer_.segment().descriptor({0}));
    const double ns = call_ns(prompts, 1, [&](std::size_t i) {
      different |= stream(descriptors, long_[i].pages, long_[i].tokens.data());
    });
    expect(different == 0);
    return ns / kLongPrompt;
  }

  void add_misses(std::vector<Measurement>& all) {
    for (const std::uint32_t length : kPromptPages) {
      missing_.push_back(
          random_tokens(~std::uint64_t{length}, std::size_t{length} * kTokensPerPage));
    }
    for (const std::uint32_t flags : {std::uint32_t{0}, std::uint32_t{KVTRIE_TOKENS_STAY}}) {
      for (std::size_t i = 0; i < kPromptPages.size(); ++i) {
        all.push_back(
            {flags == 0 ? "miss at the first page" : "miss at the first page, tokens stay",
             fmt::format("prompt of {} pages", kPromptPages.at(i)), "ns",
             [this, flags, i] {
               return call_ns(calls_ / 10, kBatch, [&](std::size_t) {
                 missing_[i][0] += 0x9E37'79B9;
                 expect(worker_.begin_and_release(missing_[i], flags) == 0);
               });
             },
             "random line", flags == 0 ? std::optional<Target>() : at_most(300, "ns")});
      }
    }
  }

  void add_forks(std::vector<Measurement>& all) {
    const auto fork = [this](kvtrie_sequence parent) {
      return [this, parent] {
        return call_ns(calls_ / 10, kBatch, [&](std::size_t) {
          kvtrie_sequence child{};
          worker_.plugin().expect(api().fork_sequence(parent, nullptr, &child), "fork");
          worker_.release(child);
        });
      };
    };
    all.push_back({"fork + release", fmt::format("{} cached pages", kPromptPages.front()), "ns",
                   fork(open_), "store, full fence"});
    all.push_back({"fork + release", fmt::format("{} cached pages", kLongPrompt), "ns",
                   fork(open_long_), "store, full fence"});
  }

  const std::uint32_t calls_;
  const BenchWorker worker_;
  const replay::Observer observer_;
  const Segment writable_;
  const Prompt short_;
  const std::vector<Prompt> long_;
  std::vector<std::vector<std::uint64_t>> hashes_;  // of long_
  std::vector<std::vector<std::uint32_t>> missing_;
  const RandomLines lines_;
  alignas(kFloorLineBytes) std::atomic<std::uint64_t> word_{0};
  kvtrie_sequence open_{};
  kvtrie_sequence open_long_{};
};

void report_cached(const Settings& settings, Report& report) {
  const BenchCache cache(settings, {.pages = settings.pages, .age = Age::kFresh});
  CachedCalls calls(settings, cache);
  const std::vector<Measurement> all = calls.all();
  std::vector<std::function<double()>> measured;
  for (const Measurement& one : all)
    measured.push_back(one.measure);
  const Rounds rounds = alternate(settings.rounds, measured);
  for (std::size_t i = 0; i < all.size(); ++i) {
    Row row{all[i].what, all[i].setting, spread_of(rounds[i]), all[i].unit, all[i].floor,
            {},          all[i].target};
    const auto floor = std::ranges::find(all, all[i].floor, &Measurement::what);
    if (floor != all.end())
      row.ratio = ratio_of(rounds[i], rounds[static_cast<std::size_t>(floor - all.begin())]);
    report.add(std::move(row));
  }
}

}  // namespace

void run_calls(const Settings& settings, Report& report) {
  report_cached(settings, report);
  report_fresh_pages(settings, report);
  report.note("tokens stay: begun with KVTRIE_TOKENS_STAY, so without a copy of the tokens");
  report.note("pages of a cache: " + std::to_string(settings.pages));
}

}  // namespace kvtrie::bench
