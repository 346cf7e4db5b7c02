// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command.h"

#include <fmt/format.h>

#include "shm/runtime_directory.h"
#include "tools/kvtrie/caches.h"

namespace kvtrie::inspect {

std::string directory_of(const Context& context) {
  if (!context.directory.empty()) return context.directory;
  const Environment& host = context.environment;
  return default_runtime_directory(host.euid, host.xdg_runtime_dir.c_str());
}

std::string no_such_page(const Segment& segment, const std::string& cache, std::uint64_t page) {
  return fmt::format("cache '{}' has no page {}: its pages are 0 to {}", cache, page, segment.page_count() - 1);
}

Outcome on_segment(const Context& context,
                   const std::function<Outcome(const Segment&, const std::string&)>& look) {
  const CacheChoice choice = choose_cache(context.environment, context.cache, context.json);
  if (choice.cache.empty()) return choice.failure;
  const OpenedCache opened = open_cache(context.environment, choice.cache, context.json);
  return opened.segment ? look(*opened.segment, choice.cache) : opened.failure;
}

}  // namespace kvtrie::inspect
