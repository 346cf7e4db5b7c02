// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/bench/full_hit.h"

#include <fmt/format.h>

#include <chrono>
#include <stdexcept>

#include "shm/page_table.h"
#include "tools/replay/observer.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

struct Prompt {
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint32_t> pages;  // where they are cached
};

double now_us() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class FullHit {
 public:
  FullHit(const replay::Plugin& plugin, kvtrie_worker worker, const Segment& segment)
      : plugin_(plugin), worker_(worker), segment_(segment),
        name_space_(open_namespace(plugin, worker)) {}

  Prompt cache(std::uint64_t seed, std::uint32_t pages) {
    Prompt prompt{random_tokens(seed, std::size_t{pages} * kTokensPerPage), {}};
    prompt.pages.resize(pages);
    const kvtrie_sequence sequence = begin(plugin_, worker_, name_space_, prompt.tokens).sequence;
    plugin_.expect(plugin_->allocate(sequence, prompt.tokens.size(), nullptr), "allocate");
    plugin_.expect(plugin_->get_pages(sequence, 0, pages, prompt.pages.data()), "get_pages");
    plugin_.expect(plugin_->publish(sequence, prompt.tokens.size(), nullptr), "publish");
    plugin_.expect(plugin_->release(sequence), "release");
    return prompt;
  }

  // Pages hit.
  std::uint32_t hit(const Prompt& prompt) {
    const auto [cached, sequence] = begin(plugin_, worker_, name_space_, prompt.tokens);
    plugin_.expect(plugin_->release(sequence), "release");
    return cached;
  }

  // Compares what a begin compares, and nothing else. Returns 0 when all is equal.
  std::uint64_t stream(const Prompt& prompt) const {
    std::uint64_t different = 0;
    const std::uint32_t* tokens = prompt.tokens.data();
    for (const std::uint32_t page : prompt.pages) {
      const Descriptor& descriptor = segment_.descriptor({page});
      const AtomicU64* words = segment_.token_words({page});
      different |= (descriptor.state.load(std::memory_order_relaxed) & ~kGenerationMask) ^
                   static_cast<std::uint64_t>(PageState::kLive);
      different |= descriptor.parent.load(std::memory_order_relaxed) == 0 ? 1 : 0;
      for (std::size_t i = 0; i < kTokensPerPage / 2; ++i, tokens += 2) {
        different |= words[i].load(std::memory_order_relaxed) ^
                     (tokens[0] | std::uint64_t{tokens[1]} << 32);
      }
    }
    return different;
  }

 private:
  const replay::Plugin& plugin_;
  kvtrie_worker worker_;
  const Segment& segment_;
  kvtrie_namespace name_space_;
};

}  // namespace

FullHitResult measure_full_hit(const FullHitOptions& options) {
  replay::Signals signals;
  replay::ReplayOptions cache_options;
  cache_options.geometry = {.pages = options.pages, .tokens_per_page = kTokensPerPage, .page_bytes = options.page_bytes};
  cache_options.page_checksums = options.page_checksums;
  cache_options.low_percent = cache_options.high_percent = 0;
  const replay::OwnCache cache(cache_options, options.kvtried, signals);
  const replay::Plugin plugin(options.plugin);
  const replay::Attachment attachment(plugin, cache.name(), cache.directory(), "kvtrie-bench", false);
  const replay::Observer observer(cache.name());
  FullHit full_hit(plugin, attachment.worker(), observer.segment());

  FullHitResult result;
  result.prompts = static_cast<std::uint32_t>(options.pages / options.prompt_pages);
  if (result.prompts == 0) throw std::runtime_error("--prompt-pages: more than --pages");
  std::vector<Prompt> prompts;
  const double fill_start = now_us();
  for (std::uint32_t i = 0; i < result.prompts; ++i) {
    prompts.push_back(full_hit.cache(i, options.prompt_pages));
  }
  result.fill_ns = (now_us() - fill_start) * 1000 / (result.prompts * static_cast<double>(options.prompt_pages));
  // A stride through the prompts, so that the next one is not what the hardware prefetches.
  auto each = [&](auto&& visit) {
    for (std::uint64_t i = 0; i < prompts.size(); ++i) visit(prompts[i * 163 % prompts.size()]);
  };
  std::vector<double> begin_us, floor_us, ratio;
  for (std::uint32_t round = 0; round <= options.rounds; ++round) {
    std::uint64_t different = 0;
    result.pages_hit = 0;
    double start = now_us();
    each([&](const Prompt& prompt) { result.pages_hit += full_hit.hit(prompt); });
    const double begin = (now_us() - start) / result.prompts;
    start = now_us();
    each([&](const Prompt& prompt) { different |= full_hit.stream(prompt); });
    const double floor = (now_us() - start) / result.prompts;
    if (different != 0 || result.pages_hit != std::uint64_t{result.prompts} * options.prompt_pages) {
      throw std::runtime_error(fmt::format("round {} is void: {} pages hit, {} expected", round,
                                           result.pages_hit,
                                           std::uint64_t{result.prompts} * options.prompt_pages));
    }
    if (round == 0) continue;  // warms up
    begin_us.push_back(begin);
    floor_us.push_back(floor);
    ratio.push_back(begin / floor);
  }
  result.begin_us = spread_of(begin_us);
  result.floor_us = spread_of(floor_us);
  result.ratio = spread_of(ratio);
  return result;
}

}  // namespace kvtrie::bench
