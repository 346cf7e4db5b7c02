// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Lookups (lookups.h) in caches of all sizes and ages: one segment of each size is filled, aged, emptied and filled in
// no order. Two processes measure the same at the same places; one of them alone and both at once take turns in each
// round. Then beside a writer that makes the coordinator evict (churn.h).

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "tools/bench/churn.h"
#include "tools/bench/crew.h"
#include "tools/bench/lookups.h"
#include "tools/bench/sections.h"
#include "tools/warm/warm_memory.h"
#include "tools/bench/workload.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kJudgedLength = 2048;
constexpr std::uint64_t kJudgedPages = 1U << 20;
// Of a worker: a prompt each of the shortest, and what the others of the process take.
constexpr std::uint32_t kLeases = kPagesABlock / kPromptPages.front() + 1024;

struct Measured {
  Rounds alone;  // by candidate
  Rounds both;   // of each, while both do the same: the harmonic mean
};

// Of a large cache fewer, since a round takes longer, and goes over more memory.
std::uint32_t rounds_of(const Settings& settings, const BenchCache& cache) {
  return cache.state().pages > kJudgedPages ? (settings.rounds + 1) / 2 : settings.rounds;
}

Measured measure(const Settings& settings, const BenchCache& cache,
                 const std::vector<Prompt>& prompts) {
  const std::uint32_t rounds = rounds_of(settings, cache);
  const auto figures = run_crew(2, [&](CrewMember& member) {
    Lookups lookups(settings, cache, prompts);
    for (std::uint32_t round = 0; round <= rounds; ++round) {
      warm_memory();
      for (std::uint8_t i = 0; i < kCandidates; ++i) {
        const auto candidate = static_cast<Candidate>(i);
        // Reported of shuffled caches alone.
        if (candidate == kIndexStream && cache.state().age != Age::kShuffled) {
          if (member.index() == 0) member.figure(0);
          member.figure(0);
          continue;
        }
        member.meet();
        if (member.index() == 0) member.figure(lookups.time(candidate));
        member.meet();
        member.figure(lookups.time(candidate));
      }
    }
  });
  Measured measured{Rounds(kCandidates), Rounds(kCandidates)};
  for (std::uint32_t round = 1; round <= rounds; ++round) {
    for (std::uint8_t i = 0; i < kCandidates; ++i) {
      const std::size_t at = std::size_t{round} * kCandidates + i;
      measured.alone[i].push_back(figures[0][2 * at]);
      measured.both[i].push_back(2 / (1 / figures[0][2 * at + 1] + 1 / figures[1][at]));
    }
  }
  return measured;
}

std::string count_text(std::uint64_t count) {
  if (count % (1U << 20) == 0) return fmt::format("{} M", count >> 20);
  return count % 1024 == 0 ? fmt::format("{} k", count >> 10) : fmt::format("{}", count);
}

std::optional<Target> hit_target(const CacheState& cache, std::uint32_t length) {
  if (length != kJudgedLength || cache.pages != kJudgedPages) return std::nullopt;
  if (cache.age == Age::kFresh) return at_most(1.5);
  if (cache.age == Age::kShuffled) return at_most(4.5);
  return at_most(cache.low_percent > 1 ? 2.5 : 3.5);
}

// Of two processes together, to one alone; by round.
std::vector<double> speed_up(const Measured& measured, Candidate candidate) {
  std::vector<double> values;
  for (std::size_t i = 0; i < measured.alone[candidate].size(); ++i) {
    values.push_back(2 * measured.alone[candidate][i] / measured.both[candidate][i]);
  }
  return values;
}

void report_two(const CacheState& cache, std::uint32_t length, const std::string& setting,
                const Measured& measured, Report& report) {
  report.add({"full hit, two processes", setting, spread_of(measured.both[kFull]), "ns/page",
              "stream of two", ratio_of(measured.both[kFull], measured.both[kStream])});
  report.add({"half hit, two processes", setting, spread_of(measured.both[kHalf]), "ns/page",
              "stream of two", ratio_of(measured.both[kHalf], measured.both[kStream])});
  report.add({"miss at the first page, two processes", setting, spread_of(measured.both[kMiss]),
              "ns", "one", ratio_of(measured.both[kMiss], measured.alone[kMiss])});
  const std::vector<double> hit = speed_up(measured, kFull);
  Row row{"two processes together", setting, spread_of(hit), "times one"};
  if (cache.age == Age::kShuffled || cache.pages <= 1U << 14) {
    if (length == kJudgedLength) row.target = at_least(1.8);
  } else {
    row.to = "stream's";
    row.ratio = ratio_of(hit, speed_up(measured, kStream));
    if (length == kJudgedLength && cache.pages == kJudgedPages) row.target = at_least(0.95);
  }
  report.add(std::move(row));
}

