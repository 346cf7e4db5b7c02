// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/workload.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "shm/free_pages.h"
#include "shm/page_table.h"
#include "tools/bench/aged.h"
#include "tools/bench/prompts.h"

namespace kvtrie::bench {
namespace {

constexpr char kModel[] = "kvtrie-bench";
constexpr char kReplayModel[] = "kvtrie-replay";  // what kvtrie-replay calls its own

replay::ReplayOptions cache_options(const CacheState& state) {
  replay::ReplayOptions options;
  options.geometry = {.pages = state.pages, .tokens_per_page = kTokensPerPage, .page_bytes = state.page_bytes};
  options.geometry.leases_per_worker = state.leases;
  options.page_checksums = state.page_checksums;
  options.low_percent = state.low_percent;
  options.high_percent = state.high_percent;
  return options;
}

// Holds all pages for itself and gives them back in random order, some at a time. Those at even places first: no two
// neighbours are free at once then.
class Shuffler {
 public:
  Shuffler(const BenchWorker& worker, std::uint64_t pages) : worker_(worker), order_(pages) {
    std::uint32_t next = 0;
    for (std::uint32_t& position : order_) {
      position = next;
      next = next + 2 < pages ? next + 2 : 1;
    }
    const auto odd = order_.begin() + static_cast<std::ptrdiff_t>((pages + 1) / 2);
    std::mt19937_64 random(pages);
    std::shuffle(order_.begin(), odd, random);
    std::shuffle(odd, order_.end(), random);
    std::uint32_t cached = 0;
    holder_ = worker.begin({}, cached, KVTRIE_NO_PUBLISH);
    worker.plugin().expect(worker.plugin()->allocate(holder_, pages * kTokensPerPage, nullptr), "allocate");
  }
  Shuffler(const Shuffler&) = delete;
  Shuffler& operator=(const Shuffler&) = delete;
  ~Shuffler() { worker_.release(holder_); }

  // Afterwards a worker finds `count` free pages, or more.
  void make_room(std::uint32_t count) {
    // So many lie a thousandth of the segment apart: who looks for the next one does not look at all of it, and it
    // is far from the one before.
    constexpr std::uint32_t kAtATime = 1024;
    for (; free_ < count; free_ += kAtATime) {
      for (std::uint32_t i = 0; i < kAtATime && next_ < order_.size(); ++i) {
        worker_.plugin().expect(worker_.plugin()->give_back(holder_, order_[next_++], 1), "give_back");
      }
    }
    free_ -= count;
  }

