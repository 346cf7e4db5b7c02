// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Calls that only look, and those that move bytes between pages and the engine's memory. Who dies in a look leaves
// nothing, which is shown like everything else.

#include <array>
#include <numeric>

#include "shm/namespace_table.h"
#include "shm/worker_table.h"
#include "tests/crash/scenario_lists.h"
#include "worker_plugin/page_copy.h"

namespace kvtrie::test {
namespace {

// A page is 1 layer x K and V x 4 tokens x 2 heads x 2 bytes; outside, heads come before tokens.
constexpr kvtrie_layout kLayout{.size = sizeof(kvtrie_layout), .layers = 1, .kv = 2, .heads = 2, .reserved = 0,
                                .head_bytes = 2, .layer_stride = 0, .kv_stride = 64, .token_stride = 2,
                                .head_stride = 32};

PoolView pool_of(const View& view) {
  PoolView pool;
  pool.pages = kWorldPages;
  pool.page_bytes = kWorldPageBytes;
  pool.planes = 1;
  pool.plane[0] = view.pool_bytes().data();
  return pool;
}

// Pages one after the other, then half a page each of two by tokens.
void copy(Victim& v, CopyDirection direction, std::array<std::byte, 128>& outside) {
  std::array<std::uint32_t, 3> pages{};
  for (std::uint32_t i = 0; i < pages.size(); ++i) pages[i] = v.sequence.page_at(i).value;
  copy_pages(pool_of(v.view), 0, pages, outside.data(), direction);
  copy_tokens(pool_of(v.view), 0, std::span(pages).first(2), kWorldTokens, 2, 4, kLayout, outside.data(), direction);
}

}  // namespace

std::vector<Scenario> look_scenarios() {
  const auto cache_123 = [](CrashWorld& w) { w.cache(kSurvivor, {1, 2, 3}); };
  return {
      {.name = "namespace.find",
       .operate =
           [](Victim& v) {
             if (!find_namespace(v.segment(), "model=test\n")) throw Violation("not found");
             if (find_namespace(v.segment(), "model=other\n")) throw Violation("found");
           },
       .again = {1}},
      {.name = "probe",
       .setup =
           [cache_123](CrashWorld& w) {
             cache_123(w);
             w.open(kSurvivor, {1, 2, 3, 4});
           },
       .operate =
           [](Victim& v) {
             BeginReport report;
             if (!v.engine.worker().probe(v.view.name_space(), tokens_of({1, 2, 3, 4}), report) ||
                 report.cached_pages != 3 || report.pending_pages != 1) {
               throw Violation("the estimate");
             }
           },
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "probe.hashes",
       .setup = cache_123,
       .operate =
           [](Victim& v) {
             std::array<std::uint64_t, 4> hashes{};
             std::uint32_t cached = 0;
             if (!v.engine.worker().hash_tokens(v.view.name_space(), tokens_of({1, 2, 3, 4}), hashes) ||
                 !v.engine.worker().probe_hashes(v.view.name_space(), hashes, cached) || cached != 3) {
               throw Violation("the estimate");
             }
           },
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "copy.in",
       .prepare = [](Victim& v) { (void)v.engine.prepare(v.sequence, {1, 2, 3}); },
       .operate =
           [](Victim& v) {
             std::array<std::byte, 128> mine{};
             copy(v, CopyDirection::kIn, mine);
           },
       .again = {1, 2, 3}},
      {.name = "copy.out",
       .setup = cache_123,
       .prepare = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}); },
       .operate =
           [](Victim& v) {
             std::array<std::byte, 128> mine{};
             copy(v, CopyDirection::kOut, mine);
           },
       .cached = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "writer.over",  // one lives, one never was
       .operate =
           [](Victim& v) {
             const WorkerTable table(v.segment());
             if (table.over({WorkerId{kSurvivor}, 1}) || !table.over({kSpareSlot, 1})) throw Violation("who is over");
           },
       .again = {1}},
  };
}

}  // namespace kvtrie::test
