// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/floors.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>

#include "shm/format.h"
#include "shm/ids.h"
#include "shm/prefix_hash.h"
#include "shm/robust_mutex.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/bench/spread.h"

namespace kvtrie::bench {
namespace {

static_assert(kFloorLineBytes == kLineBytes);
static_assert(offsetof(Descriptor, state) == 0 && offsetof(Descriptor, parent) == 8, "one load has both");
static_assert(kDescriptorBytes == sizeof(Descriptor) + kTokensPerPage * sizeof(std::uint32_t));

// Microseconds to read one line of memory that nobody touched for `idle_seconds`.
Spread idle_lines_us(double idle_seconds, std::uint32_t lines) {
  constexpr std::size_t kBytes = 256 * 1024 * 1024;
  constexpr std::size_t kPageBytes = 4096;
  void* const memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* const bytes = static_cast<volatile unsigned char*>(memory);
  for (std::size_t at = 0; at < kBytes; at += kPageBytes) bytes[at] = 1;
  std::this_thread::sleep_for(std::chrono::duration<double>(idle_seconds));
  replay::Random random(lines);
  std::vector<double> us;
  for (std::uint32_t i = 0; i < lines; ++i) {
    const std::size_t at = random.below(kBytes);
    us.push_back(time_ns([&] { keep(bytes[at]); }) / 1e3);
  }
  ::munmap(memory, kBytes);
  return spread_of(std::move(us));
}

constexpr std::size_t kAhead = 16;  // pages or lines; more bought nothing

// Two words, so SSE2 on x86-64 and NEON on arm64: what the portable instruction set of either has.
using Words = std::uint64_t __attribute__((vector_size(16)));

Words load(const void* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

// Bits that differ between a descriptor and a Live page of these tokens.
inline Words difference(const std::byte* descriptor, const std::uint32_t* tokens) {
  constexpr Words kCompared{~kGenerationMask, 0};
  constexpr Words kLive{static_cast<std::uint64_t>(PageState::kLive), 0};
  Words different = (load(descriptor) & kCompared) ^ kLive;
  const std::byte* stored = descriptor + sizeof(Descriptor);
  const auto* asked = reinterpret_cast<const std::byte*>(tokens);
  for (std::size_t at = 0; at < kLineBytes; at += sizeof(Words)) different |= load(stored + at) ^ load(asked + at);
  return different;
}

// Per page or operation.
double each_ns(std::uint64_t count, const std::function<void()>& work) {
  return time_ns(work) / static_cast<double>(count);
}

// Descriptors of `pages` Live pages in the order of the prompt, and the prompt.
class Stream {
 public:
  explicit Stream(std::uint32_t pages)
      : tokens_(random_tokens(1, std::size_t{pages} * kTokensPerPage)),
        order_(pages),
        descriptors_(static_cast<std::byte*>(std::aligned_alloc(kDescriptorBytes, pages * kDescriptorBytes)),
                     &std::free) {
    if (descriptors_ == nullptr) throw std::bad_alloc();
    for (std::uint32_t page = 0; page < pages; ++page) {
      std::byte* descriptor = descriptors_.get() + page * kDescriptorBytes;
      const StateWord state = StateWord::make(PageState::kLive, page);
      const Handle parent = Handle::page({page}, page);
      std::memset(descriptor, 0, kDescriptorBytes);
      std::memcpy(descriptor, &state.raw, sizeof state.raw);
      std::memcpy(descriptor + 8, &parent.raw, sizeof parent.raw);
      std::memcpy(descriptor + sizeof(Descriptor), tokens_.data() + std::size_t{page} * kTokensPerPage, kLineBytes);
      order_[page] = page;
    }
  }

  double plain_ns(std::uint32_t pages) const { return run(&stream, pages); }
  double prefetched_ns(std::uint32_t pages) const { return run(&stream_prefetched, pages); }

 private:
  // The first `pages` of them.
  double run(decltype(&stream) compare, std::uint32_t pages) const {
    std::uint64_t different = 0;
    const double ns = each_ns(
        pages, [&] { different = compare(descriptors_.get(), std::span(order_).first(pages), tokens_.data()); });
    if (different != 0) throw std::runtime_error("the stream floor compared something else");
    return ns;
  }

  std::vector<std::uint32_t> tokens_;
  std::vector<std::uint32_t> order_;
  std::unique_ptr<std::byte, decltype(&std::free)> descriptors_;
};

// What processes share: a lock and a word, each on a line of its own.
struct Shared {
  alignas(kLineBytes) pthread_mutex_t mutex;
  alignas(kLineBytes) std::atomic<std::uint64_t> word;
};

class SharedMemory {
 public:
  SharedMemory() : memory_(::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    if (memory_ == MAP_FAILED) throw std::runtime_error("no shared memory for a lock");
    if (const Status status = RobustMutex::init((*this)->mutex); !status) throw std::runtime_error(status.what());
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory() { ::munmap(memory_, sizeof(Shared)); }
  Shared* operator->() const { return static_cast<Shared*>(memory_); }

 private:
  void* memory_;
};

struct Candidate {
  const char* what;
  const char* setting;
  const char* unit;
  std::function<double()> measure;
};

std::vector<Candidate> synchronization(const SharedMemory& shared, std::uint32_t operations) {
  const auto each = [operations](auto&& operation) {
    return [operations, operation] {
      return each_ns(operations, [&] {
        for (std::uint32_t i = 0; i < operations; ++i) operation(i);
      });
    };
  };
  Shared* const memory = shared.operator->();
  return {
      {"store, full fence", "a word of one's own", "ns",
       each([memory](std::uint32_t i) { store_and_fence(memory->word, i); })},
      {"atomic add", "uncontended", "ns",
       each([memory](std::uint32_t) { memory->word.fetch_add(1, std::memory_order_relaxed); })},
      {"robust mutex: lock, unlock", "process-shared, uncontended", "ns", each([memory](std::uint32_t) {
         if (!RobustMutex::acquire(memory->mutex) || !RobustMutex::release(memory->mutex)) {
           throw std::runtime_error("the robust mutex of the floor was not had");
         }
       })},
      {"system call", "getpid", "ns", each([](std::uint32_t) { keep(::syscall(SYS_getpid)); })},
  };
}

std::vector<Candidate> hashing(const std::vector<std::uint32_t>& tokens) {
  const std::size_t pages = tokens.size() / kTokensPerPage;
  const auto page = [&tokens](std::size_t i) { return std::span(tokens).subspan(i * kTokensPerPage, kTokensPerPage); };
  return {
      {"XXH3-64 of a page's tokens", "one after the other", "ns/page",
       [pages, page] {
         return each_ns(pages, [&] {
           std::uint64_t all = 0;
           for (std::size_t i = 0; i < pages; ++i) all ^= hash_page(1, page(i));
           keep(all);
         });
       }},
      {"XXH3-64 of a page's tokens", "chained: seeded with the one before", "ns/page",
       [pages, page] {
         return each_ns(pages, [&] {
           std::uint64_t hash = 1;
           for (std::size_t i = 0; i < pages; ++i) hash = hash_page(hash, page(i));
           keep(hash);
         });
       }},
  };
}

}  // namespace

std::uint64_t stream(const std::byte* descriptors, std::span<const std::uint32_t> pages, const std::uint32_t* tokens) {
  Words different{};
  for (const std::uint32_t page : pages) {
    different |= difference(descriptors + page * kDescriptorBytes, tokens);
    tokens += kTokensPerPage;
  }
  return different[0] | different[1];
}

std::uint64_t stream_prefetched(const std::byte* descriptors, std::span<const std::uint32_t> pages,
                                const std::uint32_t* tokens) {
  Words different{};
  for (std::size_t i = 0; i < pages.size(); ++i, tokens += kTokensPerPage) {
    const std::byte* ahead = descriptors + pages[std::min(i + kAhead, pages.size() - 1)] * kDescriptorBytes;
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + sizeof(Descriptor));
    different |= difference(descriptors + pages[i] * kDescriptorBytes, tokens);
  }
  return different[0] | different[1];
}

std::uint64_t stream_by_index(const std::byte* descriptors, std::span<const std::uint32_t> pages,
                              const std::uint32_t* tokens, const std::byte* index,
                              std::span<const std::uint32_t> index_lines) {
  Words different{};
  std::uint64_t entries = 0;
  for (std::size_t i = 0; i < pages.size(); ++i, tokens += kTokensPerPage) {
    const std::size_t next = std::min(i + kAhead, pages.size() - 1);
    __builtin_prefetch(index + index_lines[next] * kLineBytes);
    const std::byte* ahead = descriptors + pages[next] * kDescriptorBytes;
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead + sizeof(Descriptor));
    std::uint64_t entry;
    std::memcpy(&entry, index + index_lines[i] * kLineBytes, sizeof entry);
    entries += entry;
    different |= difference(descriptors + pages[i] * kDescriptorBytes, tokens);
  }
  keep(entries);
  return different[0] | different[1];
}

RandomLines::RandomLines(std::uint32_t count) : order_(count), lines_(count) {
  // Sattolo's shuffle: what comes out is one cycle.
  for (std::uint32_t i = 0; i < count; ++i) order_[i] = i;
  replay::Random random(count);
  for (std::uint32_t i = count; --i > 0;) std::swap(order_[i], order_[random.below(i)]);
  for (std::uint32_t i = 0; i < count; ++i) lines_[i].next = order_[i];
}

std::uint64_t RandomLines::independent() const {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < order_.size(); ++i) {
    __builtin_prefetch(&lines_[order_[std::min(i + kAhead, order_.size() - 1)]]);
    sum += lines_[order_[i]].next;
  }
  return sum;
}

