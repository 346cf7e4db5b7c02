// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/reload.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

namespace kvtrie {
namespace {

struct Row {
  std::string_view key;
  SettingChange change;
  bool (*same)(const Options& a, const Options& b);
  void (*take)(Options& into, const Options& from);
};

template <auto Member>
constexpr Row row(std::string_view key, SettingChange change) {
  return {key, change, [](const Options& a, const Options& b) { return a.*Member == b.*Member; },
          [](Options& into, const Options& from) { into.*Member = from.*Member; }};
}

// Of the memory of host planes.
template <auto Member>
constexpr Row memory_row(std::string_view key) {
  return {key, SettingChange::kRestart,
          [](const Options& a, const Options& b) { return a.memory.*Member == b.memory.*Member; },
          [](Options& into, const Options& from) { into.memory.*Member = from.memory.*Member; }};
}

using enum SettingChange;
constexpr Row kRows[] = {
    row<&Options::low_percent>("low", kAtOnce),
    row<&Options::high_percent>("high", kAtOnce),
    row<&Options::allow_uids>("allow-uid", kAtOnce),
    row<&Options::allow_gids>("allow-gid", kAtOnce),
    row<&Options::cache>("cache", kRestart),
    row<&Options::directory>("dir", kRestart),
    row<&Options::metrics>("metrics", kRestart),
    row<&Options::policy>("policy", kRestart),
    row<&Options::fresh>("fresh", kRestart),
    row<&Options::mode>("mode", kRestart),
    row<&Options::load>("load", kRestart),
    memory_row<&HostMemory::huge_pages>("huge-pages"),
    memory_row<&HostMemory::numa_node>("numa-node"),
    memory_row<&HostMemory::lock>("mlock"),
    row<&Options::queue_delay_ms>("queue-delay-ms", kRestart),
    row<&Options::prefault>("prefault", kRestart),
    row<&Options::page_checksums>("page-checksums", kNewCache),
    row<&Options::realtime>("realtime", kRestart),
    row<&Options::pages>("pages", kNewCache),
    row<&Options::tokens_per_page>("tokens-per-page", kNewCache),
    row<&Options::page_bytes>("page-bytes", kNewCache),
    row<&Options::planes>("planes", kNewCache),
    row<&Options::device>("device", kNewCache),
    row<&Options::workers>("workers", kNewCache),
    row<&Options::leases>("leases", kNewCache),
    row<&Options::namespaces>("namespaces", kNewCache),
    row<&Options::stripes>("stripes", kNewCache),
    row<&Options::clock>("clock", kNewCache),
    row<&Options::tick_ns>("tick-ns", kNewCache),
};

}  // namespace

std::optional<SettingChange> change_of(std::string_view key) {
  const auto* found = std::ranges::find(kRows, key, &Row::key);
  if (found == std::end(kRows)) return std::nullopt;
  return found->change;
}

Reload reload(Options& now, const Options& next) {
  Reload result;
  for (const Row& row : kRows) {
    if (row.same(now, next)) continue;
    if (row.change == kAtOnce) {
      row.take(now, next);
      result.changed.emplace_back(row.key);
    } else {
      result.ignored.push_back({std::string(row.key), row.change});
    }
  }
  return result;
}

std::vector<std::string> log_lines(const Reload& reload) {
  std::vector<std::string> lines = {
      fmt::format("event=reload changed={}", fmt::join(reload.changed, ","))};
  for (const Reload::Ignored& ignored : reload.ignored) {
    lines.push_back(
        fmt::format("event=reload_ignored setting={} needs=\"{}\"", ignored.key,
                    ignored.needs == kRestart ? "a restart" : "a new cache (kvtried --fresh)"));
  }
  return lines;
}

}  // namespace kvtrie
