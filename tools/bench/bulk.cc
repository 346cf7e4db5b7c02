// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tools/bench/prompts.h"
#include "tools/bench/sections.h"
#include "tools/replay/own_cache.h"
#include "tools/replay/plugin.h"

namespace kvtrie::bench {
namespace {

constexpr std::uint32_t kCallPages = 256;
constexpr std::size_t kAlignment = 256;
constexpr double kTargetRatio = 0.9;
constexpr std::uint32_t kRoundsMax = 5;  // each moves 2 GiB

std::string bytes_text(std::uint64_t bytes) {
  return bytes >= 1U << 20 ? fmt::format("{} MiB", bytes >> 20) : fmt::format("{} KiB", bytes >> 10);
}

// A cache whose free pages stand in runs of a given length, and sequences that took all of them. Beside it an engine's
// memory of the same size.
class BulkCache {
 public:
  BulkCache(const Settings& settings, const replay::Plugin& plugin, replay::Signals& signals, std::uint64_t page_bytes,
            std::uint32_t run_pages)
      : plugin_(plugin),
        page_bytes_(page_bytes),
        cache_(options_of(settings, page_bytes), settings.kvtried, signals),
        attachment_(plugin, cache_.name(), cache_.directory(), "kvtrie-bench", false),
        space_(open_namespace(plugin, attachment_.worker())) {
    const std::uint64_t calls = pages_of(settings, page_bytes) / 2 / kCallPages;
    memory_.resize(calls * kCallPages * page_bytes + kAlignment, std::byte{1});
    void* aligned = memory_.data();
    std::size_t space = memory_.size();
    engine_ = {static_cast<std::byte*>(std::align(kAlignment, memory_.size() - kAlignment, aligned, space)),
               memory_.size() - kAlignment};
    leave_runs_free(pages_of(settings, page_bytes), run_pages);
    for (std::uint64_t call = 0; call < calls; ++call)
      take(engine_.data() + call * kCallPages * page_bytes);
  }

  [[nodiscard]] std::uint64_t bytes() const { return engine_.size(); }
  [[nodiscard]] std::uint64_t tokens() const { return engine_.size() / page_bytes_ * kTokensPerPage; }
  [[nodiscard]] double pages_a_run() const {
    return static_cast<double>(engine_.size() / page_bytes_) / static_cast<double>(pieces_.size());
  }

  // Nanoseconds for all of it, by the plugin, a call for each sequence.
  double plugin_in(const kvtrie_layout* layout) { return each_call(plugin_->copy_in, "copy_in", layout); }
  double plugin_out(const kvtrie_layout* layout) { return each_call(plugin_->copy_out, "copy_out", layout); }
  // The same by memcpy, one for each run of pages.
  double memcpy_in() {
    return time_ns([&] {
      for (const Piece& piece : pieces_)
        std::memcpy(piece.in_pool, piece.outside, piece.bytes);
    });
  }
  double memcpy_out() {
    return time_ns([&] {
      for (const Piece& piece : pieces_)
        std::memcpy(piece.outside, piece.in_pool, piece.bytes);
    });
  }

 private:
  struct Piece {
    std::byte* in_pool;
    std::byte* outside;
    std::uint64_t bytes;
  };

  static std::uint64_t pages_of(const Settings& settings, std::uint64_t page_bytes) {
    const std::uint64_t pool_bytes = std::uint64_t{settings.quick ? 64U : 1024U} << 20;
    return std::max<std::uint64_t>(pool_bytes / page_bytes, 2 * kCallPages);
  }
  static replay::ReplayOptions options_of(const Settings& settings, std::uint64_t page_bytes) {
    replay::ReplayOptions options;
    const std::uint64_t pages = pages_of(settings, page_bytes);
    options.geometry = {.pages = pages,
                        .tokens_per_page = kTokensPerPage,
                        .page_bytes = page_bytes,
                        .leases_per_worker = static_cast<std::uint32_t>(pages / 2 / kCallPages + 64)};
    options.low_percent = options.high_percent = 0;
    return options;
  }