std::uint64_t RandomLines::dependent() const {
  std::uint32_t at = 0;
  for (std::size_t i = 0; i < lines_.size(); ++i) at = lines_[at].next;
  return at;
}

void run_floors(const Settings& settings, Report& report) {
  const auto pages = static_cast<std::uint32_t>(settings.pages);
  const Stream compared(pages);
  const SharedMemory shared;
  const std::vector<std::uint32_t> tokens = random_tokens(2, std::size_t{2048} * kTokensPerPage);

  // By size, since what a cache of the processor still holds costs less.
  Plot plot{.id = "floors",
            .title = "What memory costs",
            .x = "pages",
            .y = "ns per page or line",
            .log_x = true,
            .log_y = true,
            .series = {}};
  for (const std::uint32_t part : {64U, 16U, 4U, 1U}) {
    const std::uint32_t size = pages / part;
    const RandomLines lines(size);
    const std::vector<Candidate> candidates{
        {"stream", "in the order of the prompt", "ns/page", [&] { return compared.plain_ns(size); }},
        {"stream, prefetched", "16 pages ahead", "ns/page", [&] { return compared.prefetched_ns(size); }},
        {"random lines, independent", "prefetched 16 ahead", "ns/line",
         [&] { return each_ns(size, [&] { keep(lines.independent()); }); }},
        {"random lines, dependent", "each names the next", "ns/line",
         [&] { return each_ns(size, [&] { keep(lines.dependent()); }); }}};
    std::vector<std::function<double()>> measured;
    for (const Candidate& candidate : candidates) measured.push_back(candidate.measure);
    const Rounds rounds = alternate(settings.rounds, measured);
    plot.series.resize(candidates.size());
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      plot.series[i].name = candidates[i].what;
      const Spread value = spread_of(rounds[i]);
      plot.series[i].points.push_back({static_cast<double>(size), value});
      if (size != pages) continue;
      const std::string setting = fmt::format("{} pages, {}", size, candidates[i].setting);
      Row row{candidates[i].what, setting, value, candidates[i].unit};
      if (i > 0) {
        row.to = "stream";
        row.ratio = ratio_of(rounds[i], rounds[0]);
      }
      report.add(std::move(row));
    }
  }
  report.plot(std::move(plot));

  std::vector<Candidate> candidates = hashing(tokens);
  for (Candidate& candidate : synchronization(shared, settings.quick ? 10'000 : 100'000)) {
    candidates.push_back(std::move(candidate));
  }
  std::vector<std::function<double()>> measured;
  for (const Candidate& candidate : candidates) measured.push_back(candidate.measure);
  const Rounds rounds = alternate(settings.rounds, measured);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    report.add({candidates[i].what, candidates[i].setting, spread_of(rounds[i]), candidates[i].unit});
  }
  constexpr double kIdleSeconds = 5;
  report.add({"a line of idle memory", fmt::format("of 256 MiB that nobody touched for {} s", kIdleSeconds),
              idle_lines_us(settings.quick ? 0.01 : kIdleSeconds, 256), "us"});
  report.note("stream: per page 16 bytes of the descriptor's header, its 64 bytes of tokens and the prompt's 64 bytes, "
              "by plain 16-byte loads");
}

}  // namespace kvtrie::bench
