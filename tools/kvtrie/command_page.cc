// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_page.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "shm/page_table.h"
#include "shm/prefix_hash.h"
#include "shm/stripe_index.h"
#include "tools/kvtrie/pools.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr auto kAcquire = std::memory_order_acquire;
constexpr std::size_t kTokensKept = 64;
constexpr std::size_t kChildrenKept = 64;

StateWord word_of(const Segment& segment, std::uint32_t page) {
  return {segment.descriptor({page}).state.load(kAcquire)};
}

std::string slot_text(const Segment& segment, const HostView& host, std::uint32_t slot) {
  if (slot >= segment.slot_count()) return fmt::format("slot {} (this segment has none)", slot);
  const WorkerRecord& record = segment.worker({static_cast<std::uint16_t>(slot)});
  const std::uint32_t pid = record.pid.load(kRelaxed);
  if (slot == 0) return "slot 0 (the coordinator)";
  if (pid == 0) return fmt::format("slot {} (free by now)", slot);
  return fmt::format("slot {} ({}, pid {} {})", slot, printable(record.name, sizeof record.name),
                     pid, name_of(host.liveness(pid, record.start_time.load(kRelaxed))));
}

std::string root_text(const Segment& segment, Handle root) {
  const std::uint16_t id = root.namespace_id().value;
  if (id >= segment.namespace_count()) {
    return fmt::format("root of namespace {} (this segment has none)", id);
  }
  const NamespaceView view = read_namespace(segment, {id});
  const bool current = view.open && view.root_generation == root.generation();
  return fmt::format("root of namespace {} \"{}\", generation {}{}", id, view.label,
                     root.generation(), current ? "" : " (flushed or closed: no longer matched)");
}

std::string handle_text(const Segment& segment, Handle handle) {
  if (handle.none()) return "none";
  if (handle.is_root()) return root_text(segment, handle);
  if (!handle.is_page()) return fmt::format("impossible handle {}", hex_text(handle.raw));
  const std::uint32_t page = handle.page_index().value;
  if (!segment.has({page})) return fmt::format("page {} (this segment has none)", page);
  const StateWord word = word_of(segment, page);
  if (!handle.same_life(word)) {
    return fmt::format("page {} of generation {} (gone: it is generation {} now)", page,
                       handle.generation(), word.generation());
  }
  return fmt::format("page {} generation {} ({})", page, handle.generation(),
                     name_of(word.state()));
}

std::vector<std::uint32_t> tokens_of(const Segment& segment, PageIndex page, std::uint32_t count) {
  std::vector<std::uint32_t> tokens(std::min(count, segment.tokens_per_page()));
  const AtomicU64* words = segment.token_words(page);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::uint32_t>(words[i / 2].load(kAcquire) >> (i % 2 * 32));
  }
  return tokens;
}

std::optional<std::uint64_t> parent_hash(const Segment& segment, Handle parent) {
  if (parent.is_root() && parent.namespace_id().value < segment.namespace_count()) {
    const NamespaceRecord& record = segment.name_space(parent.namespace_id());
    if (record.root_generation.load(kAcquire) == parent.generation()) {
      return record.hash_seed.load(kAcquire);
    }
  }
  if (parent.is_page() && segment.has(parent.page_index()) &&
      parent.same_life(word_of(segment, parent.page_index().value))) {
    return segment.descriptor(parent.page_index()).prefix_hash.load(kAcquire);
  }
  return std::nullopt;
}