  kvtrie_sequence allocate(std::uint64_t pages) {
    kvtrie_begin_options options{};
    options.size = sizeof options;
    options.flags = KVTRIE_NO_READ | KVTRIE_NO_PUBLISH;
    kvtrie_begin_result result{};
    result.size = sizeof result;
    kvtrie_sequence sequence{};
    const std::uint32_t token = 0;
    plugin_.expect(plugin_->begin(attachment_.worker(), space_, &token, 1, &options, &result, &sequence), "begin");
    plugin_.expect(plugin_->allocate(sequence, pages * kTokensPerPage, nullptr), "allocate");
    return sequence;
  }
  std::vector<std::uint32_t> pages_of(kvtrie_sequence sequence, std::uint64_t count) const {
    std::vector<std::uint32_t> pages(count);
    plugin_.expect(plugin_->get_pages(sequence, 0, static_cast<std::uint32_t>(count), pages.data()), "get_pages");
    return pages;
  }
  // Takes all pages, and gives every second run back.
  void leave_runs_free(std::uint64_t pages, std::uint32_t run_pages) {
    const kvtrie_sequence holder = allocate(pages);
    const std::vector<std::uint32_t> held = pages_of(holder, pages);
    for (std::uint32_t position = 0; position < held.size(); ++position) {
      if (held[position] / run_pages % 2 == 1) plugin_.expect(plugin_->give_back(holder, position, 1), "give_back");
    }
  }
  void take(std::byte* outside) {
    sequences_.push_back(allocate(kCallPages));
    std::uint32_t before = KVTRIE_NO_PAGE - 1;
    for (const std::uint32_t page : pages_of(sequences_.back(), kCallPages)) {
      if (page == before + 1) {
        pieces_.back().bytes += page_bytes_;
      } else {
        void* address = nullptr;
        plugin_.expect(plugin_->page_address(attachment_.worker(), page, 0, &address), "page_address");
        pieces_.push_back({static_cast<std::byte*>(address), outside, page_bytes_});
      }
      before = page;
      outside += page_bytes_;
    }
  }

  template <typename Copy>
  double each_call(Copy copy, const char* name, const kvtrie_layout* layout) {
    constexpr std::uint64_t kTokens = std::uint64_t{kCallPages} * kTokensPerPage;
    return time_ns([&] {
      std::byte* base = engine_.data();
      for (const kvtrie_sequence sequence : sequences_) {
        plugin_.expect(copy(sequence, 0, kTokens, 0, layout, base), name);
        base +=
            layout == nullptr ? kCallPages * page_bytes_ : kTokens * static_cast<std::uint64_t>(layout->token_stride);
      }
    });
  }

