// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/report.h"

#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "shm/counter_names.h"

namespace kvtrie::replay {
namespace {

double ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double microseconds(const Histogram& histogram, double percent) {
  return static_cast<double>(histogram.percentile(percent)) / 1000;
}

// 12345678 -> "12,345,678"
std::string grouped(std::uint64_t number) {
  const std::string digits = fmt::format("{}", number);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string milliseconds_of(const Histogram& histogram) {
  return fmt::format("p50 {:.2f} ms, p99 {:.2f} ms, max {:.2f} ms, of {}", microseconds(histogram, 50) / 1000,
                     microseconds(histogram, 99) / 1000, static_cast<double>(histogram.max()) / 1e6,
                     grouped(histogram.count()));
}

std::string storm_to_text(const StormResult& storm) {
  const auto line = [](const char* name, const std::string& value) {
    return fmt::format("    {:<30} {}\n", name, value);
  };
  std::string text = "  storm\n";
  text += line("workers killed", grouped(storm.kills));
  text += line("... of these without a slot", grouped(storm.given_back.unattached));
  text += line("workers stopped for seconds", grouped(storm.stops));
  text += line("kvtried killed, stopped", fmt::format("{}, {}", storm.coordinator_kills, storm.coordinator_stops));
  if (storm.times_full > 0) text += line("/dev/shm was full", fmt::format("{} times", storm.times_full));
  text += line("rounds, verified at their end", grouped(storm.rounds));
  text += line("death to all given back", milliseconds_of(storm.given_back.served));
  text += line("... kvtried dead or stopped", milliseconds_of(storm.given_back.disturbed));
  text += line("start of kvtried to serving", milliseconds_of(storm.restarts));
  return text;
}

nlohmann::ordered_json storm_to_json(const StormResult& storm) {
  nlohmann::ordered_json json;
  json["kills"] = storm.kills;
  json["kills_without_slot"] = storm.given_back.unattached;
  json["stops"] = storm.stops;
  json["coordinator_kills"] = storm.coordinator_kills;
  json["coordinator_stops"] = storm.coordinator_stops;
  json["shm_full"] = storm.times_full;
  json["rounds"] = storm.rounds;
  const auto add = [&](const char* name, const Histogram& histogram) {
    json[fmt::format("{}_count", name)] = histogram.count();
    json[fmt::format("{}_us_p50", name)] = microseconds(histogram, 50);
    json[fmt::format("{}_us_p99", name)] = microseconds(histogram, 99);
    json[fmt::format("{}_us_max", name)] = static_cast<double>(histogram.max()) / 1000;
  };
  add("given_back", storm.given_back.served);
  add("given_back_disturbed", storm.given_back.disturbed);
  add("restart", storm.restarts);
  return json;
}

}  // namespace

void add_tallies(const SharedPlan& plan, ReplayResult& result) {
  for (std::uint32_t worker = 0; worker < plan.worker_count(); ++worker) {
    const WorkerTally& tally = plan.tally(worker);
    for (std::size_t i = 0; i < kTallies; ++i)
      result.sums[i] += tally.get(static_cast<Tally>(i));
    for (std::size_t i = 0; i < kTimings; ++i)
      result.timings[i].merge(tally.timings[i]);
  }
}

ExitCode judge(const ReplayResult& result, std::string& why) {
  if (const std::uint64_t wrong = result.sum(Tally::kWrongPages); wrong > 0) {
    why = fmt::format("{} pages held wrong bytes", wrong);
    return kExitWrongPages;
  }
  if (!result.failure.empty()) {
    why = result.failure;
    return kExitFailure;
  }
  const std::uint64_t told = result.sum(Tally::kPagesHit);
  const std::uint64_t counted = result.count(Counter::kPagesHit);
  if (counted < told || counted - told > result.uncertain_hits) {
    why = fmt::format("begin answered {} pages, the cache counted {}{}", told, counted,
                      result.own_cache ? "" : " (did others use it meanwhile?)");
    return kExitCountersDiffer;
  }
  if (result.own_cache && result.census.lost() > 0) {
    why = fmt::format("{} pages are neither free nor cached at the end", result.census.lost());
    return kExitFailure;
  }
  return kExitOk;
}

std::string to_json(const ReplayResult& result, const ReplayOptions& options) {
  nlohmann::ordered_json json;
  json["requests"] = result.requests;
  json["requests_served"] = result.sum(Tally::kServed);
  json["pages_total"] = result.sum(Tally::kPagesAsked);
  json["pages_hit"] = result.sum(Tally::kPagesHit);
  json["pages_hit_by_coordinator"] = result.count(Counter::kPagesHit);
  json["hit_ratio_pages"] = ratio(result.sum(Tally::kPagesHit), result.sum(Tally::kPagesAsked));
  json["blocks_total"] = result.sum(Tally::kBlocksAsked);
  json["blocks_hit"] = result.sum(Tally::kBlocksHit);
  json["hit_ratio_blocks"] = ratio(result.sum(Tally::kBlocksHit), result.sum(Tally::kBlocksAsked));
  json["tokens_total"] = result.sum(Tally::kTokensAsked);
  json["tokens_not_recomputed"] = result.sum(Tally::kTokensHit);
  json["wrong_pages"] = result.sum(Tally::kWrongPages);
  json["pages_checked"] = result.sum(Tally::kPagesChecked);
  json["pages_written"] = result.sum(Tally::kPagesWritten);
  json["pages_published"] = result.sum(Tally::kPagesPublished);
  json["pages_kept_private"] = result.sum(Tally::kPagesPrivate);
  json["failed_allocations"] = result.sum(Tally::kFailed);
  json["retries"] = result.sum(Tally::kRetries);
  json["unsettled"] = result.sum(Tally::kUnsettled);
  for (const Counter counter :
       {Counter::kEvictions, Counter::kEvictionPasses, Counter::kEvictionRescued, Counter::kWaits,
        Counter::kDuplicates, Counter::kRescues, Counter::kLeaseFallbacks, Counter::kBucketsFull,
        Counter::kStripesPassedBy, Counter::kLockRecoveries, Counter::kCorruptSeen,
        Counter::kAdoptions, Counter::kReapedWorkers, Counter::kReapedPages}) {
    json[name_of(counter)] = result.count(counter);
  }
  json["deaths"] = result.deaths;
  const auto add_timing = [&](const char* name, Timing which) {
    const Histogram& histogram = result.timing(which);
    json[fmt::format("{}_us_p50", name)] = microseconds(histogram, 50);
    json[fmt::format("{}_us_p99", name)] = microseconds(histogram, 99);
    json[fmt::format("{}_us_max", name)] = static_cast<double>(histogram.max()) / 1000;
  };
  add_timing("lookup", Timing::kLookup);
  add_timing("allocate", Timing::kAllocate);
  add_timing("publish", Timing::kPublish);
  add_timing("release", Timing::kRelease);
  json["seconds"] = result.seconds;
  json["run_length_mean"] = ratio(result.sum(Tally::kPagesHit), result.sum(Tally::kRuns));
  json["pages_free_at_end"] = result.census.free_bits;
  json["pages_cached_at_end"] = result.census.in(PageState::kLive);
  json["pages_lost"] = result.census.lost();
  json["workers"] = options.workers;
  json["in_flight"] = options.in_flight;
  json["namespaces"] = options.namespaces;
  json["pages"] = options.geometry.pages;
  json["tokens_per_page"] = options.geometry.tokens_per_page;
  json["page_bytes"] = options.geometry.page_bytes;
  json["planes"] = options.geometry.planes;
  json["failure"] = result.failure;
  if (result.storm.kills > 0) json["storm"] = storm_to_json(result.storm);
  if (!result.mix_json.empty()) json["mix"] = nlohmann::ordered_json::parse(result.mix_json);
  return json.dump(2) + "\n";
}

std::string to_text(const ReplayResult& result, const ReplayOptions& options) {
  const auto line = [](const char* name, const std::string& value) {
    return fmt::format("  {:<16} {}\n", name, value);
  };
  const auto times = [&](Timing which) {
    const Histogram& histogram = result.timing(which);
    return fmt::format("p50 {:.1f} us, p99 {:.1f} us", microseconds(histogram, 50),
                       microseconds(histogram, 99));
  };
  std::string text = fmt::format(
      "{} of {} requests in {:.1f} s: {} workers with up to {} open requests, {} pages of {} "
      "tokens\n",
      grouped(result.sum(Tally::kServed)), grouped(result.requests), result.seconds,
      options.workers, options.in_flight, grouped(options.geometry.pages),
      options.geometry.tokens_per_page);
  text += line("hit ratio",
               fmt::format("{:.4f} of {} blocks, {:.4f} of {} pages",
                           ratio(result.sum(Tally::kBlocksHit), result.sum(Tally::kBlocksAsked)),
                           grouped(result.sum(Tally::kBlocksAsked)),
                           ratio(result.sum(Tally::kPagesHit), result.sum(Tally::kPagesAsked)),
                           grouped(result.sum(Tally::kPagesAsked))));
  text +=
      line("not recomputed", fmt::format("{} of {} tokens", grouped(result.sum(Tally::kTokensHit)),
                                         grouped(result.sum(Tally::kTokensAsked))));
  text +=
      line("wrong pages", fmt::format("{} of {} compared", grouped(result.sum(Tally::kWrongPages)),
                                      grouped(result.sum(Tally::kPagesChecked))));
  if (result.own_cache) text += line("lost pages", grouped(result.census.lost()));
  text += line("no room", fmt::format("{} requests failed, {} began again",
                                      grouped(result.sum(Tally::kFailed)),
                                      grouped(result.sum(Tally::kRetries))));
  text += line("evicted",
               fmt::format("{} pages in {} passes", grouped(result.count(Counter::kEvictions)),
                           grouped(result.count(Counter::kEvictionPasses))));
  text += line("lookup", times(Timing::kLookup));
  text += line("allocate", times(Timing::kAllocate));
  text += line("publish", times(Timing::kPublish));
  text += line("runs", fmt::format("{:.1f} neighbouring pages on average",
                                   ratio(result.sum(Tally::kPagesHit), result.sum(Tally::kRuns))));
  if (result.deaths > 0) text += line("killed", fmt::format("{} workers", result.deaths));
  if (result.storm.kills > 0) text += storm_to_text(result.storm);
  if (const std::uint64_t unsettled = result.sum(Tally::kUnsettled); unsettled > 0) {
    text +=
        line("not settled", fmt::format("{} times: hits may differ from the model's", unsettled));
  }
  return text;
}

}  // namespace kvtrie::replay
