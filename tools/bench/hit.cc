// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <stdexcept>

#include "shm/page_table.h"
#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/replay/observer.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

struct Prompt {
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint32_t> pages;  // where they are cached
};

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

void run_hit(const Settings& settings, Report& report) {
  constexpr std::uint32_t kPromptPages = 2048;
  replay::Signals signals;
  replay::ReplayOptions cache_options;
  cache_options.geometry = {.pages = settings.pages, .tokens_per_page = kTokensPerPage, .page_bytes = 8};
  cache_options.low_percent = cache_options.high_percent = 0;
  const replay::OwnCache cache(cache_options, settings.kvtried, signals);
  const replay::Plugin plugin(settings.plugin);
  const replay::Attachment attachment(plugin, cache.name(), cache.directory(), "kvtrie-bench", false);
  const replay::Observer observer(cache.name());
  FullHit full_hit(plugin, attachment.worker(), observer.segment());
  std::vector<Prompt> prompts;
  const double fill_ns = time_ns([&] {
    for (std::uint32_t i = 0; i < settings.pages / kPromptPages; ++i) prompts.push_back(full_hit.cache(i, kPromptPages));
  });
  const double count = static_cast<double>(prompts.size()) * kPromptPages;
  report.add({"allocate, publish, release, once", "1 M", spread_of({fill_ns / count}), "ns/page"});
  auto each = [&](auto&& visit) {
    return time_ns([&] { for (std::uint64_t i = 0; i < prompts.size(); ++i) visit(prompts[i * 163 % prompts.size()]); }) / count;
  };
  const Rounds rounds = alternate(settings.rounds, {
    [&] { return each([&](const Prompt& prompt) { full_hit.hit(prompt); }); },
    [&] { return each([&](const Prompt& prompt) { full_hit.stream(prompt); }); }});
  report.add({"begin, release", "1 M pages, fresh", spread_of(rounds[0]), "ns/page", "stream", ratio_of(rounds[0], rounds[1]), at_most(1.5)});
}

}  // namespace kvtrie::bench
