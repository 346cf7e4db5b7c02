// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/settings.h"

#include <fmt/format.h>

#include <toml++/toml.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <limits>
#include <system_error>

namespace kvtrie {
namespace {

template <typename T>
std::string parse_number(const std::string& text, T& value, int base = 10) {
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value, base);
  if (error == std::errc::result_out_of_range) return "too large";
  if (text.empty() || error != std::errc{} || stopped != end) return "not a whole number";
  return {};
}

template <auto Member>
std::string number(Options& options, const std::string& text) {
  typename std::remove_reference_t<decltype(options.*Member)>::value_type value{};
  std::string problem = parse_number(text, value);
  if (problem.empty()) options.*Member = value;
  return problem;
}

template <auto Member>
std::string add_id(Options& options, const std::string& text) {
  std::uint32_t value = 0;
  std::string problem = parse_number(text, value);
  if (problem.empty()) (options.*Member).push_back(value);
  return problem;
}

template <auto Member>
std::string text_of(Options& options, const std::string& text) {
  if (text.empty()) return "empty";
  options.*Member = text;
  return {};
}

template <auto Member>
std::string percent(Options& options, const std::string& text) {
  const char* end = text.data() + text.size();
  double value = 0;
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc{} || stopped != end || !(value >= 0 && value <= 100)) {
    return "not a percentage from 0 to 100";
  }
  options.*Member = value;
  return {};
}

std::string page_bytes(Options& options, const std::string& text) {
  const Result<std::uint64_t> bytes = parse_bytes(text);
  if (!bytes) return bytes.error().what();
  options.page_bytes = *bytes;
  return {};
}

std::string clock_kind(Options& options, const std::string& text) {
  if (text != "system" && text != "driven") return "must be system or driven";
  options.clock = text == "driven" ? ClockKind::kDriven : ClockKind::kSystem;
  return {};
}

std::string policy(Options& options, const std::string& text) {
  if (text != "lru") return "unknown policy; there is: lru";
  options.policy = text;
  return {};
}

std::string mode(Options& options, const std::string& text) {
  unsigned value = 0;
  if (!parse_number(text, value, 8).empty() || value > 0666 || (value & 0600) != 0600 ||
      (value & 0111) != 0) {
    return "must be octal, 0600 to 0666, readable and writable by the owner, for example 0660";
  }
  options.mode = value;
  return {};
}

std::string truth(bool& value, const std::string& text) {
  if (text != "true" && text != "false") return "must be true or false";
  value = text == "true";
  return {};
}

template <bool Options::*Member>
std::string switch_of(Options& options, const std::string& text) {
  return truth(options.*Member, text);
}

std::string realtime(Options& options, const std::string& text) {
  int value = 0;
  if (!parse_number(text, value).empty() || value < 0 || value > 99) return "must be 0 (off) to 99";
  options.realtime = value;
  return {};
}

std::string device(Options& options, const std::string& text) {
  Result<DeviceChoice> choice = parse_device(text);
  if (!choice) return choice.error().what();
  options.device = std::move(*choice);
  return {};
}

std::string huge_pages(Options& options, const std::string& text) { return truth(options.memory.huge_pages, text); }

std::string lock_memory(Options& options, const std::string& text) { return truth(options.memory.lock, text); }

std::string numa_node(Options& options, const std::string& text) {
  unsigned node = 0;
  std::string problem = parse_number(text, node);
  if (problem.empty()) options.memory.numa_node = node;
  return problem;
}

using enum SettingKind;
constexpr Setting kSettings[] = {
    {"cache", kValue, "NAME", "Name of the cache", text_of<&Options::cache>},
    {"pages", kValue, "N", "Pages, 64 to 16777216", number<&Options::pages>},
    {"tokens-per-page", kValue, "N", "Tokens of a page, 1 to 1024 (16)",
     number<&Options::tokens_per_page>},
    {"page-bytes", kValue, "N", "Bytes of a page in one plane; 512K, 2MiB are understood",
     page_bytes},
    {"planes", kValue, "N", "Planes, one pool each, 1 to 64 (1)", number<&Options::planes>},
    {"workers", kValue, "N", "Worker slots, 1 to 1024 (64)", number<&Options::workers>},
    {"leases", kValue, "N", "Lease slots of a worker: its open sequences, and one; 2 to 65536 (1024)", number<&Options::leases>},
    {"namespaces", kValue, "N", "Namespaces, 1 to 65536 (1024)", number<&Options::namespaces>},
    {"stripes", kValue, "N", "Locks of the index, 1 to 65536 (1024)", number<&Options::stripes>},
    {"device", kValue, "DEVICE", "Where the pages' bytes are: host, queued, cuda:N, cuda:N,M,... (host)", device},
    {"huge-pages", kSwitch, "", "Segment and host planes in huge pages; /dev/shm must be mounted with huge=advise",
     huge_pages},
    {"numa-node", kValue, "N", "Segment and host planes in the memory of this NUMA node", numa_node},
    {"mlock", kSwitch, "", "Lock host planes in memory", lock_memory},
    {"queue-delay-ms", kValue, "N", "Queued device: how late a copy is performed, at least (0)",
     number<&Options::queue_delay_ms>},
    {"low", kValue, "PERCENT", "Evict when fewer pages than this are free (1)",
     percent<&Options::low_percent>},
    {"high", kValue, "PERCENT", "... until this many are (2)", percent<&Options::high_percent>},
    {"policy", kValue, "NAME", "Eviction policy: lru", policy},
    {"dir", kValue, "DIR", "Directory that holds NAME/ with lock and socket",
     text_of<&Options::directory>},
    {"metrics", kValue, "HOST:PORT|off", "Where Prometheus scrapes (127.0.0.1:9464)",
     text_of<&Options::metrics>},
    {"clock", kValue, "system|driven", "Clock of the segment (system)", clock_kind},
    {"tick-ns", kValue, "N", "Length of a tick (system: 1 s, driven: 1 ms)",
     number<&Options::tick_ns>},
    {"mode", kValue, "OCTAL", "Permissions of objects and socket (0600)", mode},
    {"allow-uid", kList, "UID...", "Users that may attach, besides the own and root",
     add_id<&Options::allow_uids>},
    {"allow-gid", kList, "GID...", "Groups that may attach", add_id<&Options::allow_gids>},
    {"load", kValue, "FILE", "Save file (kvtrie save) that a new cache starts with",
     text_of<&Options::load>},
    {"fresh", kSwitch, "", "Throw an existing cache away", switch_of<&Options::fresh>},
    {"page-checksums", kSwitch, "",
     "Compute a checksum of each page when it is published, and compare it at each hit",
     switch_of<&Options::page_checksums>},
    {"prefault", kSwitch, "", "Make the memory of segment and pools ready in the background",
     switch_of<&Options::prefault>},
    {"realtime", kValue, "PRIORITY",
     "Wait for deaths and reap at this SCHED_RR priority, 1 to 99; needs LimitRTPRIO or "
     "CAP_SYS_NICE (0: off)",
     realtime},
};

