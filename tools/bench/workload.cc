// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/workload.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

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
  options.page_checksums = state.page_checksums;
  options.low_percent = state.low_percent;
  options.high_percent = state.high_percent;
  return options;
}

// Holds pages for itself and gives them back in random order, some at a time.
class Shuffler {
 public:
  Shuffler(const BenchWorker& worker, std::uint64_t pages) : worker_(worker), order_(pages) {
    std::iota(order_.begin(), order_.end(), 0U);
    std::ranges::shuffle(order_, std::mt19937_64(pages));
    std::uint32_t cached = 0;
    holder_ = worker.begin({}, cached, KVTRIE_NO_PUBLISH);
    worker.plugin().expect(worker.plugin()->allocate(holder_, pages * kTokensPerPage, nullptr), "allocate");
  }
  Shuffler(const Shuffler&) = delete;
  Shuffler& operator=(const Shuffler&) = delete;
  ~Shuffler() { worker_.release(holder_); }

  void free(std::uint32_t count) {
    for (; count > 0; --count) worker_.plugin().expect(worker_.plugin()->give_back(holder_, order_.at(next_++), 1), "give_back");
  }

 private:
  const BenchWorker& worker_;
  std::vector<std::uint32_t> order_;  // of positions
  std::size_t next_ = 0;
  kvtrie_sequence holder_{};
};

// Allocated so many pages at a time, each time from as many that lie anywhere.
void cache_shuffled(const BenchWorker& worker, Shuffler& shuffler, Prompt& prompt) {
  constexpr std::uint32_t kAtATime = 32;
  const replay::Plugin& plugin = worker.plugin();
  std::uint32_t cached = 0;
  const kvtrie_sequence sequence = worker.begin(prompt.tokens, cached);
  for (std::uint32_t done = 0; done < prompt.pages.size();) {
    const std::uint32_t more = std::min<std::uint32_t>(kAtATime, static_cast<std::uint32_t>(prompt.pages.size()) - done);
    shuffler.free(more);
    done += more;
    plugin.expect(plugin->allocate(sequence, std::uint64_t{done} * kTokensPerPage, nullptr), "allocate");
  }
  plugin.expect(plugin->get_pages(sequence, 0, static_cast<std::uint32_t>(prompt.pages.size()), prompt.pages.data()),
                "get_pages");
  plugin.expect(plugin->publish(sequence, prompt.tokens.size(), nullptr), "publish");
  worker.release(sequence);
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

void BenchWorker::cache(Prompt& prompt) const {
  std::uint32_t cached = 0;
  const auto pages = static_cast<std::uint32_t>(prompt.tokens.size() / kTokensPerPage);
  prompt.pages.resize(pages);
  const kvtrie_sequence sequence = begin(prompt.tokens, cached);
  plugin_.expect(plugin_->allocate(sequence, prompt.tokens.size(), nullptr), "allocate");
  plugin_.expect(plugin_->get_pages(sequence, 0, pages, prompt.pages.data()), "get_pages");
  plugin_.expect(plugin_->publish(sequence, prompt.tokens.size(), nullptr), "publish");
  release(sequence);
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

const char* BenchCache::model() const { return state_.age == Age::kAged ? kReplayModel : kModel; }

void BenchCache::fill(const Settings& settings) {
  const BenchWorker worker(settings, cache_, model());
  std::optional<Shuffler> shuffler;
  if (state_.age == Age::kShuffled) shuffler.emplace(worker, state_.pages);
  // With an evictor, what it keeps free stays free.
  const double percent = state_.high_percent > 0 ? 95 - state_.high_percent : 100;
  const auto quarter = static_cast<std::uint64_t>(static_cast<double>(state_.pages) * percent / 400);
  std::uint64_t seed = 0;
  for (bool more = true; more;) {
    more = false;
    for (std::size_t i = 0; i < kPromptPages.size(); ++i) {
      if ((filled_[i].size() + 1) * kPromptPages[i] > quarter) continue;
      more = true;
      Prompt& prompt = filled_[i].emplace_back();
      prompt.tokens = random_tokens(++seed, std::size_t{kPromptPages[i]} * kTokensPerPage);
      prompt.pages.resize(kPromptPages[i]);
      if (shuffler) {
        cache_shuffled(worker, *shuffler, prompt);
      } else {
        worker.cache(prompt);
      }
    }
  }
}

void BenchCache::age(const Settings& settings) {
  const std::uint64_t all = std::numeric_limits<std::uint32_t>::max();
  Ageing ageing{.workers = 2, .requests = settings.trace.empty() ? std::max<std::uint64_t>(state_.pages / 64, 1000) : all};
  while (bench::age(settings, ageing, cache_).turnovers < state_.turnovers) ++ageing.seed;
  if (!observer_->settle(std::chrono::seconds(10))) throw std::runtime_error("the evictor does not come to rest");
}

std::vector<Prompt> BenchCache::prompts(std::uint32_t pages, std::size_t most) const {
  if (state_.age != Age::kAged) {
    const auto length = static_cast<std::size_t>(std::ranges::find(kPromptPages, pages) - kPromptPages.begin());
    const std::vector<Prompt>& all = filled_.at(length);
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

double BenchCache::mean_run() const { return mean_run_length(segment()); }

Segment open_writable(const std::string& cache) {
  Result<Segment> segment = open_segment(cache, Access::kReadWrite);
  if (!segment) throw std::runtime_error("the cache's segment cannot be opened");
  return std::move(*segment);
}

}  // namespace kvtrie::bench
