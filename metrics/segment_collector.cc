// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "metrics/segment_collector.h"

#include <prometheus/metric_family.h>

#include <limits>
#include <string_view>

#include "shm/namespace_table.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Lines of one name stand together; `label` is "key=value" or empty.
struct CounterLine {
  Counter counter;
  const char* name;
  const char* help;
  const char* label_name = nullptr;
  const char* label_value = nullptr;
};

using enum Counter;
constexpr CounterLine kCounterLines[] = {
    {kLookups, "kvtrie_lookups_total", "Lookups of a prompt's longest cached prefix."},
    {kTokensAsked, "kvtrie_lookup_tokens_asked_total", "Tokens of the prompts looked up."},
    {kTokensFound, "kvtrie_lookup_tokens_found_total",
     "Tokens found cached, so not computed again."},
    {kPagesAsked, "kvtrie_lookup_pages_asked_total", "Full pages of the prompts looked up."},
    {kPagesHit, "kvtrie_lookup_pages_hit_total", "Pages found cached."},
    {kLeaseFallbacks, "kvtrie_lease_fallbacks_total",
     "Leases that fell back to the parent because the page went in between."},
    {kRescues, "kvtrie_lease_rescues_total", "Condemned pages that a lease brought back."},
    {kAllocations, "kvtrie_allocations_total", "Allocations that got their pages."},
    {kPagesAllocated, "kvtrie_pages_allocated_total", "Pages allocated."},
    {kFailedNotNow, "kvtrie_allocation_failures_total", "Allocations that failed, by reason.",
     "reason", "not_now"},
    {kFailedNever, "kvtrie_allocation_failures_total", "", "reason", "never"},
    {kWaits, "kvtrie_allocation_waits_total", "Allocations that waited for pages."},
    {kPagesAnnounced, "kvtrie_pages_announced_total", "Pages announced as coming."},
    {kPagesPublished, "kvtrie_pages_published_total", "Pages published for all."},
    {kDuplicates, "kvtrie_duplicate_pages_total",
     "Pages kept private because another had announced them first."},
    {kBucketsFull, "kvtrie_index_buckets_full_total",
     "Pages kept private because the index had no room."},
    {kStripesPassedBy, "kvtrie_stripes_passed_by_total",
     "Index locks passed by because they were not had in time."},
    {kLockRecoveries, "kvtrie_lock_recoveries_total", "Index locks taken over from a dead holder."},
    {kReleases, "kvtrie_releases_total", "Sequences released."},
    {kPagesGivenBack, "kvtrie_pages_given_back_total",
     "Own pages freed without having been published."},
    {kCorruptSeen, "kvtrie_corrupt_seen_total", "Impossible bytes met in the segment."},
    {kStaleEntriesCleaned, "kvtrie_index_stale_entries_cleaned_total",
     "Stale index entries taken out."},
    {kAttaches, "kvtrie_attaches_total", "Workers that attached."},
    {kPartialMatches, "kvtrie_partial_matches_total",
     "Lookups that found the start of their next page in another page."},
    {kPartialTokens, "kvtrie_partial_match_tokens_total", "Tokens of these, copied and not computed again."},
    {kPendingWaits, "kvtrie_pending_waits_total", "Waits for pages that another worker computes."},
    {kForks, "kvtrie_forks_total", "Sequences forked."},
    {kBatches, "kvtrie_batches_total", "Batches prepared."},
    {kIncompletePublished, "kvtrie_incomplete_pages_published_total",
     "Pages published with fewer tokens than a page has."},
    {kFlushedRefused, "kvtrie_flushed_calls_total",
     "Calls refused because the namespace was flushed since their sequence began."},
    {kPagesCopied, "kvtrie_pages_copied_total",
     "Pages copied into a sequence's own: for forks, partial matches and incomplete pages."},
    {kPagesSummed, "kvtrie_page_checksums_compared_total",
     "Cached pages whose bytes were compared with their checksum (kvtried --page-checksums)."},
    {kWrongChecksums, "kvtrie_page_checksums_wrong_total",
     "Pages whose bytes had changed since they were published: not handed out."},
    {kEvictions, "kvtrie_evictions_total", "Pages evicted."},
    {kEvictionPasses, "kvtrie_eviction_passes_total", "Passes of the evictor."},
    {kEvictionRescued, "kvtrie_eviction_rescued_pages_total",
     "Pages chosen for eviction and kept: leased, or with a new child."},
    {kReapedWorkers, "kvtrie_reaped_workers_total", "Workers that died attached."},
    {kReapedPages, "kvtrie_reaped_pages_total",
     "Pages taken back from workers that died or detached."},
    {kReapedLeases, "kvtrie_reaped_leases_total",
     "Leases taken back from workers that died or detached."},
    {kAdoptions, "kvtrie_adoptions_total", "Times a coordinator took the cache over."},
    {kAttachRefused, "kvtrie_attach_refusals_total",
     "Requests to the coordinator that were refused."},
    {kNamespacesMade, "kvtrie_namespaces_made_total", "Namespaces made."},
    {kFlushes, "kvtrie_flushes_total", "Namespaces flushed: none of their pages is matched again."},
};

ClientMetric labelled(const char* label_name, std::string label_value) {
  ClientMetric metric;
  if (label_name != nullptr) metric.label.push_back({label_name, std::move(label_value)});
  return metric;
}