 private:
  const BenchWorker& worker_;
  std::vector<std::uint32_t> order_;  // of positions
  std::size_t next_ = 0;
  std::uint32_t free_ = 0;
  kvtrie_sequence holder_{};
};

// Few pages a call: more are looked for in runs first, in all of the segment.
void allocate_anywhere(const BenchWorker& worker, Shuffler& shuffler, kvtrie_sequence sequence, std::uint32_t pages) {
  constexpr std::uint32_t kAtATime = 4;
  for (std::uint32_t done = 0; done < pages;) {
    const std::uint32_t more = std::min(kAtATime, pages - done);
    shuffler.make_room(more);
    done += more;
    worker.plugin().expect(worker.plugin()->allocate(sequence, std::uint64_t{done} * kTokensPerPage, nullptr),
                           "allocate");
  }
}

// How many prompts of each length fill so many pages.
std::array<std::uint64_t, kPromptPages.size()> prompts_in(std::uint64_t pages) {
  std::array<std::uint64_t, kPromptPages.size()> counts{};
  for (std::size_t i = kPromptPages.size(); i-- > 0;) {
    const std::uint64_t part = std::max<std::uint64_t>(pages / (i + 1), kPromptPages.at(i));
    if (part <= pages) counts.at(i) = part / kPromptPages.at(i);
    pages -= counts.at(i) * kPromptPages.at(i);
  }
  return counts;
}

std::vector<std::uint32_t> tokens_of(const Segment& segment, const std::vector<std::uint32_t>& pages) {
  std::vector<std::uint32_t> tokens;
  tokens.reserve(pages.size() * kTokensPerPage);
  for (const std::uint32_t page : pages) {
    const AtomicU64* words = segment.token_words({page});
    for (std::uint32_t i = 0; i < kTokensPerPage / 2; ++i) {
      const std::uint64_t two = words[i].load(std::memory_order_relaxed);
      tokens.push_back(static_cast<std::uint32_t>(two));
      tokens.push_back(static_cast<std::uint32_t>(two >> 32));
    }
  }
  return tokens;
}

}  // namespace

const char* name_of(Age age) {
  constexpr const char* kNames[] = {"fresh", "aged", "shuffled"};
  return kNames[static_cast<std::size_t>(age)];
}

BenchWorker::BenchWorker(const Settings& settings, const replay::OwnCache& cache, const char* model)
    : plugin_(settings.plugin), attachment_(plugin_, cache.name(), cache.directory(), "kvtrie-bench", true),
      name_space_(open_namespace(plugin_, worker(), model)) {}

kvtrie_sequence BenchWorker::begin(std::span<const std::uint32_t> tokens, std::uint32_t& cached, std::uint32_t flags) const {
  const Begun begun = bench::begin(plugin_, worker(), name_space_, tokens, flags);
  cached = begun.cached_pages;
  return begun.sequence;
}

std::uint32_t BenchWorker::begin_and_release(std::span<const std::uint32_t> tokens, std::uint32_t flags) const {
  std::uint32_t cached = 0;
  release(begin(tokens, cached, flags));
  return cached;
}

void BenchWorker::cache(Prompt& prompt, const Allocate& allocate) const {
  std::uint32_t cached = 0;
  const auto pages = static_cast<std::uint32_t>(prompt.tokens.size() / kTokensPerPage);
  prompt.pages.resize(pages);
  const kvtrie_sequence sequence = begin(prompt.tokens, cached);
  allocate(sequence, pages);
  plugin_.expect(plugin_->get_pages(sequence, 0, pages, prompt.pages.data()), "get_pages");
  plugin_.expect(plugin_->publish(sequence, prompt.tokens.size(), nullptr), "publish");
  release(sequence);
}

void BenchWorker::cache(Prompt& prompt) const {
  // For an evictor, if there is one.
  kvtrie_allocate_options wait{};
  wait.size = sizeof wait;
  wait.wait_ms = 10'000;
  cache(prompt, [&](kvtrie_sequence sequence, std::uint32_t pages) {
    plugin_.expect(plugin_->allocate(sequence, std::uint64_t{pages} * kTokensPerPage, &wait), "allocate");
  });
}

void BenchWorker::evict_all() const {
  std::uint64_t evicted = 0;
  plugin_.expect(plugin_->evict(worker(), {0}, 0, &evicted), "evict");
}

BenchCache::BenchCache(const Settings& settings, const CacheState& state)
    : state_(state), cache_(cache_options(state), settings.kvtried, signals_) {
  observer_.emplace(cache_.name());
  if (state.age == Age::kAged) {
    age(settings);
  } else {
    fill(settings);
  }
}

void BenchCache::become(const Settings& settings, Age age_then) {
  state_.age = age_then;
  turnovers_before_ += turnovers();
  if (age_then == Age::kAged) return age(settings);
  fill(settings);
}

const char* BenchCache::model() const { return state_.age == Age::kAged ? kReplayModel : kModel; }

// Nobody evicts meanwhile, though few pages are free.
void BenchCache::fill(const Settings& settings) {
  const BenchWorker worker(settings, cache_, model());
  // Those who were killed hold pages until they are reaped.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (FreePages(segment()).count() < state_.pages) {
    if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("not all pages can be evicted");
    worker.evict_all();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const StoppedCoordinator stopped(cache_);
  fill(worker);
}

void BenchCache::fill(const BenchWorker& worker) {
  std::optional<Shuffler> shuffler;
  if (state_.age == Age::kShuffled) shuffler.emplace(worker, state_.pages);
  // With an evictor, what it keeps free stays free.
  const double percent = state_.high_percent > 0 ? 99 - state_.high_percent : 100;
  const auto counts = prompts_in(static_cast<std::uint64_t>(static_cast<double>(state_.pages) * percent / 100));
  std::uint64_t seed = 0;
  for (std::vector<Prompt>& prompts : filled_) prompts.clear();
  // By turns, as long as there are prompts of a length.
  for (std::uint64_t turn = 0; turn < std::ranges::max(counts); ++turn) {
    for (std::size_t i = 0; i < kPromptPages.size(); ++i) {
      if (turn >= counts.at(i)) continue;
      Prompt prompt;
      prompt.tokens = random_tokens(++seed, std::size_t{kPromptPages.at(i)} * kTokensPerPage);
      if (shuffler) {
        worker.cache(prompt, [&](kvtrie_sequence sequence, std::uint32_t pages) {
          allocate_anywhere(worker, *shuffler, sequence, pages);
        });
      } else {
        worker.cache(prompt);
      }
      const std::uint64_t kept = std::max<std::uint64_t>(kPagesABlock / kPromptPages.at(i), 1);
      if (turn % ((counts.at(i) + kept - 1) / kept) == 0) filled_.at(i).push_back(std::move(prompt));
    }
  }
  for (std::vector<Prompt>& prompts : filled_) drop_torn(worker, prompts);
}

// A page whose place in the index was not had stays private.
void BenchCache::drop_torn(const BenchWorker& worker, std::vector<Prompt>& prompts) {
  std::erase_if(prompts, [&](const Prompt& prompt) {
    return worker.begin_and_release(prompt.tokens) * std::size_t{kTokensPerPage} != prompt.tokens.size();
  });
}

void BenchCache::age(const Settings& settings) {
  const std::uint64_t all = std::numeric_limits<std::uint32_t>::max();
  Ageing ageing{.workers = 2, .requests = settings.trace.empty() ? std::max<std::uint64_t>(state_.pages / 64, 1000) : all};
  // Of other prompts each time: those of the trace may all fit.
  runs_while_aged_.clear();
  for (; turnovers() < state_.turnovers; ++ageing.lap, ++ageing.seed) {
    const double run = bench::age(settings, ageing, cache_).run_length;
    runs_while_aged_.emplace_back(turnovers(), run);
  }
  for (std::vector<Prompt>& prompts : filled_) prompts.clear();
  const BenchWorker worker(settings, cache_, model());
  for (std::size_t i = 0; i < kPromptPages.size(); ++i) {
    const std::uint32_t length = kPromptPages.at(i);
    if (prompts(length, 1).empty()) cache_more(worker, length, filled_.at(i));
  }
  if (!observer_->settle(std::chrono::seconds(10))) throw std::runtime_error("the evictor does not come to rest");
  for (std::vector<Prompt>& prompts : filled_) drop_torn(worker, prompts);
}

// On the pages that are free when the cache is old.
void BenchCache::cache_more(const BenchWorker& worker, std::uint32_t length, std::vector<Prompt>& prompts) const {
  const std::uint64_t pages = std::min<std::uint64_t>(kPagesABlock, state_.pages / 8);
  for (std::uint64_t i = 0; i < std::max<std::uint64_t>(pages / length, 1); ++i) {
    Prompt& prompt = prompts.emplace_back();
    prompt.tokens = random_tokens(~(std::uint64_t{length} << 20 | i), std::size_t{length} * kTokensPerPage);
    worker.cache(prompt);
  }
}

bool BenchCache::of_the_trace(std::uint32_t pages) const {
  const auto length = static_cast<std::size_t>(std::ranges::find(kPromptPages, pages) - kPromptPages.begin());
  return state_.age == Age::kAged && filled_.at(length).empty();
}

std::vector<Prompt> BenchCache::prompts(std::uint32_t pages, std::size_t most) const {
  most = std::min<std::size_t>(most, std::max<std::uint64_t>(kPagesABlock / pages, 1));
  const auto length = static_cast<std::size_t>(std::ranges::find(kPromptPages, pages) - kPromptPages.begin());
  if (const std::vector<Prompt>& all = filled_.at(length); !all.empty() || state_.age != Age::kAged) {
    return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(std::min(most, all.size()))};
  }
  // Paths to pages of that depth, from pages that lie anywhere.
  std::vector<std::uint32_t> order(segment().page_count());
  std::iota(order.begin(), order.end(), 0U);
  std::ranges::shuffle(order, std::mt19937_64(pages));
  std::vector<Prompt> found;
  for (const std::uint32_t page : order) {
    if (found.size() >= most) break;
    const Descriptor& descriptor = segment().descriptor({page});
    if (StateWord{descriptor.state.load()}.state() != PageState::kLive ||
        depth_in(descriptor.depth_class.load()) != pages || descriptor.token_count.load() != kTokensPerPage) {
      continue;
    }
    Prompt prompt;
    prompt.pages.push_back(page);
    Handle parent{descriptor.parent.load()};
    for (; parent.is_page(); parent = {segment().descriptor(parent.page_index()).parent.load()}) {
      prompt.pages.push_back(parent.page_index().value);
    }
    std::ranges::reverse(prompt.pages);
    prompt.tokens = tokens_of(segment(), prompt.pages);
    found.push_back(std::move(prompt));
  }
  return found;
}

double BenchCache::turnovers() const {
  return static_cast<double>(segment().total(Counter::kEvictions)) / static_cast<double>(state_.pages) -
         turnovers_before_;
}

double BenchCache::mean_run() const { return mean_run_length(segment()); }

Segment open_writable(const std::string& cache) {
  Result<Segment> segment = open_segment(cache, Access::kReadWrite);
  if (!segment) throw std::runtime_error("the cache's segment cannot be opened");
  return std::move(*segment);
}

}  // namespace kvtrie::bench
