// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/caches.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "tools/kvtrie/host.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr std::string_view kPrefix = "kvtrie.";

bool take_suffix(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

std::optional<std::uint32_t> number(std::string_view digits) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc{} || end != digits.data() + digits.size() || digits.empty()) {
    return std::nullopt;
  }
  return value;
}

std::string line_about(const std::string& cache) {
  const Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  if (!segment) return fmt::format("  {}  ({})", cache, segment.error().what());
  const HostView host(*segment);
  const Superblock& block = segment->superblock();
  const std::uint32_t pid = block.coordinator_pid.load(std::memory_order_relaxed);
  const Liveness liveness =
      host.liveness(pid, block.coordinator_start_time.load(std::memory_order_relaxed));
  return fmt::format("  {}  {} pages, coordinator {}", cache, grouped(segment->page_count()),
                     pid == 0 ? "none" : fmt::format("pid {} {}", pid, name_of(liveness)));
}

// Of an object that this build does not read.
std::string layout_text(std::uint32_t layout) {
  return fmt::format(", layout version {}, this kvtrie reads {}: use that of the release that made it", layout,
                     kLayoutVersion);
}

}  // namespace

std::optional<ObjectName> parse_object_name(std::string_view name) {
  ObjectName object;
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  object.temporary = take_suffix(name, ".tmp");
  const std::size_t kind = name.rfind('.');
  if (kind == std::string_view::npos) return std::nullopt;
  const std::string_view last = name.substr(kind + 1);
  if (last == "seg") {
    object.segment = true;
  } else if (last == "queue") {
    object.queue = true;
  } else if (last.starts_with("pool")) {
    const auto plane = number(last.substr(4));
    if (!plane) return std::nullopt;
    object.plane = *plane;
  } else {
    return std::nullopt;
  }
  name = name.substr(0, kind);
  const std::size_t version = name.rfind(".v");
  if (version == std::string_view::npos) return std::nullopt;
  const auto layout = number(name.substr(version + 2));
  if (!layout) return std::nullopt;
  object.layout = *layout;
  object.cache = name.substr(0, version);
  if (!cache_name_problem(object.cache).empty()) return std::nullopt;
  return object;
}

std::vector<FoundObject> find_objects(const std::string& shm_directory) {
  std::vector<FoundObject> found;
  std::error_code error;
  std::filesystem::directory_iterator entries(shm_directory, error);
  for (; !error && entries != std::filesystem::directory_iterator{}; entries.increment(error)) {
    const std::string file = entries->path().filename().string();
    std::optional<ObjectName> name = parse_object_name(file);
    if (!name) continue;
    std::error_code ignored;
    const std::uintmax_t bytes = entries->file_size(ignored);
    found.push_back({file, std::move(*name), ignored ? 0 : bytes});
  }
  std::ranges::sort(found, {}, &FoundObject::file);
  return found;
}

std::vector<std::string> find_caches(const std::string& shm_directory) {
  std::vector<std::string> caches;
  for (const FoundObject& object : find_objects(shm_directory)) {
    if (object.name.segment && !object.name.temporary && object.name.layout == kLayoutVersion) {
      caches.push_back(object.name.cache);
    }
  }
  std::ranges::sort(caches);
  return caches;
}

CacheChoice choose_cache(const Environment& environment, const std::string& named, bool json) {
  if (!named.empty()) {
    const std::string problem = cache_name_problem(named);
    if (!problem.empty()) return {{}, failure(Exit::kUsage, problem, json)};
    return {named, {}};
  }
  const std::vector<std::string> caches = find_caches(environment.shm_directory);
  if (caches.size() == 1) return {caches.front(), {}};
  if (caches.empty()) {
    std::string message = fmt::format("no cache on this host (no kvtrie.*.v{}.seg in {}); start kvtried, "
                                      "or run this where its /dev/shm is",
                                      kLayoutVersion, environment.shm_directory);
    for (const FoundObject& other : find_objects(environment.shm_directory)) {
      if (other.name.segment && !other.name.temporary)
        message += fmt::format("\n  there is {} ({}{})", other.file, bytes_text(other.bytes),
                               layout_text(other.name.layout));
    }
    return {{}, failure(Exit::kNotFound, message, json)};
  }
  std::string message =
      fmt::format("{} caches on this host; choose one with --cache:", caches.size());
  for (const std::string& cache : caches)
    message += "\n" + line_about(cache);
  return {{}, failure(Exit::kUsage, message, json)};
}

std::string open_problem(const Environment& environment, const std::string& cache, Status status) {
  const std::string object = environment.shm_directory + "/" + segment_object_name(cache);
  if (status.code() == Code::kNotFound) {
    std::string message = fmt::format("no cache '{}' on this host (no {})", cache, object);
    for (const FoundObject& other : find_objects(environment.shm_directory)) {
      if (other.name.cache == cache) {
        message += fmt::format("\n  there is {} ({}{})", other.file, bytes_text(other.bytes),
                               other.name.layout == kLayoutVersion ? "" : layout_text(other.name.layout));
      }
    }
    const std::vector<std::string> caches = find_caches(environment.shm_directory);
    if (!caches.empty())
      message += "\n  caches here: " + fmt::format("{}", fmt::join(caches, ", "));
    return message;
  }
  std::string message = fmt::format("cache '{}': {}", cache, status.what());
  if (status.system_errno() != 0)
    message += fmt::format(": {}", std::strerror(status.system_errno()));
  message += fmt::format(" ({})", object);
  if (exit_of(status) == Exit::kRefused && status.code() == Code::kSystem) {
    message += "; run kvtrie as the user that runs kvtried, or as root";
  }
  if (status.code() == Code::kCorrupt) {
    message +=
        "; if a kvtrie of another build made it, use that one; else nothing in it can be trusted: "
        "keep a "
        "copy of the object to find out why, stop kvtried and its workers, then kvtrie destroy or "
        "kvtried --fresh";
  }
  return message;
}

OpenedCache open_cache(const Environment& environment, const std::string& cache, bool json) {
  OpenedCache opened;
  Result<Segment> segment = open_segment(cache, Access::kReadOnly);
  if (segment) {
    opened.segment.emplace(std::move(*segment));
  } else {
    opened.failure =
        failure(exit_of(segment.error()), open_problem(environment, cache, segment.error()), json);
  }
  return opened;
}

}  // namespace kvtrie::inspect