void report_lookups(const Settings& settings, const BenchCache& cache, const std::string& state,
                    Report& report) {
  for (const std::uint32_t length : kPromptPages) {
    const std::vector<Prompt> prompts = cache.prompts(length);
    if (prompts.empty()) {
      report.note(fmt::format("{}: no prompt is cached of {} pages", state, length));
      continue;
    }
    if (cache.state().age == Age::kAged && !cache.of_the_trace(length)) {
      report.note(fmt::format("{}: prompts of {} pages, which no request has left, were cached after it was aged: {}",
                              state, length, prompts.size()));
    }
    const std::string setting = fmt::format("{}, prompt of {}", state, length);
    const Measured measured = measure(settings, cache, prompts);
    const auto add = [&](const char* what, Candidate candidate, std::optional<Target> target = {}) {
      report.add({what, setting, spread_of(measured.alone[candidate]), "ns/page", "stream",
                  ratio_of(measured.alone[candidate], measured.alone[kStream]), std::move(target)});
    };
    add("full hit", kFull, hit_target(cache.state(), length));
    add("full hit, tokens stay", kFullTokensStay, hit_target(cache.state(), length));
    add("half hit", kHalf);
    if (cache.state().age == Age::kShuffled) add("the lines of a full hit, known before", kIndexStream);
    report.add({"miss at the first page", setting, spread_of(measured.alone[kMiss]), "ns", "a line of the index",
                ratio_of(measured.alone[kMiss], measured.alone[kIndexLine]), at_most(300, "ns")});
    report_two(cache.state(), length, setting, measured, report);
  }
}

// Beside a writer and an evictor.
constexpr std::array kMeasured{kFull, kHalf, kMiss, kStream};
constexpr std::array kMeasuredName{"full hit", "half hit", "miss at the first page", "stream"};
constexpr double kShortestNs = 60e6;  // so that writer and evictor both have their turns
constexpr double kLongestNs = 10e9;

// Of each length and what is measured, then M pages/s that are evicted meanwhile. Each is the mean over one stretch of
// time, of this thread's alone, in which pages are evicted when they should be.
std::vector<double> beside(const Segment& segment, std::span<const std::unique_ptr<Lookups>> lengths, bool evicts) {
  std::vector<double> figures(lengths.size() * kMeasured.size() + 1);
  const auto evictions = [&] { return segment.total(Counter::kEvictions); };
  const std::uint64_t before = evictions();
  const double start = now_ns();
  double took = 0, times = 0;
  for (; took < kShortestNs || (evicts && evictions() == before); took = now_ns() - start) {
    if (took > kLongestNs)
      throw std::runtime_error("beside a writer nothing is evicted: the run is void");
    for (std::size_t i = 0; i + 1 < figures.size(); ++i)
      figures[i] += lengths[i / kMeasured.size()]->time(kMeasured.at(i % kMeasured.size()));
    ++times;
  }
  for (double& figure : figures)
    figure /= times;
  figures.back() = static_cast<double>(evictions() - before) / took * 1e3;
  return figures;
}

// The prompts of each length that are looked up beside a writer. Few enough that what is leased leaves the evictor
// pages.
std::vector<std::vector<Prompt>> prompts_to_hold(const BenchCache& cache) {
  std::vector<std::vector<Prompt>> held;
  for (const std::uint32_t length : kPromptPages) {
    const std::uint64_t most = cache.state().pages / 16 / length;
    if (length > cache.state().pages / 8) continue;
    held.push_back(cache.prompts(length, std::max<std::uint64_t>(most, 1)));
    if (held.back().empty()) held.pop_back();
  }
  return held;
}

// By how many processes look up (1, 2), without and with a writer, figure, round.
using BesideWriter = std::array<std::array<Rounds, 2>, 2>;