// Ends whatever the links say: no page is gone through twice.
PathToRoot walk_up(const Segment& segment, PageIndex start) {
  PathToRoot path;
  std::vector<bool> seen(segment.page_count(), false);
  std::vector<std::uint32_t> pages;
  std::uint32_t page = start.value;
  while (path.broken.empty()) {
    seen[page] = true;
    pages.push_back(page);
    const Handle parent{segment.descriptor({page}).parent.load(kAcquire)};
    if (parent.is_root()) {
      if (parent.namespace_id().value < segment.namespace_count()) {
        path.name_space = parent.namespace_id().value;
        break;
      }
      path.broken = fmt::format("page {}: {}", page, root_text(segment, parent));
    } else if (!parent.is_page() || !segment.has(parent.page_index())) {
      path.broken = fmt::format("the parent of page {} is {}", page, handle_text(segment, parent));
    } else if (const StateWord word = word_of(segment, parent.page_index().value);
               !parent.same_life(word) || !word.canonical()) {
      path.broken = fmt::format("the parent of page {} is {}", page, handle_text(segment, parent));
    } else if (seen[parent.page_index().value]) {
      path.broken = fmt::format("cycle: page {} is its own ancestor", parent.page_index().value);
    }
    if (path.broken.empty()) page = parent.page_index().value;
  }
  path.pages = pages.size();
  for (auto i = pages.rbegin(); i != pages.rend(); ++i) {
    if (!path.runs.empty() && path.runs.back().second + 1 == *i) {
      path.runs.back().second = *i;
    } else {
      path.runs.emplace_back(*i, *i);
    }
  }
  return path;
}

std::vector<std::uint32_t> tokens_along(const Segment& segment, const PathToRoot& path) {
  std::vector<std::uint32_t> all;
  for (const auto& [first, last] : path.runs) {
    for (std::uint32_t page = first; page <= last; ++page) {
      const std::uint32_t count = segment.descriptor({page}).token_count.load(kAcquire);
      const std::vector<std::uint32_t> tokens = tokens_of(segment, {page}, count);
      all.insert(all.end(), tokens.begin(), tokens.end());
    }
  }
  return all;
}

void add_children(const Segment& segment, Handle self, PageReport& report) {
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const Descriptor& descriptor = segment.descriptor({i});
    if (!StateWord{descriptor.state.load(kAcquire)}.canonical()) continue;
    if (descriptor.parent.load(kAcquire) != self.raw) continue;
    ++report.children_count;
    if (report.children.size() < kChildrenKept) report.children.push_back(i);
  }
}

void add_index(const Segment& segment, PageReport& report) {
  const StripeIndex index(segment);
  const IndexPlace place = index.place_of(report.prefix_hash);
  report.index_stripe = place.stripe;
  report.index_buckets[0] = place.bucket[0];
  report.index_buckets[1] = place.bucket[1];
  for (const std::uint64_t bucket : place.bucket) {
    for (std::uint32_t entry = 0; entry < kBucketEntries; ++entry) {
      const std::uint64_t raw = segment.bucket(bucket).entries[entry].load(kAcquire);
      if (raw == (place.tagged | report.page.value))
        report.index_entries.push_back({bucket, entry});
    }
  }
}

void add_leases(const Segment& segment, const HostView& host, PageReport& report) {
  for (const LeaseView& lease : read_leases(segment)) {
    if (!lease.handle.is_page() || lease.handle.page_index() != report.page) continue;
    report.leases.push_back(
        {lease, slot_text(segment, host, lease.slot.value), host.age_seconds(lease.since_tick)});
  }
}

std::string child_hint_text(const Segment& segment, Handle self, std::uint32_t hint) {
  if (hint == 0) return "none";
  const std::uint32_t page = hint - 1;
  if (!segment.has({page})) return fmt::format("page {} (this segment has none)", page);
  const bool child = word_of(segment, page).canonical() &&
                     segment.descriptor({page}).parent.load(kAcquire) == self.raw;
  return fmt::format(
      "page {} ({})", page,
      child ? name_of(word_of(segment, page).state()) : "not a child any more; a hint only");
}

}  // namespace