// The texts of a TOML value as flags would give them.
std::string texts_of(const toml::node& node, SettingKind kind, std::vector<std::string>& texts) {
  if (const auto* list = node.as_array(); list != nullptr && kind == kList) {
    for (const toml::node& element : *list) {
      if (element.is_array()) return "a list in a list";
      if (std::string problem = texts_of(element, kValue, texts); !problem.empty()) return problem;
    }
  } else if (const auto* text = node.as_string()) {
    texts.push_back(text->get());
  } else if (const auto* integer = node.as_integer()) {
    texts.push_back(fmt::format("{}", integer->get()));
  } else if (const auto* real = node.as_floating_point()) {
    texts.push_back(fmt::format("{}", real->get()));
  } else if (const auto* boolean = node.as_boolean(); boolean != nullptr && kind == kSwitch) {
    texts.push_back(boolean->get() ? "true" : "false");
  } else {
    return kind == kList ? "must be a number or a list of numbers" : "has a wrong type";
  }
  return {};
}

Failure bad_key(const std::string& path, std::uint32_t line, std::string_view key,
                const std::string& why) {
  return {fmt::format("{}:{}: {}: {}", path, line, key, why), kExitUsage};
}

MaybeFailure apply_table(const toml::table& table, const std::string& path,
                         const std::function<bool(std::string_view)>& overridden,
                         Options& options) {
  for (const auto& [name, node] : table) {
    const std::string_view key = name.str();
    const std::uint32_t line = node.source().begin.line;
    const auto* setting = std::ranges::find(kSettings, key, &Setting::key);
    if (setting == std::end(kSettings)) {
      return bad_key(path, line, key,
                     "unknown key; `kvtried --help` lists them (without the dashes)");
    }
    std::vector<std::string> texts;
    if (std::string problem = texts_of(node, setting->kind, texts); !problem.empty()) {
      return bad_key(path, line, key, problem);
    }
    Options scratch;
    for (const std::string& text : texts) {
      Options& target = overridden(key) ? scratch : options;
      if (std::string problem = setting->apply(target, text); !problem.empty()) {
        return bad_key(path, line, key, fmt::format("'{}': {}", text, problem));
      }
    }
  }
  return {};
}

}  // namespace

std::span<const Setting> settings() { return kSettings; }

MaybeFailure apply_file(const std::string& path,
                        const std::function<bool(std::string_view)>& overridden, Options& options) {
  // The library reads a directory as an empty file.
  std::error_code unknown;
  int problem = ::access(path.c_str(), R_OK) == 0 ? 0 : errno;
  if (problem == 0 && std::filesystem::is_directory(path, unknown)) problem = EISDIR;
  if (problem != 0) {
    return Failure{fmt::format("--config '{}': {}", path, std::strerror(problem)), kExitUsage};
  }
  try {
    return apply_table(toml::parse_file(path), path, overridden, options);
  } catch (const toml::parse_error& error) {
    return Failure{fmt::format("{}:{}: {}", path, error.source().begin.line, error.description()),
                   kExitUsage};
  }
}

Result<std::uint64_t> parse_bytes(std::string_view text) {
  std::uint64_t value = 0;
  const auto [stopped, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return Status{Code::kInvalid, "not a number of bytes"};
  std::string_view unit(stopped, static_cast<std::size_t>(text.data() + text.size() - stopped));
  unsigned shift = 0;
  if (!unit.empty()) {
    const std::size_t power = std::string_view("KMGT").find(unit.front());
    if (power == std::string_view::npos || (unit.size() > 1 && unit.substr(1) != "iB")) {
      return Status{Code::kInvalid,
                    "not a number of bytes: use a number, 512K or 2MiB (powers of 1024)"};
    }
    shift = static_cast<unsigned>(10 * (power + 1));
  }
  if (value > std::numeric_limits<std::uint64_t>::max() >> shift) {
    return Status{Code::kInvalid, "more bytes than 64 bits can count"};
  }
  return value << shift;
}

}  // namespace kvtrie
