// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/admin.h"

#include <fmt/format.h>

#include <iterator>

#include "shm/counter_names.h"
#include "shm/namespace_table.h"
#include "shm/worker_table.h"

namespace kvtrie {

std::string stats_json(const Segment& segment) {
  const Superblock& block = segment.superblock();
  const WorkerTableStats workers = WorkerTable(segment).stats();
  const Geometry& g = segment.geometry();
  std::string text;
  // The name is made of characters that need no escape (cache_name_problem), or it is left out.
  fmt::format_to(
      std::back_inserter(text),
      R"({{"cache":"{}","pages":{},"page_bytes":{},"tokens_per_page":{},"planes":{},)"
      R"("epoch":{},"pid":{},"poisoned":{},"tick":{},"free_hint":{},"low_pages":{},)"
      R"("high_pages":{},"workers_active":{},"workers_max":{},"namespaces":{},"reaps":{},)"
      R"("eviction_passes":{},"evictor_busy":{},"counters":{{)",
      cache_name_problem(segment.cache_name()).empty() ? segment.cache_name() : "", g.pages, g.page_bytes, g.tokens_per_page, g.planes,
      block.coordinator_epoch.load(), block.coordinator_pid.load(), segment.poisoned() ? 1 : 0,
      segment.now_tick(), block.free_hint.load(), block.low_pages.load(), block.high_pages.load(),
      workers.slots[static_cast<int>(SlotState::kActive)], g.workers,
      NamespaceTable(segment).stats().open, block.reaps.load(), block.eviction_passes.load(),
      block.evictor_busy.load());
  const char* separator = "";
  for (std::size_t i = 0; i < kCounters; ++i) {
    const auto counter = static_cast<Counter>(i);
    if (const char* name = name_of(counter)) {
      fmt::format_to(std::back_inserter(text), R"({}"{}":{})", separator, name,
                     segment.total(counter));
      separator = ",";
    }
  }
  return text + "}}";
}

}  // namespace kvtrie