Command add_page_command(CLI::App& app) {
  struct Options {
    std::uint32_t page = 0;
    bool tokens = false;
    bool statistics = false;
    std::string dtype;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("page", "Everything about one page, and whether it can be evicted");
  command->add_option("page", options->page, "Page number")->check(CLI::Range(0U, kPagesMax - 1))->required();
  command->add_flag("--tokens", options->tokens, "All tokens of its path, as `kvtrie tree --prefix` takes them");
  CLI::Option* statistics = command->add_flag("--stats", options->statistics,
                                              "Its bytes: shape, type, NaN and Inf, min, max, mean, histogram");
  command->add_option("--dtype", options->dtype, "Their type, instead of what the namespace says")
      ->check(CLI::IsMember({"f32", "f16", "bf16", "raw"}))
      ->needs(statistics);
  return {command, [options](const Context& context) {
            return on_segment(context, [&](const Segment& segment, const std::string& cache) {
              if (!segment.has({options->page})) {
                return failure(Exit::kNotFound, no_such_page(segment, cache, options->page), context.json);
              }
              PageReport report = gather_page(segment, {options->page}, options->tokens);
              if (options->statistics) {
                if (segment.device() == DeviceKind::kCuda) {
                  return failure(Exit::kNotFound, "the bytes of its pages are in device memory", context.json);
                }
                const Pools pools(segment, cache);
                if (!pools.problem().empty()) return failure(pools.code(), pools.problem(), context.json);
                report.statistics =
                    gather_statistics(segment, report.page, pools.planes(), dump::dtype_of(options->dtype));
                if (const std::string& problem = report.statistics->problem; !problem.empty()) {
                  return failure(Exit::kCorrupt, problem, context.json);
                }
              }
              return render(report, context.json);
            });
          }};
}

PageReport gather_page(const Segment& segment, PageIndex page, bool path_tokens) {
  const HostView host(segment);
  const Descriptor& d = segment.descriptor(page);
  PageReport report;
  report.page = page;
  report.word = {d.state.load(kAcquire)};
  report.parent = {d.parent.load(kAcquire)};
  report.prefix_hash = d.prefix_hash.load(kAcquire);
  report.touch = {d.touch.load(kAcquire)};
  const std::uint32_t scope = d.scope.load(kAcquire);
  const std::uint32_t depth_class = d.depth_class.load(kAcquire);
  const std::uint32_t since = d.since_tick.load(kAcquire);
  report.retain_until = d.retain_until.load(kAcquire);
  const std::uint32_t hint = d.child_hint.load(kAcquire);
  report.child_hint = hint;
  report.token_count = d.token_count.load(kAcquire);
  report.publisher = d.publisher.load(kAcquire);
  report.checksum = d.checksum.load(kAcquire);
  report.tokens = tokens_of(segment, page, report.token_count);
  report.changed = d.state.load(kAcquire) != report.word.raw;

  const Handle self = Handle::page(page, report.word);
  report.since_seconds = host.age_seconds(since);
  report.owner_slot = report.word.owned() ? report.word.owner().value : 0;
  if (report.word.owned()) report.owner = slot_text(segment, host, report.owner_slot);
  report.parent_text = handle_text(segment, report.parent);
  report.scope_namespace = namespace_in(scope).value;
  report.scope_generation_low = scope & 0xFFFF;
  if (report.scope_namespace < segment.namespace_count()) {
    const NamespaceView view = read_namespace(segment, namespace_in(scope));
    report.name_space_text = fmt::format("{} \"{}\"", report.scope_namespace, view.label);
    if (!view.open) report.name_space_text += " (not open)";
    report.flushed = !view.open || scope_of(view.id, view.root_generation) != scope;
  } else {
    report.name_space_text = fmt::format("{} (this segment has none)", report.scope_namespace);
  }
  report.depth = depth_in(depth_class);
  report.priority = depth_class >> 24 & 0xF;
  report.tier = depth_class >> 28;
  if (const auto above = parent_hash(segment, report.parent); above && !report.tokens.empty()) {
    report.hash_fits = hash_page(*above, report.tokens) == report.prefix_hash;
  }
  if (report.tokens.size() > kTokensKept) report.tokens.resize(kTokensKept);
  report.touched_seconds = host.age_seconds(report.touch.tick());
  if (report.retain_until != 0) {
    const auto age = host.age_seconds(report.retain_until);
    if (age) report.retain_seconds = -*age;
  }
  report.child_hint_text = child_hint_text(segment, self, hint);
  report.publisher_text = slot_text(segment, host, report.publisher);
  report.announce_counter = segment.announce_counter(page).load(kRelaxed);
  report.free_bit =
      (segment.free_bits(page.value / kChunkPages).load(kRelaxed) >> (page.value % kChunkPages) &
       1) != 0;
  add_children(segment, self, report);
  add_index(segment, report);
  add_leases(segment, host, report);
  report.path = walk_up(segment, page);
  if (path_tokens) report.path_tokens = tokens_along(segment, report.path);
  report.eviction = judge_eviction(report);
  return report;
}

}  // namespace kvtrie::inspect
