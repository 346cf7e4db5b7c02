// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Lookups (lookups.h) in caches of all sizes and ages. Two processes measure the same at the same
// places; one of them alone and both at once take turns in each round. Then beside a writer that
// makes the coordinator evict (churn.h).

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>

#include "tools/bench/churn.h"
#include "tools/bench/crew.h"
#include "tools/bench/lookups.h"
#include "tools/bench/sections.h"
#include "tools/bench/warm.h"
#include "tools/bench/workload.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kJudgedLength = 2048;
constexpr std::uint64_t kJudgedPages = 1U << 20;

struct Measured {
  Rounds alone;  // by candidate
  Rounds both;   // of each, while both do the same: the harmonic mean
};

Measured measure(const Settings& settings, const BenchCache& cache,
                 const std::vector<Prompt>& prompts) {
  const auto figures = run_crew(2, [&](CrewMember& member) {
    Lookups lookups(settings, cache, prompts);
    for (std::uint32_t round = 0; round <= settings.rounds; ++round) {
      for (std::uint8_t i = 0; i < kCandidates; ++i) {
        const auto candidate = static_cast<Candidate>(i);
        // Reported of shuffled caches alone.
        if (candidate == kIndexStream && cache.state().age != Age::kShuffled) {
          if (member.index() == 0) member.figure(0);
          member.figure(0);
          continue;
        }
        warm_memory();
        member.meet();
        if (member.index() == 0) member.figure(lookups.time(candidate));
        warm_memory();
        member.meet();
        member.figure(lookups.time(candidate));
      }
    }
  });
  Measured measured{Rounds(kCandidates), Rounds(kCandidates)};
  for (std::uint32_t round = 1; round <= settings.rounds; ++round) {
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
  std::string none;
  for (const std::uint32_t length : kPromptPages) {
    const std::vector<Prompt> prompts =
        cache.prompts(length, std::max<std::uint64_t>(kPagesABlock / length, 1));
    if (prompts.empty()) {
      none += fmt::format("{}{}", none.empty() ? "" : ", ", length);
      continue;
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
    report.add({"miss at the first page",
                setting,
                spread_of(measured.alone[kMiss]),
                "ns",
                {},
                {},
                at_most(300)});
    report_two(cache.state(), length, setting, measured, report);
  }
  if (!none.empty()) report.note(fmt::format("{}: no prompt is cached of {} pages", state, none));
}

// Beside a writer and an evictor.
constexpr std::array kMeasured{kFull, kMiss, kStream};
constexpr std::size_t kFigures = kMeasured.size() + 1;  // and M pages/s that are evicted meanwhile
constexpr double kShortestNs = 60e6;  // so that writer and evictor both have their turns
constexpr double kLongestNs = 10e9;

// Each is the mean over one stretch of time, of this thread's alone, in which pages are evicted
// when they should be.
std::array<double, kFigures> beside(const Churn& churn, Lookups& lookups, bool evicts) {
  std::array<double, kFigures> figures{};
  const std::uint64_t before = churn.evictions();
  const double start = now_ns();
  double took = 0, times = 0;
  for (; took < kShortestNs || (evicts && churn.evictions() == before); took = now_ns() - start) {
    if (took > kLongestNs)
      throw std::runtime_error("beside a writer nothing is evicted: the run is void");
    for (std::size_t i = 0; i < kMeasured.size(); ++i)
      figures.at(i) += lookups.time(kMeasured.at(i));
    ++times;
  }
  for (double& figure : figures)
    figure /= times;
  figures.back() = static_cast<double>(churn.evictions() - before) / took * 1e3;
  return figures;
}

// Without and with a writer and an evictor by turns. The prompts are leased, so that they stay.
void report_churn(const Settings& settings, const BenchCache& cache, const std::string& state,
                  Report& report) {
  const std::uint32_t length = settings.quick ? 256 : kJudgedLength;
  // An eighth of the cache, lest what is leased leaves the evictor nothing.
  const std::uint64_t most = std::min(kPagesABlock, cache.state().pages / 8) / length;
  const std::vector<Prompt> prompts = cache.prompts(length, most);
  if (prompts.empty())
    return report.note(
        fmt::format("{}, with a writer: no prompt is cached of {} pages", state, length));
  const auto figures = run_crew(1, [&](CrewMember& member) {
    const Churn churn(settings, cache);
    Lookups lookups(settings, cache, prompts, thread_ns);
    lookups.hold();
    for (std::uint32_t round = 0; round <= settings.rounds; ++round) {
      for (const bool with : {false, true}) {
        if (with) churn.go_on();
        for (const double figure : beside(churn, lookups, with))
          member.figure(figure);
        if (with) churn.stop();
      }
    }
  });
  std::array<Rounds, 2> measured{Rounds(kFigures), Rounds(kFigures)};  // without, with
  for (std::size_t at = 2 * kFigures; at < figures[0].size(); ++at) {
    measured.at(at / kFigures % 2)[at % kFigures].push_back(figures[0][at]);
  }
  constexpr std::array kWhat{"full hit, with a writer", "miss at the first page, with a writer",
                             "stream, with a writer"};
  const std::string setting = fmt::format("{}, prompt of {}", state, length);
  for (std::size_t i = 0; i < kWhat.size(); ++i) {
    report.add({kWhat.at(i), setting, spread_of(measured[1][i]),
                kMeasured.at(i) == kMiss ? "ns" : "ns/page", "without",
                ratio_of(measured[1][i], measured[0][i])});
  }
  report.add({"evicted meanwhile", setting, spread_of(measured[1].back()), "M pages/s"});
}

}  // namespace

void run_hit(const Settings& settings, Report& report) {
  const auto wanted = [&](Age age) { return settings.age.empty() || settings.age == name_of(age); };
  std::vector<std::uint64_t> sizes{1U << 14, kJudgedPages, 1U << 23};
  if (settings.quick) sizes = {1U << 14};
  if (settings.pages_given) sizes = {settings.pages};
  for (const std::uint64_t pages : sizes) {
    const std::string size = count_text(pages) + " pages";
    // Beside a writer: the size of the targets, or what was asked for.
    const bool churn = pages == kJudgedPages || settings.quick || settings.pages_given;
    // A large cache takes minutes to be shuffled or aged.
    const bool fresh_only = pages > kJudgedPages && !settings.pages_given;
    if (fresh_only) {
      report.note(fmt::format(
          "{}: shuffled and aged only by --pages {}, since making them so takes minutes", size,
          pages));
    }
    for (const Age age : {Age::kFresh, Age::kShuffled}) {
      if (!wanted(age) || (fresh_only && age != Age::kFresh)) continue;
      const BenchCache cache(settings, {.pages = pages, .age = age});
      report_lookups(settings, cache, fmt::format("{}, {}", size, name_of(age)), report);
    }
    if (churn && wanted(Age::kFresh)) {
      const BenchCache cache(
          settings, {.pages = pages, .age = Age::kFresh, .low_percent = 1, .high_percent = 2});
      report_churn(settings, cache, fmt::format("{}, fresh, 1/2 % free", size), report);
    }
    if (!wanted(Age::kAged) || fresh_only) continue;
    for (const double low : {1.0, 5.0}) {
      const BenchCache cache(settings, {.pages = pages,
                                        .age = Age::kAged,
                                        .low_percent = low,
                                        .high_percent = 2 * low,
                                        .turnovers = pages > kJudgedPages ? 1.0 : 10.0});
      const std::string state = fmt::format("{}, aged, {}/{} % free", size, low, 2 * low);
      report.add({"mean run", state, spread_of({cache.mean_run()}), "pages"});
      report_lookups(settings, cache, state, report);
      if (churn && low == 1) report_churn(settings, cache, state, report);
    }
  }
}

}  // namespace kvtrie::bench