// Without and with a writer and an evictor by turns, one process and two at once, of which the figure is the harmonic
// mean. The prompts are leased, so that they stay.
BesideWriter measure_churn(const Settings& settings, const BenchCache& cache,
                           const std::vector<std::vector<Prompt>>& prompts) {
  // Of a large cache a writer and the evictor's scan take a second or two to begin and to end.
  const std::uint32_t rounds = cache.state().pages > kJudgedPages ? std::min(settings.rounds, 3U) : settings.rounds;
  constexpr std::chrono::microseconds kBetweenLooks{200};
  const auto figures = run_crew(2, [&](CrewMember& member) {
    std::optional<Churn> churn;
    if (member.index() == 0) churn.emplace(settings, cache);
    const replay::Observer observer(cache.own().name());
    std::vector<std::unique_ptr<Lookups>> lengths;
    for (const std::vector<Prompt>& of_one_length : prompts) {
      lengths.push_back(std::make_unique<Lookups>(settings, cache, of_one_length, thread_ns));
      lengths.back()->hold();
    }
    for (std::uint32_t round = 0; round <= rounds; ++round) {
      for (const bool with : {false, true}) {
        if (churn && with) churn->go_on();
        for (const std::uint32_t processes : {1U, 2U}) {
          member.meet(kBetweenLooks);
          if (member.index() >= processes) continue;
          for (const double figure : beside(observer.segment(), lengths, with))
            member.figure(figure);
        }
        member.meet(kBetweenLooks);
        if (churn && with) churn->stop();
      }
    }
  });
  const std::size_t count = prompts.size() * kMeasured.size() + 1;
  BesideWriter measured;
  for (auto& of_processes : measured) of_processes = {Rounds(count), Rounds(count)};
  for (std::size_t turn = 2; turn < 2 * (rounds + 1); ++turn) {  // the first round warms up
    for (std::size_t i = 0; i < count; ++i) {
      const double* const first = &figures[0][2 * turn * count + i];
      measured[0].at(turn % 2)[i].push_back(first[0]);
      measured[1].at(turn % 2)[i].push_back(2 / (1 / first[count] + 1 / figures[1][turn * count + i]));
    }
  }
  return measured;
}

void report_churn(const Settings& settings, const BenchCache& cache, const std::string& state,
                  Report& report) {
  const std::vector<std::vector<Prompt>> prompts = prompts_to_hold(cache);
  const BesideWriter measured = measure_churn(settings, cache, prompts);
  constexpr std::array kWho{"with a writer", "two processes with a writer"};
  for (std::size_t processes = 0; processes < kWho.size(); ++processes) {
    const auto& [without, with] = measured.at(processes);
    for (std::size_t i = 0; i < prompts.size() * kMeasured.size(); ++i) {
      const std::size_t pages = prompts[i / kMeasured.size()].front().pages.size();
      const std::size_t what = i % kMeasured.size();
      report.add({fmt::format("{}, {}", kMeasuredName.at(what), kWho.at(processes)),
                  fmt::format("{}, prompt of {}", state, pages), spread_of(with[i]),
                  kMeasured.at(what) == kMiss ? "ns" : "ns/page", "without", ratio_of(with[i], without[i])});
    }
    report.add({fmt::format("evicted meanwhile, {}", kWho.at(processes)), state, spread_of(with.back()), "M pages/s"});
  }
}

void report_state(const Settings& settings, const BenchCache& cache, bool with_writer, Report& report) {
  const CacheState& is = cache.state();
  const std::string age = fmt::format("{} pages, {}", count_text(is.pages), name_of(is.age));
  const bool aged = is.age == Age::kAged;
  const std::string state =
      aged ? fmt::format("{}, {}/{} % free", age, is.low_percent, is.high_percent) : age;
  if (aged) {
    report.add({"mean run", fmt::format("{}, turned over {:.1f} times", state, cache.turnovers()),
                spread_of({cache.mean_run()}), "pages"});
    std::string runs;
    for (const auto& [turnovers, run] : cache.runs_while_aged())
      runs += fmt::format("{}{:.0f} after {:.1f}", runs.empty() ? "" : ", ", run, turnovers);
    report.note(fmt::format("{}: mean run by how often the pool had turned over: {}", state, runs));
  }
  report_lookups(settings, cache, state, report);
  if (with_writer) report_churn(settings, cache, state, report);
}

}  // namespace

void run_hit(const Settings& settings, Report& report) {
  const auto wanted = [&](Age age) { return settings.age.empty() || settings.age == name_of(age); };
  std::vector<std::uint64_t> sizes{1U << 14, kJudgedPages, 1U << 23};
  if (settings.quick) sizes = {1U << 14};
  if (settings.pages_given) sizes = {settings.pages};
  for (const std::uint64_t pages : sizes) {
    // A large cache is aged with more free pages: a scan of its evictor then serves for three times as many, and ageing
    // it is mostly scans. So it is done in a minute.
    const bool large = pages > kJudgedPages;
    CacheState state{.pages = pages, .low_percent = large ? 5.0 : 1.0, .high_percent = large ? 10.0 : 2.0,
                     .turnovers = settings.turnovers, .leases = kLeases};
    std::optional<BenchCache> cache;
    for (const Age age : {Age::kFresh, Age::kAged, Age::kShuffled}) {
      if (!wanted(age)) continue;
      state.age = age;
      if (cache) {
        cache->become(settings, age);
      } else {
        cache.emplace(settings, state);
      }
      report_state(settings, *cache, true, report);
    }
    if (!wanted(Age::kAged) || large) continue;
    cache.reset();
    state.age = Age::kAged;
    state.low_percent = 5;
    state.high_percent = 10;
    report_state(settings, BenchCache(settings, state), false, report);
  }
}

}  // namespace kvtrie::bench
