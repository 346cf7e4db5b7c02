// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// `kvtrie page N`: everything that the segment says about one page, decoded, and whether it fits
// together.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "shm/ids.h"
#include "shm/segment.h"
#include "tools/kvtrie/command.h"
#include "tools/kvtrie/outcome.h"
#include "tools/kvtrie/page_eviction.h"
#include "tools/kvtrie/page_statistics.h"
#include "tools/kvtrie/snapshot.h"

namespace kvtrie::inspect {

// From a page upwards to its root, or to where the way breaks.
struct PathToRoot {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> runs;  // root's side first; page numbers
  std::uint64_t pages = 0;                                    // with the page itself
  std::string broken;                                         // empty: it ends at a root
  std::optional<std::uint16_t> name_space;
};

struct PageLease {
  LeaseView lease;
  std::string holder;  // worker's name
  std::optional<double> held_seconds;
};

struct IndexEntryView {
  std::uint64_t bucket = 0;
  std::uint32_t entry = 0;
};

struct PageReport {
  PageIndex page;
  StateWord word;
  bool changed = false;  // its state word moved while it was read
  std::optional<double> since_seconds;
  std::string owner;  // "slot 3 (name, pid 12 alive)" of Writing and Pending
  std::uint32_t owner_slot = 0;

  Handle parent;
  std::string parent_text;  // what the handle names, and whether that is still there
  std::uint32_t scope_namespace = 0;
  std::uint32_t scope_generation_low = 0;
  std::string name_space_text;
  bool flushed = false;  // its root's generation is over: it is never matched again
  std::uint32_t depth = 0;
  std::uint32_t priority = 0;
  std::uint32_t tier = 0;
  std::uint32_t token_count = 0;
  std::vector<std::uint32_t> tokens;  // the first ones
  std::uint64_t prefix_hash = 0;
  std::optional<bool> hash_fits;  // is it its parent's hash with its tokens; none: no parent to ask
  TouchWord touch;
  std::optional<double> touched_seconds;
  std::uint32_t retain_until = 0;
  std::optional<double> retain_seconds;  // from now on; negative: over
  std::uint32_t child_hint = 0;
  std::string child_hint_text;
  std::uint32_t publisher = 0;
  std::string publisher_text;
  std::uint64_t checksum = 0;
  std::uint32_t announce_counter = 0;
  bool free_bit = false;

  std::vector<std::uint32_t> children;  // the first ones
  std::uint64_t children_count = 0;  // Pending, Live or Condemned pages whose parent is this life
  std::vector<IndexEntryView> index_entries;
  std::uint64_t index_buckets[2] = {0, 0};  // where its key may stand
  std::uint32_t index_stripe = 0;
  std::vector<PageLease> leases;  // of this life, and stale ones of this page number
  PathToRoot path;
  std::optional<std::vector<std::uint32_t>> path_tokens;  // when asked for: root's side first, with its own
  EvictionVerdict eviction;
  std::optional<PageStatistics> statistics;  // when asked for
};

Command add_page_command(CLI::App& app);

// Requires segment.has(page).
PageReport gather_page(const Segment& segment, PageIndex page, bool path_tokens);
std::string to_text(const PageReport& report);
Json to_json(const PageReport& report);

}  // namespace kvtrie::inspect
