// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Allocate, publish and release of pages that are new, in a cache without watermarks: nobody evicts
// meanwhile. After each round all pages are evicted. Memory is touched before the first round, by a
// fill of all pages.

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "shm/prefix_hash.h"
#include "shm/robust_mutex.h"
#include "tools/bench/calls.h"
#include "tools/bench/floors.h"
#include "tools/bench/prompts.h"
#include "tools/bench/spread.h"
#include "tools/bench/workload.h"
#include "tools/replay/observer.h"

namespace kvtrie::bench {
namespace {

constexpr std::array kLengths{2048U, 256U, 1U};
constexpr std::uint32_t kPagesBetweenTimes = 2048;  // so that reading the clock does not count
constexpr std::uint32_t kBatchMax = 64;
constexpr std::uint32_t kDecodeSteps = 64;  // of one sequence
constexpr char kFloor[] = "hash, lock, write";
constexpr char kFloorWithIndex[] = "hash, lock, write, two index lines";
constexpr std::uint32_t kAnnouncedAhead = 16;  // pages whose index lines are fetched together

// What a page that is new cannot do without: its hash, a lock, 128 bytes of descriptor. In memory
// of its own, as large as all descriptors, from one end to the other. With an index of as many lines as the cache's, two
// of which are looked at and one of which is written, anywhere.
class WriteFloor {
 public:
  explicit WriteFloor(const Segment& segment)
      : pages_(segment.page_count()), index_lines_(segment.layout().bucket_count),
        bytes_(kFloorLineBytes + pages_ * kDescriptorBytes + index_lines_ * kFloorLineBytes) {
    memory_ = static_cast<std::byte*>(::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                                             MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
    if (memory_ == MAP_FAILED) throw std::runtime_error("no memory for the floor of new pages");
    if (const Status status = RobustMutex::init(mutex()); !status)
      throw std::runtime_error(status.what());
  }
  WriteFloor(const WriteFloor&) = delete;
  WriteFloor& operator=(const WriteFloor&) = delete;
  ~WriteFloor() { ::munmap(memory_, bytes_); }

  // ns a page.
  double measure(std::span<const std::uint32_t> tokens, std::uint64_t pages, bool with_index) {
    return time_ns([&] {
             std::array<std::uint64_t, kAnnouncedAhead> hashes{};
             for (std::uint64_t first = 0; first < pages; first += kAnnouncedAhead) {
               const auto page = [&](std::uint64_t i) {
                 return tokens.subspan((first + i) * kTokensPerPage % tokens.size(), kTokensPerPage);
               };
               for (std::uint64_t i = 0; i < kAnnouncedAhead; ++i) {
                 hashes.at(i) = hash_page(i == 0 ? hashes.back() + next_ : hashes.at(i - 1), page(i));
                 if (!with_index) continue;
                 __builtin_prefetch(index_line(hashes.at(i)), 1);
                 __builtin_prefetch(index_line(hashes.at(i) >> 32), 1);
               }
               for (std::uint64_t i = 0; i < kAnnouncedAhead; ++i) write(hashes.at(i), page(i), with_index);
             }
           }) /
           static_cast<double>(pages);
  }

 private:
  std::uint64_t* index_line(std::uint64_t hash) const {
    std::byte* const index = memory_ + kFloorLineBytes + pages_ * kDescriptorBytes;
    return reinterpret_cast<std::uint64_t*>(index + (hash & 0xFFFF'FFFF) % index_lines_ * kFloorLineBytes);
  }

  void write(std::uint64_t hash, std::span<const std::uint32_t> tokens, bool with_index) {
    std::array<std::uint64_t, kFloorLineBytes / 8> header{};
    header[2] = hash;
    std::byte* const descriptor = memory_ + kFloorLineBytes + next_++ % pages_ * kDescriptorBytes;
    if (!RobustMutex::acquire(mutex())) throw std::runtime_error("the floor's lock was not had");
    std::memcpy(descriptor, header.data(), sizeof header);
    std::memcpy(descriptor + sizeof header, tokens.data(), tokens.size_bytes());
    if (with_index) index_line(hash)[*index_line(hash >> 32) & 7] = hash;
    if (!RobustMutex::release(mutex())) throw std::runtime_error("the floor's lock was not given back");
  }

  pthread_mutex_t& mutex() const { return *reinterpret_cast<pthread_mutex_t*>(memory_); }

  const std::uint64_t pages_;
  const std::uint64_t index_lines_;
  const std::size_t bytes_;
  std::byte* memory_;
  std::uint64_t next_ = 0;
};
static_assert(sizeof(pthread_mutex_t) <= kFloorLineBytes);

enum Step : std::uint8_t { kBegin, kAllocate, kPublish, kRelease, kSteps };
using Times = std::array<double, kSteps>;  // ns

class Writer {
 public:
  Writer(const Settings& settings, const replay::OwnCache& cache)
      : worker_(settings, cache), api_(*worker_.plugin().operator->()) {}

  // Prompts of `length` new pages, `pages` in all; ns of all of them.
  Times write(std::uint32_t length, std::uint64_t pages) {
    const std::uint32_t batch = std::clamp(kPagesBetweenTimes / length, 1U, kBatchMax);
    std::vector<std::vector<std::uint32_t>> prompts;
    for (std::uint32_t i = 0; i < batch; ++i)
      prompts.push_back(random_tokens(i, std::size_t{length} * kTokensPerPage));
    std::vector<kvtrie_sequence> sequences(batch);
    Times times{};
    for (std::uint64_t done = 0; done < pages; done += std::uint64_t{length} * batch) {
      for (std::vector<std::uint32_t>& tokens : prompts)
        make_new(tokens);
      const auto step = [&](Step which, auto&& call) {
        times.at(which) += time_ns([&] {
          for (std::uint32_t i = 0; i < batch; ++i)
            call(sequences[i], prompts[i]);
        });
      };
      step(kBegin,
           [&](kvtrie_sequence& sequence, const auto& tokens) { sequence = begin(tokens, 0); });
      step(kAllocate, [&](kvtrie_sequence sequence, const auto& tokens) {
        worker_.plugin().expect(api_.allocate(sequence, tokens.size(), nullptr), "allocate");
      });
      step(kPublish, [&](kvtrie_sequence sequence, const auto& tokens) {
        worker_.plugin().expect(api_.publish(sequence, tokens.size(), nullptr), "publish");
      });
      step(kRelease, [&](kvtrie_sequence sequence, const auto&) { worker_.release(sequence); });
    }
    return times;
  }

  // ns a page: 16 tokens more, a page for them, published; behind a prompt of so many cached pages.
  double decode(std::vector<std::uint32_t>& prompt, std::uint64_t steps) {
    std::vector<std::uint32_t> decoded = random_tokens(~std::uint64_t{1}, kTokensPerPage);
    double ns = 0;
    for (std::uint64_t done = 0; done < steps; done += kDecodeSteps) {
      const kvtrie_sequence sequence =
          begin(prompt, static_cast<std::uint32_t>(prompt.size() / kTokensPerPage));
      ns += time_ns([&] {
        for (std::uint64_t i = 1; i <= kDecodeSteps; ++i) {
          make_new(decoded);
          add_page(sequence, decoded, prompt.size() + i * kTokensPerPage);
        }
      });
      worker_.release(sequence);
    }
    return ns / static_cast<double>(steps);
  }

  // ns: begin of the prompt, one page more, release.
  double decode_once(std::vector<std::uint32_t>& prompt, std::uint64_t times) {
    std::vector<std::uint32_t> decoded = random_tokens(~std::uint64_t{2}, kTokensPerPage);
    return time_ns([&] {
             for (std::uint64_t i = 0; i < times; ++i) {
               make_new(decoded);
               const kvtrie_sequence sequence =
                   begin(prompt, static_cast<std::uint32_t>(prompt.size() / kTokensPerPage));
               add_page(sequence, decoded, prompt.size() + kTokensPerPage);
               worker_.release(sequence);
             }
           }) /
           static_cast<double>(times);
  }

  // Caches it for good: the sequence stays open.
  void cache_and_hold(std::vector<std::uint32_t>& prompt) {
    const kvtrie_sequence sequence = begin(prompt, 0);
    worker_.plugin().expect(api_.allocate(sequence, prompt.size(), nullptr), "allocate");
    worker_.plugin().expect(api_.publish(sequence, prompt.size(), nullptr), "publish");
  }

  // All that was written since the last time. What was not published is not there: the run is void
  // then.
  void evict(std::uint64_t pages) {
    std::uint64_t evicted = 0;
    worker_.plugin().expect(api_.evict(worker_.worker(), {0}, 0, &evicted), "evict");
    if (evicted < pages - pages / 100) {
      throw std::runtime_error(
          fmt::format("of {} pages that were published only {} could be evicted: the run is void",
                      pages, evicted));
    }
  }

 private:
  kvtrie_sequence begin(std::span<const std::uint32_t> tokens, std::uint32_t expected) const {
    std::uint32_t cached = 0;
    const kvtrie_sequence sequence = worker_.begin(tokens, cached);
    if (cached != expected)
      throw std::runtime_error("a prompt is cached otherwise than it should be: the run is void");
    return sequence;
  }
  void add_page(kvtrie_sequence sequence, const std::vector<std::uint32_t>& tokens,
                std::size_t total) const {
    worker_.plugin().expect(api_.append(sequence, tokens.data(), tokens.size()), "append");
    worker_.plugin().expect(api_.allocate(sequence, total, nullptr), "allocate");
    worker_.plugin().expect(api_.publish(sequence, total, nullptr), "publish");
  }
  void make_new(std::vector<std::uint32_t>& tokens) { tokens[0] = ++serial_; }

  const BenchWorker worker_;
  const kvtrie_api& api_;
  std::uint32_t serial_ = 0;
};

struct Figures {
  std::vector<double> floor, floor_with_index;
  std::array<Rounds, kLengths.size()>
      steps;  // by Step; of begin ns a call, of the others ns a page
  std::array<std::vector<double>, kLengths.size()> together;  // ns a page: all but begin
  std::vector<double> decode, decode_once;
};

void report_figures(const Figures& figures, Report& report) {
  report.add({kFloor, "XXH3 of the tokens, a robust lock, 128 bytes in a stream",
              spread_of(figures.floor), "ns/page"});
  report.add({kFloorWithIndex, "the same, and a place in one of two lines, fetched 16 pages ahead",
              spread_of(figures.floor_with_index), "ns/page", kFloor,
              ratio_of(figures.floor_with_index, figures.floor)});
  for (std::size_t i = 0; i < kLengths.size(); ++i) {
    const std::uint32_t length = kLengths.at(i);
    const std::string setting =
        fmt::format("prompts of {} new page{}", length, length == 1 ? "" : "s");
    Row row{"allocate + publish + release",
            setting,
            spread_of(figures.together.at(i)),
            "ns/page",
            kFloorWithIndex,
            ratio_of(figures.together.at(i), figures.floor_with_index)};
    if (length == kLengths.front()) row.target = at_most(120, "ns/page");
    report.add(std::move(row));
    constexpr std::array kParts{std::pair{kAllocate, "... allocate and announce"},
                                std::pair{kPublish, "... publish"},
                                std::pair{kRelease, "... release"}};
    for (const auto& [step, what] : kParts)
      report.add({what, setting, spread_of(figures.steps.at(i)[step]), "ns/page"});
    report.add({"begin before it", setting, spread_of(figures.steps.at(i)[kBegin]), "ns"});
  }
  report.add({"append + allocate + publish",
              fmt::format("a page of {} tokens behind 2048 cached pages", kTokensPerPage),
              spread_of(figures.decode), "ns/page", kFloor,
              ratio_of(figures.decode, figures.floor)});
  report.add({"begin, the same, release", "behind 16 cached pages", spread_of(figures.decode_once),
              "ns/page", kFloor, ratio_of(figures.decode_once, figures.floor)});
}

}  // namespace

void report_fresh_pages(const Settings& settings, Report& report) {
  replay::Signals signals;
  replay::ReplayOptions options;
  options.geometry = {.pages = settings.pages, .tokens_per_page = kTokensPerPage, .page_bytes = 8};
  options.low_percent = options.high_percent = 0;
  const replay::OwnCache cache(options, settings.kvtried, signals);
  Writer writer(settings, cache);
  const replay::Observer observer(cache.name());
  WriteFloor floor(observer.segment());
  const std::uint64_t pages = settings.pages / 8;
  const std::uint64_t decoded = pages / 16;

  const std::uint64_t all = settings.pages / kPagesBetweenTimes * kPagesBetweenTimes;
  writer.write(kLengths.front(), all);
  writer.evict(all);
  std::vector<std::uint32_t> long_prompt =
      random_tokens(~std::uint64_t{3}, std::size_t{2048} * kTokensPerPage);
  std::vector<std::uint32_t> short_prompt =
      random_tokens(~std::uint64_t{4}, std::size_t{16} * kTokensPerPage);
  writer.cache_and_hold(long_prompt);
  writer.cache_and_hold(short_prompt);

  Figures figures;
  figures.steps.fill(Rounds(kSteps));
  for (std::uint32_t round = 0; round <= settings.rounds; ++round) {
    const auto keep_figure = [&](std::vector<double>& figures_of, double value) {
      if (round > 0) figures_of.push_back(value);
    };
    keep_figure(figures.floor, floor.measure(long_prompt, pages, false));
    keep_figure(figures.floor_with_index, floor.measure(long_prompt, pages, true));
    for (std::size_t i = 0; i < kLengths.size(); ++i) {
      const Times times = writer.write(kLengths.at(i), pages);
      writer.evict(pages);
      const auto count = static_cast<double>(pages);
      for (std::uint8_t step = 0; step < kSteps; ++step) {
        keep_figure(figures.steps.at(i)[step],
                    times.at(step) / (step == kBegin ? count / kLengths.at(i) : count));
      }
      keep_figure(figures.together.at(i),
                  (times[kAllocate] + times[kPublish] + times[kRelease]) / count);
    }
    keep_figure(figures.decode, writer.decode(long_prompt, decoded));
    keep_figure(figures.decode_once, writer.decode_once(short_prompt, decoded));
    writer.evict(2 * decoded);
  }
  report_figures(figures, report);
}

}  // namespace kvtrie::bench