ClientMetric gauge_line(double value, const char* label_name = nullptr,
                        std::string label_value = {}) {
  ClientMetric metric = labelled(label_name, std::move(label_value));
  metric.gauge.value = value;
  return metric;
}

template <typename Value>
MetricFamily gauge(const char* name, const char* help, Value value) {
  return {name, help, MetricType::Gauge, {gauge_line(static_cast<double>(value))}};
}

void add_counters(const Segment& segment, std::vector<MetricFamily>& families) {
  for (const CounterLine& line : kCounterLines) {
    if (families.empty() || families.back().name != line.name) {
      families.push_back({line.name, line.help, MetricType::Counter, {}});
    }
    ClientMetric metric =
        labelled(line.label_name, line.label_value == nullptr ? "" : line.label_value);
    metric.counter.value = static_cast<double>(segment.total(line.counter));
    families.back().metric.push_back(std::move(metric));
  }
}

MetricFamily pages_by_state(const PageStats& pages) {
  MetricFamily family{"kvtrie_pages", "Pages by state.", MetricType::Gauge, {}};
  for (std::uint8_t i = 0; i < kPageStates; ++i) {
    family.metric.push_back(gauge_line(static_cast<double>(pages.by_state[i]), "state",
                                       name_of(static_cast<PageState>(i))));
  }
  family.metric.push_back(gauge_line(static_cast<double>(pages.impossible), "state", "malformed"));
  return family;
}

MetricFamily workers_by_state(const Segment& segment) {
  MetricFamily family{"kvtrie_workers", "Worker slots by state.", MetricType::Gauge, {}};
  const WorkerTableStats stats = WorkerTable(segment).stats();
  for (std::uint8_t i = 0; i < kSlotStates; ++i) {
    family.metric.push_back(
        gauge_line(stats.slots[i], "state", name_of(static_cast<SlotState>(i))));
  }
  return family;
}

MetricFamily pauses(const PauseHistogram::Snapshot& snapshot) {
  ClientMetric metric;
  std::uint64_t count = 0;
  for (std::size_t i = 0; i < snapshot.buckets.size(); ++i) {
    count += snapshot.buckets[i];
    const double bound = i < PauseHistogram::kBounds.size()
                             ? PauseHistogram::kBounds[i]
                             : std::numeric_limits<double>::infinity();
    metric.histogram.bucket.push_back({count, bound});
  }
  metric.histogram.sample_count = count;
  metric.histogram.sample_sum = snapshot.sum_seconds;
  return {"kvtrie_eviction_pause_seconds",
          "How long the pages of an eviction batch were condemned.",
          MetricType::Histogram,
          {std::move(metric)}};
}

MetricFamily build_info(const Segment& segment, const std::string& version) {
  ClientMetric metric = gauge_line(1, "version", version);
  metric.label.push_back({"layout", std::to_string(kLayoutVersion)});
  metric.label.push_back({"cache", segment.cache_name()});
  return {"kvtrie_build_info",
          "Version of the coordinator and layout of the segment.",
          MetricType::Gauge,
          {std::move(metric)}};
}

}  // namespace

std::vector<MetricFamily> SegmentCollector::Collect() const {
  const PageCensus census = census_.get();
  const Superblock& block = segment_.superblock();
  std::vector<MetricFamily> families;
  add_counters(segment_, families);
  families.push_back(pages_by_state(census.pages));
  families.push_back(workers_by_state(segment_));
  families.push_back(pauses(pauses_.snapshot()));
  families.push_back(
      gauge("kvtrie_leases", "Leases held, the operator's pins among them.", census.leases.all()));
  families.push_back(gauge("kvtrie_pins", "Prefixes that an operator pinned.", census.leases.pins));
  families.push_back(gauge("kvtrie_draining", "1 while no new workers may attach (kvtrie drain).",
                           block.coordinator_state.load(std::memory_order_relaxed) ==
                                   static_cast<std::uint32_t>(CoordinatorState::kDraining)
                               ? 1
                               : 0));
  families.push_back(
      gauge("kvtrie_namespaces", "Namespaces open.", NamespaceTable(segment_).stats().open));
  families.push_back(gauge("kvtrie_page_size_bytes", "Bytes of a page over all planes.",
                           segment_.geometry().page_bytes * segment_.geometry().planes));
  families.push_back(
      gauge("kvtrie_page_size_tokens", "Tokens of a page.", segment_.tokens_per_page()));
  families.push_back(gauge("kvtrie_low_watermark_pages", "Fewer free pages start the evictor.",
                           block.low_pages.load(std::memory_order_relaxed)));
  families.push_back(gauge("kvtrie_high_watermark_pages", "Free pages at which the evictor stops.",
                           block.high_pages.load(std::memory_order_relaxed)));
  families.push_back(gauge("kvtrie_eviction_shortfall_pages",
                           "Pages that the last pass could not find.",
                           block.eviction_shortfall.load(std::memory_order_relaxed)));
  families.push_back(gauge("kvtrie_waiting_workers", "Workers that sleep for pages.",
                           block.pages_waiters.load(std::memory_order_relaxed)));
  families.push_back(gauge("kvtrie_segment_poisoned", "1 when the segment was given up.",
                           segment_.poisoned() ? 1 : 0));
  families.push_back(gauge("kvtrie_coordinator_epoch", "Starts of a coordinator on this segment.",
                           block.coordinator_epoch.load(std::memory_order_relaxed)));
  families.push_back(build_info(segment_, version_));
  return families;
}

}  // namespace kvtrie
