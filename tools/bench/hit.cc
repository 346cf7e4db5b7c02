// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Lookups: begin and release through the plugin, beside a stream over the bytes that a begin must compare (descriptor
// headers and tokens of neighbouring pages in the same segment). Two processes measure the same at the same places; one
// of them alone and both at once take turns in each round.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "tools/bench/crew.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/bench/workload.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint64_t kPagesABlock = 1U << 17;  // of one timing: some milliseconds
constexpr std::uint32_t kCallsABlock = 256;       // at least

enum Candidate : std::uint8_t { kFull, kHalf, kMiss, kStream, kCandidates };

// What one process does.
class Lookups {
 public:
  Lookups(const Settings& settings, const BenchCache& cache, const std::vector<Prompt>& prompts)
      : worker_(settings, cache.own(), cache.model()), observer_(cache.own().name()), prompts_(prompts),
        length_(static_cast<std::uint32_t>(prompts.front().pages.size())) {}

  // ns a page; of kMiss, ns a call.
  double time(Candidate candidate) {
    switch (candidate) {
      case kFull:
        return time_begins(length_) / length_;
      case kHalf: {
        // One token decides.
        const std::size_t there = std::size_t{length_ / 2} * kTokensPerPage;
        for (Prompt& prompt : prompts_) prompt.tokens[there] ^= 0x5555'5555;
        const double ns = time_begins(length_ / 2) / (length_ / 2.0);
        for (Prompt& prompt : prompts_) prompt.tokens[there] ^= 0x5555'5555;
        return ns;
      }
      case kMiss: {
        std::vector<std::uint32_t>& tokens = missing_;
        if (tokens.empty()) tokens = random_tokens(~std::uint64_t{7}, prompts_.front().tokens.size());
        const double ns = time_ns([&] {
          for (std::uint32_t i = 0; i < 4 * kCallsABlock; ++i) {
            tokens[0] += 0x9E37'79B9;
            if (worker_.begin_and_release(tokens) != 0) void_run();
          }
        });
        return ns / (4 * kCallsABlock);
      }
      case kStream:
        return time_stream();
      case kCandidates:
        break;
    }
    return 0;
  }

 private:
  [[noreturn]] static void void_run() { throw std::runtime_error("a lookup hit other pages than it should: the run is void"); }

  // ns a call.
  double time_begins(std::uint32_t expected) const {
    const std::size_t calls = std::max<std::size_t>(prompts_.size(), kCallsABlock * 16 / length_);
    const double ns = time_ns([&] {
      for (std::size_t i = 0; i < calls; ++i) {
        if (worker_.begin_and_release(prompts_[i * 163 % prompts_.size()].tokens) != expected) void_run();
      }
    });
    return ns / static_cast<double>(calls);
  }

  double time_stream() const {
    const Segment& segment = observer_.segment();
    const std::size_t places = segment.page_count() / length_;
    const std::size_t calls = std::max<std::size_t>(prompts_.size(), kCallsABlock * 16 / length_);
    std::uint64_t different = 0;
    const double ns = time_ns([&] {
      for (std::size_t i = 0; i < calls; ++i) {
        const auto first = static_cast<std::uint32_t>(i * 163 % places * length_);
        different += stream(reinterpret_cast<const std::byte*>(&segment.descriptor({first})),
                            prompts_[i * 163 % prompts_.size()].tokens);
      }
    });
    if (different == ~std::uint64_t{0}) void_run();  // never: but it must be computed
    return ns / static_cast<double>(calls) / length_;
  }

  static std::uint64_t stream(const std::byte* descriptors, std::span<const std::uint32_t> tokens) {
    std::uint64_t different = 0;
    for (std::size_t i = 0; i < tokens.size(); i += kTokensPerPage, descriptors += 128) {
      std::uint64_t header[2];
      std::memcpy(header, descriptors, sizeof header);
      different |= header[0] ^ header[1];
      different += std::memcmp(descriptors + 64, &tokens[i], 64) != 0 ? 1 : 0;
    }
    return different;
  }

  const BenchWorker worker_;
  const replay::Observer observer_;
  std::vector<Prompt> prompts_;
  std::uint32_t length_;
  std::vector<std::uint32_t> missing_;
};

struct Measured {
  Rounds alone;  // by candidate
  Rounds both;   // the slower of the two
};

