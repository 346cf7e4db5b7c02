// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>

#include "shm/geometry.h"
#include "tools/bench/peers/all_peers.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

constexpr char kWorkerName[] = "kvtrie-bench";

class KvtrieLookup : public Lookup {
 public:
  KvtrieLookup(const std::string& plugin, const replay::OwnCache& cache)
      : plugin_(plugin),
        attachment_(plugin_, cache.name(), cache.directory(), kWorkerName, false),
        name_space_(open_namespace(plugin_, attachment_.worker())) {}

  std::uint32_t find(std::span<const std::uint32_t> tokens, std::uint32_t* pages) override {
    kvtrie_begin_result result{};
    result.size = sizeof result;
    kvtrie_sequence sequence{};
    const kvtrie_code code = plugin_->begin(attachment_.worker(), name_space_, tokens.data(), tokens.size(), nullptr,
                                            &result, &sequence);
    plugin_.expect(code, "begin");
    if (result.cached_pages > 0) {
      plugin_.expect(plugin_->get_pages(sequence, 0, result.cached_pages, pages), "get_pages");
    }
    plugin_.expect(plugin_->release(sequence), "release");
    return result.cached_pages;
  }

  void cache(CachedPrompt& prompt) {
    const Begun begun = begin(plugin_, attachment_.worker(), name_space_, prompt.tokens);
    const auto pages = static_cast<std::uint32_t>(prompt.tokens.size() / kTokensPerPage);
    prompt.pages.resize(pages);
    plugin_.expect(plugin_->allocate(begun.sequence, prompt.tokens.size(), nullptr), "allocate");
    plugin_.expect(plugin_->get_pages(begun.sequence, 0, pages, prompt.pages.data()), "get_pages");
    plugin_.expect(plugin_->publish(begun.sequence, prompt.tokens.size(), nullptr), "publish");
    plugin_.expect(plugin_->release(begun.sequence), "release");
  }

 private:
  replay::Plugin plugin_;
  replay::Attachment attachment_;
  kvtrie_namespace name_space_;
};

replay::ReplayOptions options_for(const Settings& settings) {
  replay::ReplayOptions options;
  options.geometry = {.pages = settings.pages, .tokens_per_page = kTokensPerPage, .page_bytes = 8};
  options.low_percent = options.high_percent = 0;  // all of it can be full
  return options;
}

class KvtriePeer : public Peer {
 public:
  KvtriePeer(const Settings& settings, replay::Signals& signals, Corpus& corpus)
      : plugin_(settings.plugin),
        options_(options_for(settings)),
        cache_(options_, settings.kvtried, signals) {
    KvtrieLookup filler(plugin_, cache_);
    for (CachedPrompt& prompt : corpus) filler.cache(prompt);
  }
  std::string name() const override { return "kvtrie"; }
  std::string configuration() const override {
    return "begin, get_pages, release through the plugin; tokens are compared; what was found is protected until "
           "release; one segment for all processes, as kvtried makes it, for 64 workers";
  }
  std::unique_ptr<Lookup> open() const override { return std::make_unique<KvtrieLookup>(plugin_, cache_); }
  std::optional<double> shared_bytes() const override {
    return static_cast<double>(layout_of(options_.geometry).segment_bytes);
  }

 private:
  std::string plugin_;
  replay::ReplayOptions options_;
  replay::OwnCache cache_;
};

}  // namespace

std::unique_ptr<Peer> make_kvtrie(const Settings& settings, replay::Signals& signals, Corpus& corpus) {
  return std::make_unique<KvtriePeer>(settings, signals, corpus);
}

}  // namespace kvtrie::bench
