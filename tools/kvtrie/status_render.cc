// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// How a StatusReport looks, as text and as JSON (docs/kvtrie-json.md).

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>
#include <nlohmann/json.hpp>

#include "shm/counter_names.h"
#include "tools/kvtrie/command_status.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

using enum Counter;

double as_double(std::uint64_t value) { return static_cast<double>(value); }

std::string utc_text(std::uint64_t realtime_ns) {
  return fmt::format("{:%Y-%m-%d %H:%M:%S} UTC",
                     fmt::gmtime(static_cast<std::time_t>(realtime_ns / 1'000'000'000)));
}

// 1.2 M, for sums that nobody reads to the last digit.
std::string rounded(std::uint64_t value) {
  constexpr const char* kUnits[] = {"", " k", " M", " G", " T", " P", " E"};
  auto scaled = as_double(value);
  std::size_t unit = 0;
  if (value < 100'000) return grouped(value);
  while (scaled >= 1000 && unit + 1 < std::size(kUnits)) {
    scaled /= 1000;
    ++unit;
  }
  return fmt::format("{:.1f}{}", scaled, kUnits[unit]);
}

std::string condition(const StatusReport& report) {
  if (report.poisoned) {
    return fmt::format("POISONED: {}; successor {}", poison_reason_name(report.poison_reason),
                       report.successor.empty() ? "none yet" : report.successor);
  }
  const bool serving =
      report.coordinator.state == static_cast<std::uint32_t>(CoordinatorState::kServing);
  const char* served = "not served";
  if (serving && report.coordinator.liveness == Liveness::kAlive) served = "served";
  if (serving && report.coordinator.liveness == Liveness::kUnknown) {
    served = "served, if its coordinator lives (it is in another PID namespace)";
  }
  const char* sound = report.attention.empty() ? "well" : "needs attention, see below";
  return fmt::format("not poisoned, {}; {}", served, sound);
}

std::string coordinator_text(const StatusReport& report) {
  const CoordinatorView& coordinator = report.coordinator;
  if (coordinator.pid == 0) {
    const bool stopped =
        coordinator.state == static_cast<std::uint32_t>(CoordinatorState::kStopped);
    return fmt::format("none ({}), epoch {}", stopped ? "stopped cleanly" : "never started",
                       coordinator.epoch);
  }
  return fmt::format("pid {} {}, {}, epoch {}{}", coordinator.pid, name_of(coordinator.liveness),
                     coordinator_state_name(coordinator.state), coordinator.epoch,
                     report.evictor_busy ? ", evicting" : "");
}

void add_pages(const StatusReport& report, FieldLines& lines) {
  const PageStats& pages = report.pages;
  const std::uint64_t total = report.geometry.pages;
  std::string label = "pages";
  for (std::uint8_t i = 0; i < kPageStates; ++i) {
    const auto state = static_cast<PageState>(i);
    std::string more;
    if (state == PageState::kLive)
      more = fmt::format("  {} tokens", grouped(pages.readable_tokens));
    if (state == PageState::kFree) {
      more = fmt::format("  eviction starts below {}, ends at {}", grouped(report.low_pages),
                         grouped(report.high_pages));
    }
    lines.add(label,
              fmt::format("{:<9} {:>11}  {:>7}{}", name_of(state), grouped(pages.by_state[i]),
                          percent_text(as_double(pages.by_state[i]), as_double(total)), more));
    label.clear();
  }
  if (pages.impossible != 0) {
    lines.add("", fmt::format("{:<9} {:>11}", "IMPOSSIBLE", grouped(pages.impossible)));
  }
}

void add_traffic(const StatusReport& report, FieldLines& lines) {
  auto count = [&](Counter which) { return grouped(report.counter(which)); };
  lines.add("hits",
            fmt::format("{} of pages ({} of {}), {} of tokens ({} of {}), {} lookups",
                        percent_text(as_double(report.counter(kPagesHit)),
                                     as_double(report.counter(kPagesAsked))),
                        rounded(report.counter(kPagesHit)), rounded(report.counter(kPagesAsked)),
                        percent_text(as_double(report.counter(kTokensFound)),
                                     as_double(report.counter(kTokensAsked))),
                        rounded(report.counter(kTokensFound)),
                        rounded(report.counter(kTokensAsked)), count(kLookups)));
  lines.add("allocations",
            fmt::format("{} calls, {} pages; failed: {} not now, {} never; waited: {}",
                        count(kAllocations), count(kPagesAllocated), count(kFailedNotNow),
                        count(kFailedNever), count(kWaits)));
  lines.add("published",
            fmt::format("{} pages of {} announced; private: {} duplicates, {} bucket full; "
                        "given back {}",
                        count(kPagesPublished), count(kPagesAnnounced), count(kDuplicates),
                        count(kBucketsFull), count(kPagesGivenBack)));
  lines.add("evictions",
            fmt::format("{} pages in {} passes, {} rescued; last pass short of {} pages",
                        count(kEvictions), count(kEvictionPasses), count(kEvictionRescued),
                        grouped(report.shortfall)));
  lines.add("reaped", fmt::format("{} workers with {} pages and {} leases; {} adoptions",
                                  count(kReapedWorkers), count(kReapedPages), count(kReapedLeases),
                                  count(kAdoptions)));
  lines.add("locks", fmt::format("{} recovered, {} stripes passed by; {} corrupt bytes met",
                                 grouped(report.stripe_recoveries),
                                 grouped(report.stripe_passed_by), count(kCorruptSeen)));
}

std::string leases_text(const StatusReport& report) {
  std::string text = fmt::format("{} held, {} pins", grouped(report.leases), grouped(report.pins));
  if (report.leases_stale != 0) {
    text += fmt::format(", {} of evicted pages (harmless)", grouped(report.leases_stale));
  }
  if (report.oldest_lease) {
    text += fmt::format("; oldest taken {} by slot {} (tag {:#x})",
                        ago_text(report.oldest_lease_seconds), report.oldest_lease->slot.value,
                        report.oldest_lease->request_tag);
  }
  return text;
}

Json counters_json(const StatusReport& report) {
  Json counters = Json::object();
  for (std::size_t i = 0; i < kCounters; ++i) {
    if (const char* name = name_of(static_cast<Counter>(i))) counters[name] = report.counters[i];
  }
  return counters;
}

Json ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? Json(nullptr) : Json(as_double(part) / as_double(whole));
}

}  // namespace

std::string to_text(const StatusReport& report) {
  const Geometry& g = report.geometry;
  FieldLines lines;
  lines.add("cache",
            fmt::format("{} (id {}, layout {})", report.cache, report.cache_id, kLayoutVersion));
  lines.add("condition", condition(report));
  lines.add("age", fmt::format("{} (made {})", seconds_text(report.age_seconds),
                               utc_text(report.made_realtime_ns)));
  lines.add("coordinator", coordinator_text(report));
  lines.add("geometry",
            fmt::format("{} pages x {} tokens; {} of {} a page", grouped(g.pages),
                        g.tokens_per_page, counted(g.planes, "plane"), bytes_text(g.page_bytes)));
  lines.add(
      "memory",
      fmt::format("segment {}, pools {} ({} of {} there, {} device)", bytes_text(report.segment_bytes),
                  bytes_text(report.pool_bytes_each * g.planes), report.pools_found, g.planes, name_of(report.device)));
  lines.add("clock", fmt::format("{}, tick {}, now {}",
                                 report.clock == ClockKind::kDriven
                                     ? "driven by a replay (ages are the trace's)"
                                     : "system",
                                 seconds_text(as_double(report.tick_ns) * 1e-9), report.now_tick));
  add_pages(report, lines);
  add_traffic(report, lines);
  lines.add("leases", leases_text(report));
  lines.add(
      "workers",
      fmt::format("{} attached of {}{}{}", report.attached, g.workers,
                  report.attached_dead != 0 ? fmt::format(", {} dead", report.attached_dead) : "",
                  report.waiting != 0 ? fmt::format(", {} waiting for {} pages", report.waiting,
                                                    grouped(report.pages_wanted))
                                      : ""));
  lines.add("namespaces", fmt::format("{} open of {}", report.namespaces_open, g.namespaces));
  std::string text = lines.text();
  for (const std::string& line : report.attention)
    text += "! " + line + "\n";
  return text;
}

Json to_json(const StatusReport& report) {
  const Geometry& g = report.geometry;
  Json json;
  json["cache"] = report.cache;
  json["cache_id"] = report.cache_id;
  json["layout_version"] = kLayoutVersion;
  json["age_seconds"] = report.age_seconds;
  json["made_unix_ns"] = report.made_realtime_ns;
  json["poison"] = {
      {"poisoned", report.poisoned},
      {"reason", poison_reason_name(report.poison_reason)},
      {"successor", report.successor.empty() ? Json(nullptr) : Json(report.successor)}};
  json["host"] = {{"same_boot", report.same_boot},
                  {"same_pid_namespace", report.same_pid_namespace}};
  json["coordinator"] = {{"pid", report.coordinator.pid},
                         {"liveness", name_of(report.coordinator.liveness)},
                         {"state", coordinator_state_name(report.coordinator.state)},
                         {"epoch", report.coordinator.epoch},
                         {"evicting", report.evictor_busy}};
  json["geometry"] = {{"pages", g.pages},           {"tokens_per_page", g.tokens_per_page},
                      {"page_bytes", g.page_bytes}, {"planes", g.planes},
                      {"workers", g.workers},       {"leases_per_worker", g.leases_per_worker},
                      {"namespaces", g.namespaces}, {"stripes", g.stripes}};
  json["memory"] = {{"segment_bytes", report.segment_bytes},
                    {"device", name_of(report.device)},
                    {"pool_bytes_each", report.pool_bytes_each},
                    {"pools_found", report.pools_found}};
  json["clock"] = {{"kind", report.clock == ClockKind::kDriven ? "driven" : "system"},
                   {"tick_ns", report.tick_ns},
                   {"now_tick", report.now_tick}};
  Json& pages = json["pages"];
  for (std::uint8_t i = 0; i < kPageStates; ++i) {
    pages[name_of(static_cast<PageState>(i))] = report.pages.by_state[i];
  }
  pages["impossible"] = report.pages.impossible;
  pages["owner_unknown"] = report.pages.owner_unknown;
  pages["namespace_unknown"] = report.pages.scope_unknown;
  json["tokens_cached"] = report.pages.readable_tokens;
  json["watermarks"] = {{"low_pages", report.low_pages},
                        {"high_pages", report.high_pages},
                        {"shortfall_pages", report.shortfall}};
  json["hit_ratio_pages"] = ratio(report.counter(kPagesHit), report.counter(kPagesAsked));
  json["hit_ratio_tokens"] = ratio(report.counter(kTokensFound), report.counter(kTokensAsked));
  json["counters"] = counters_json(report);
  json["stripes"] = {{"lock_recoveries", report.stripe_recoveries},
                     {"passed_by", report.stripe_passed_by}};
  Json& leases = json["leases"];
  leases = {{"held", report.leases}, {"pins", report.pins}, {"stale", report.leases_stale}};
  leases["oldest_seconds"] =
      report.oldest_lease_seconds ? Json(*report.oldest_lease_seconds) : Json(nullptr);
  json["workers"] = {
      {"attached", report.attached},
      {"dead", report.attached_dead},
      {"waiting", report.waiting},
      {"pages_wanted", report.pages_wanted},
      {"longest_wait_seconds",
       report.longest_wait_seconds ? Json(*report.longest_wait_seconds) : Json(nullptr)}};
  json["namespaces"] = {{"open", report.namespaces_open}};
  json["attention"] = report.attention;
  return json;
}

}  // namespace kvtrie::inspect