Measured measure(const Settings& settings, const BenchCache& cache, const std::vector<Prompt>& prompts) {
  const auto figures = run_crew(2, [&](CrewMember& member) {
    Lookups lookups(settings, cache, prompts);
    for (std::uint32_t round = 0; round <= settings.rounds; ++round) {
      for (std::uint8_t i = 0; i < kCandidates; ++i) {
        const auto candidate = static_cast<Candidate>(i);
        member.meet();
        if (member.index() == 0) member.figure(lookups.time(candidate));
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

void report_lookups(const Settings& settings, const BenchCache& cache, const std::string& state, Report& report) {
  for (const std::uint32_t length : kPromptPages) {
    const std::vector<Prompt> prompts = cache.prompts(length, std::max<std::uint64_t>(kPagesABlock / length, 1));
    const std::string setting = fmt::format("{}, prompt of {}", state, length);
    if (prompts.empty()) {
      report.note(fmt::format("{}: no such prompt is cached", setting));
      continue;
    }
    const Measured measured = measure(settings, cache, prompts);
    const bool judged = length == 2048 && cache.state().pages == 1U << 20;
    const Age age = cache.state().age;
    std::optional<Target> hit_target;
    if (judged) {
      hit_target = at_most(age == Age::kFresh ? 1.5 : age == Age::kShuffled ? 4.5 : cache.state().low_percent > 1 ? 2.5 : 3.5);
    }
    report.add({"full hit", setting, spread_of(measured.alone[kFull]), "ns/page", "stream",
                ratio_of(measured.alone[kFull], measured.alone[kStream]), hit_target});
    report.add({"half hit", setting, spread_of(measured.alone[kHalf]), "ns/page", "stream",
                ratio_of(measured.alone[kHalf], measured.alone[kStream])});
    report.add({"miss at the first page", setting, spread_of(measured.alone[kMiss]), "ns", {}, {}, at_most(300)});
    report.add({"full hit, two processes", setting, spread_of(measured.both[kFull]), "ns/page", "stream of two",
                ratio_of(measured.both[kFull], measured.both[kStream])});
    // Of two processes together, to one alone.
    const auto speed_up = [&](Candidate candidate) {
      std::vector<double> values;
      for (std::size_t i = 0; i < measured.alone[candidate].size(); ++i) {
        values.push_back(2 * measured.alone[candidate][i] / measured.both[candidate][i]);
      }
      return values;
    };
    const std::vector<double> hit = speed_up(kFull), stream = speed_up(kStream);
    Row row{"two processes together", setting, spread_of(hit), "times one"};
    if (age == Age::kShuffled || cache.state().pages <= 1U << 14) {
      if (length == 2048) row.target = at_least(1.8);
    } else {
      row.to = "stream's";
      row.ratio = ratio_of(hit, stream);
      if (judged) row.target = at_least(0.95);
    }
    report.add(std::move(row));
  }
}

}  // namespace

void run_hit(const Settings& settings, Report& report) {
  std::vector<std::uint64_t> sizes{1U << 14, 1U << 20, 1U << 23};
  if (settings.quick) sizes = {1U << 14};
  if (settings.pages_given) sizes = {settings.pages};
  for (const std::uint64_t pages : sizes) {
    for (const Age age : {Age::kFresh, Age::kShuffled}) {
      if (!settings.age.empty() && settings.age != name_of(age)) continue;
      const BenchCache cache(settings, {.pages = pages, .age = age});
      report_lookups(settings, cache, fmt::format("{} pages, {}", count_text(pages), name_of(age)), report);
    }
    if (!settings.age.empty() && settings.age != name_of(Age::kAged)) continue;
    for (const double low : {1.0, 5.0}) {
      const BenchCache cache(settings, {.pages = pages, .age = Age::kAged, .low_percent = low, .high_percent = 2 * low,
                                        .turnovers = pages > 1U << 20 ? 1.0 : 10.0});
      report.add({"mean run", fmt::format("{} pages, aged, {}/{} % free", count_text(pages), low, 2 * low), spread_of({cache.mean_run()}), "pages"});
      report_lookups(settings, cache, fmt::format("{} pages, aged, {}/{} % free", count_text(pages), low, 2 * low), report);
    }
  }
}

}  // namespace kvtrie::bench
