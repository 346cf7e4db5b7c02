// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/options.h"

#include <fmt/format.h>
#include <sys/un.h>

#include <charconv>

#include "shm/runtime_directory.h"
#include "shm/shared_object.h"

namespace kvtrie {
namespace {

const char* clock_name(ClockKind clock) {
  return clock == ClockKind::kDriven ? "driven" : "system";
}

bool good_metrics_address(const std::string& address) {
  if (address == "off") return true;
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  unsigned port = 0;
  const char* end = address.data() + address.size();
  const auto [stopped, error] = std::from_chars(address.data() + colon + 1, end, port);
  return error == std::errc{} && stopped == end && port <= 65535 &&
         address.find_first_not_of(
             "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:[]") ==
             std::string::npos;
}

template <typename T>
void take(const std::optional<T>& given, T& value) {
  if (given) value = *given;
}

template <typename Given, typename There>
void compare(const char* name, const std::optional<Given>& given, const There& there,
             std::string& conflict) {
  if (conflict.empty() && given && *given != there) {
    conflict = fmt::format("--{} {} was given, but the cache there has {}", name, *given, there);
  }
}

}  // namespace

Result<DeviceChoice> parse_device(std::string_view text) {
  constexpr std::string_view kCuda = "cuda:";
  if (text == "host") return DeviceChoice{};
  if (text == "queued") return DeviceChoice{DeviceKind::kQueued, {}};
  const Status bad{Code::kInvalid, "must be host, queued, cuda:N, or cuda:N,M,... with one N for each plane"};
  if (!text.starts_with(kCuda)) return bad;
  DeviceChoice choice{DeviceKind::kCuda, {}};
  const char* at = text.data() + kCuda.size();
  const char* const end = text.data() + text.size();
  for (;;) {
    unsigned ordinal = 0;
    const auto [stopped, error] = std::from_chars(at, end, ordinal);
    if (error != std::errc{} || ordinal > 255 || choice.ordinals.size() == kPlanesMax) return bad;
    choice.ordinals.push_back(static_cast<int>(ordinal));
    if (stopped == end) return choice;
    if (*stopped != ',') return bad;
    at = stopped + 1;
  }
}

std::string device_problem(const Options& options, DeviceKind kind, std::uint32_t planes) {
  const bool memory = options.memory.huge_pages || options.memory.lock || options.memory.numa_node;
  if (kind == DeviceKind::kCuda && memory) {
    return "--huge-pages, --numa-node and --mlock are for host memory: leave them out with --device cuda";
  }
  if (kind != DeviceKind::kQueued && options.queue_delay_ms) {
    return "--queue-delay-ms is for --device queued";
  }
  if (kind != DeviceKind::kCuda) return {};
  if (options.page_checksums) {
    return "--page-checksums: workers cannot read the planes of --device cuda: leave it out";
  }
  if (!options.device) return "the cache is on CUDA devices: say on which with --device cuda:N";
  if (const std::size_t given = options.device->ordinals.size(); given != 1 && given != planes) {
    return fmt::format("--device names {} CUDA devices for {} planes: name one, or one for each plane", given, planes);
  }
  return {};
}

std::string options_problem(const Options& options) {
  if (options.cache.empty()) return "--cache NAME is needed";
  if (std::string text = cache_name_problem(options.cache); !text.empty()) return text;
  if (options.directory.empty() || options.directory.front() != '/') {
    return fmt::format("--dir '{}': give an absolute path", options.directory);
  }
  constexpr std::size_t kSocketPathMax = sizeof(sockaddr_un::sun_path) - 1;
  if (socket_path(options.directory, options.cache).size() > kSocketPathMax) {
    return fmt::format("the socket's path {} is longer than {} bytes: use a shorter --dir",
                       socket_path(options.directory, options.cache), kSocketPathMax);
  }
  if (!options.load.empty() && options.device && options.device->kind != DeviceKind::kHost) {
    return fmt::format("--load fills planes in host memory: leave --device {} out, or --load", name_of(options.device->kind));
  }
  if (!good_metrics_address(options.metrics)) {
    return fmt::format("--metrics '{}': must be HOST:PORT or off", options.metrics);
  }
  if (!(options.low_percent >= 0 && options.low_percent <= options.high_percent &&
        options.high_percent <= 100)) {
    return fmt::format("--low {} --high {}: must be 0 <= low <= high <= 100", options.low_percent,
                       options.high_percent);
  }
  if (options.tick_ns && (*options.tick_ns == 0 || *options.tick_ns > 3'600'000'000'000)) {
    return fmt::format("--tick-ns {}: must be 1 to 3600000000000 (an hour)", *options.tick_ns);
  }
  return {};
}

CacheShape shape_of(const Options& options, const std::optional<CacheShape>& base) {
  CacheShape shape = base.value_or(CacheShape{});
  Geometry& g = shape.geometry;
  take(options.pages, g.pages);
  take(options.tokens_per_page, g.tokens_per_page);
  take(options.page_bytes, g.page_bytes);
  take(options.planes, g.planes);
  take(options.workers, g.workers);
  take(options.leases, g.leases_per_worker);
  take(options.namespaces, g.namespaces);
  take(options.stripes, g.stripes);
  if (options.clock && *options.clock != shape.clock) {
    shape.clock = *options.clock;
    shape.tick_ns = shape.clock == ClockKind::kDriven ? kDrivenTickNs : kSystemTickNs;
  }
  take(options.tick_ns, shape.tick_ns);
  if (options.device) shape.device = options.device->kind;
  shape.page_checksums |= options.page_checksums;
  return shape;
}

std::string shape_conflict(const Options& options, const CacheShape& there) {
  std::string conflict;
  const Geometry& g = there.geometry;
  compare("pages", options.pages, g.pages, conflict);
  compare("tokens-per-page", options.tokens_per_page, g.tokens_per_page, conflict);
  compare("page-bytes", options.page_bytes, g.page_bytes, conflict);
  compare("planes", options.planes, g.planes, conflict);
  compare("workers", options.workers, g.workers, conflict);
  compare("leases", options.leases, g.leases_per_worker, conflict);
  compare("namespaces", options.namespaces, g.namespaces, conflict);
  compare("stripes", options.stripes, g.stripes, conflict);
  compare("tick-ns", options.tick_ns, there.tick_ns, conflict);
  if (conflict.empty() && options.clock && *options.clock != there.clock) {
    conflict = fmt::format("--clock {} was given, but the cache there has {}",
                           clock_name(*options.clock), clock_name(there.clock));
  }
  if (conflict.empty() && options.device && options.device->kind != there.device) {
    conflict = fmt::format("--device {} was given, but the cache there has {}", name_of(options.device->kind),
                           name_of(there.device));
  }
  if (conflict.empty() && options.page_checksums && !there.page_checksums) {
    conflict = "--page-checksums was given, but the cache there was made without";
  }
  return conflict;
}

}  // namespace kvtrie