  const replay::Plugin& plugin_;
  std::uint64_t page_bytes_;
  replay::OwnCache cache_;
  replay::Attachment attachment_;
  kvtrie_namespace space_;
  std::vector<kvtrie_sequence> sequences_;
  std::vector<Piece> pieces_;
  std::vector<std::byte> memory_;
  std::span<std::byte> engine_;  // of it, as tensors are aligned
};

std::vector<double> rates(const std::vector<double>& ns, std::uint64_t bytes) {
  std::vector<double> rates;
  for (const double each : ns)
    rates.push_back(static_cast<double>(bytes) / each);  // bytes a nanosecond are GB/s
  return rates;
}

struct Directions {
  Spread in;  // ratios
  Spread out;
};

struct Copies {
  const char* what;
  std::string setting;
  const kvtrie_layout* layout;  // nullptr: whole pages
  std::optional<Target> target;
};

Directions measure(const Settings& settings, BulkCache& cache, const Copies& copies, Report& report) {
  const Rounds ns = alternate(std::min(settings.rounds, kRoundsMax),
                              {[&] { return cache.plugin_in(copies.layout); }, [&] { return cache.memcpy_in(); },
                               [&] { return cache.plugin_out(copies.layout); }, [&] { return cache.memcpy_out(); }});
  // Of rates, so that more is better; of times it is the other way round.
  const Directions ratios{ratio_of(ns[1], ns[0]), ratio_of(ns[3], ns[2])};
  const auto add = [&](const char* direction, const std::vector<double>& of, const Spread& ratio) {
    report.add({fmt::format("{} {}", copies.what, direction), copies.setting, spread_of(rates(of, cache.bytes())),
                "GB/s", "memcpy", ratio, copies.target});
  };
  add("in", ns[0], ratios.in);
  add("out", ns[2], ratios.out);
  return ratios;
}

struct NamedLayout {
  const char* name;
  kvtrie_layout layout;
};

// Where the bytes of a model with 8 heads of 128 two-byte numbers stand in engines; 16 layers are 1 MiB a page.
std::array<NamedLayout, 3> layouts_of(std::uint64_t page_bytes, std::uint64_t tokens) {
  kvtrie_layout shape{};
  shape.size = sizeof shape;
  shape.kv = 2;
  shape.heads = 8;
  shape.head_bytes = 256;
  shape.layers = static_cast<std::uint32_t>(page_bytes / (shape.kv * kTokensPerPage * shape.heads * shape.head_bytes));
  const auto head = static_cast<std::int64_t>(shape.head_bytes);
  const std::int64_t token = head * shape.heads;
  const auto count = static_cast<std::int64_t>(tokens);
  kvtrie_layout by_token = shape;  // [layer][k|v][token][head][number]
  by_token.head_stride = head;
  by_token.token_stride = token;
  kvtrie_layout by_head = shape;  // [layer][k|v][head][token][number]
  by_head.token_stride = head;
  by_head.head_stride = head * count;
  for (kvtrie_layout* layout : {&by_token, &by_head}) {
    layout->kv_stride = token * count;
    layout->layer_stride = 2 * layout->kv_stride;
  }
  kvtrie_layout whole_tokens = shape;  // [token][layer][k|v][head][number]
  whole_tokens.head_stride = head;
  whole_tokens.kv_stride = token;
  whole_tokens.layer_stride = 2 * token;
  whole_tokens.token_stride = 2 * token * shape.layers;
  return {{{"[layer][k|v][token][head]", by_token},
           {"[layer][k|v][head][token]", by_head},
           {"[token][layer][k|v][head]", whole_tokens}}};
}

}  // namespace

void run_bulk(const Settings& settings, Report& report) {
  replay::Signals signals;
  const replay::Plugin plugin(settings.plugin);
  std::uint64_t bytes = 0;
  Plot plot{"bulk-runs",
            "Runs of neighbouring pages: kvtrie_copy_in and kvtrie_copy_out beside memcpy",
            "bytes of a run",
            "times memcpy",
            true,
            false,
            {{"in", {}}, {"out", {}}}};
  const std::uint64_t largest = settings.quick ? 64U << 10 : 1U << 20;
  for (const std::uint64_t page_bytes : {std::uint64_t{2U << 10}, largest / 16, largest}) {
    for (const std::uint32_t run : {1U, 16U, 256U}) {
      BulkCache cache(settings, plugin, signals, page_bytes, run);
      bytes = cache.bytes();
      const std::string setting = fmt::format("pages of {}, runs of {:.0f}, calls of {}", bytes_text(page_bytes),
                                              cache.pages_a_run(), bytes_text(page_bytes * kCallPages));
      const Directions ratios = measure(settings, cache, {"runs", setting, nullptr, at_least(kTargetRatio)}, report);
      const auto x = static_cast<double>(page_bytes) * cache.pages_a_run();
      plot.series[0].points.push_back({x, ratios.in});
      plot.series[1].points.push_back({x, ratios.out});
      if (page_bytes < largest || run < kCallPages) continue;
      for (const NamedLayout& named : layouts_of(page_bytes, cache.tokens())) {
        measure(settings, cache,
                {"layout",
                 fmt::format("pages of {}, {}, heads of 256 bytes", bytes_text(page_bytes), named.name),
                 &named.layout,
                 {}},
                report);
      }
    }
  }
  for (Plot::Series& series : plot.series)
    std::ranges::sort(series.points, {}, &Plot::Point::x);
  report.plot(std::move(plot));
  report.note(
      fmt::format("a round goes over {} of the pool and as much of an engine's memory; memcpy moves the same bytes "
                  "between the same "
                  "places, one call for each run of neighbouring pages",
                  bytes_text(bytes)));
}

}  // namespace kvtrie::bench
