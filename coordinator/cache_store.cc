// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/cache_store.h"

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "coordinator/host_memory.h"
#include "coordinator/raised_nice.h"
#include "coordinator/warm_start.h"
#include "shm/crash_point.h"
#include "shm/free_pages.h"
#include "shm/lease_table.h"
#include "shm/namespace_table.h"
#include "shm/page_table.h"
#include "shm/stripe_index.h"
#include "shm/verify.h"
#include "shm/worker_table.h"

namespace kvtrie {
namespace {

constexpr char kGiveUp[] = "remove it with `kvtrie destroy`, or start with --fresh";
constexpr char kRepairFirst[] = "`kvtrie verify --repair` shows what of it can be kept; or";

constexpr char kOtherRelease[] =
    "of another release: workers that are attached to it go on, its kvtried takes it over again; remove it when "
    "neither is to come";

MaybeFailure random_bytes(void* into, std::size_t bytes) {
  if (::getrandom(into, bytes, 0) != static_cast<ssize_t>(bytes)) {
    return system_failure("getrandom", errno);
  }
  return {};
}

// How long something must look wrong: workers run on, and the host may be busy.
constexpr unsigned kSettleMs = 2000;

// Of each structure by itself: quick, and never wrong for a while only, so garbage is refused at
// once.
std::string first_problem(const Segment& segment) {
  std::string problem = WorkerTable(segment).validate();
  if (problem.empty()) problem = LeaseTable(segment).validate();
  if (problem.empty()) problem = NamespaceTable(segment).validate();
  if (problem.empty()) problem = PageTable(segment).validate();
  if (problem.empty()) problem = FreePages(segment).validate();
  if (problem.empty()) problem = StripeIndex(segment).validate();
  return problem;
}

// Of everything, and of what stands between the structures: what looks wrong for `settle_ms`.
std::string first_finding(const Segment& segment, unsigned settle_ms) {
  const VerifyReport report = verify(segment, {.adopting = true, .findings_max = 1, .settle_ms = settle_ms});
  if (report.clean()) return {};
  return fmt::format("{} (of {} findings; kvtrie verify lists them)",
                     to_string(report.findings.front()), report.findings_total);
}

// What makes the segment one that is not to be taken over. Nothing in it is changed.
std::string reason_to_refuse(const Segment& segment) {
  const RaisedNice hurry;
  if (first_finding(segment, 0).empty()) return {};
  const std::string problem = first_problem(segment);
  return problem.empty() ? first_finding(segment, kSettleMs) : problem;
}

// What the superblock says, of a segment that is not mapped yet: 0 while it is being made.
std::uint32_t coordinator_pid(const FileDescriptor& segment) {
  std::uint32_t pid = 0;
  const auto offset = static_cast<off_t>(offsetof(Superblock, coordinator_pid));
  return ::pread(segment.get(), &pid, sizeof pid, offset) == sizeof pid ? pid : 0;
}

// One store at work on one cache.
class Store {
 public:
  Store(const Options& options, const HostIdentity& host, const LogSink& log, CacheObjects& objects,
        const std::function<bool()>& stopped)
      : options_(options), host_(host), log_(log), objects_(objects), stopped_(stopped) {}

  MaybeFailure run() {
    if (MaybeFailure failure = random_bytes(identity_.cache_id, sizeof identity_.cache_id))
      return failure;
    if (MaybeFailure failure = random_bytes(&identity_.hash_secret, sizeof identity_.hash_secret)) {
      return failure;
    }
    for (const std::uint32_t layout : other_layouts_of(options_.cache)) {
      log_(fmt::format("event=other_layout cache={} layout={} objects=/dev/shm/kvtrie.{}.v{}.* why=\"{}\"",
                       options_.cache, layout, options_.cache, layout, kOtherRelease));
    }
    Result<FileDescriptor> fd = open_object(name_, Access::kReadWrite);
    if (!fd && fd.error().code() == Code::kNotFound) {
      CacheShape shape;
      if (MaybeFailure failure = plan(std::nullopt, shape)) return failure;
      return build(shape);
    }
    if (!fd) return failure_of("/dev/shm/" + name_, fd.error());
    if (MaybeFailure failure = guard()) return failure;
    objects_.segment_writable = std::move(*fd);
    Status broken = map();
    if (options_.fresh) {
      return succeed(std::nullopt, "fresh");
    }
    if (!broken) {
      Failure failure = failure_of("/dev/shm/" + name_, broken);
      failure.text += fmt::format("; {}", kGiveUp);
      return failure;
    }
    return judge();
  }

 private:
  // A coordinator that was given another --dir would not meet our lock there; it meets this one.
  MaybeFailure guard() {
    Result<FileDescriptor> fd = open_object(name_, Access::kReadOnly);
    if (!fd) return failure_of("/dev/shm/" + name_, fd.error());
    if (::flock(fd->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return system_failure("locking /dev/shm/" + name_, errno);
      return Failure{
          fmt::format("another coordinator (pid {}) serves cache '{}' from another directory; stop it, or use "
                      "the --dir that it was given",
                      coordinator_pid(*fd), options_.cache),
          kExitOtherRunning};
    }
    objects_.guard = std::move(*fd);
    return {};
  }

  Status map() {
    const Result<std::uint64_t> bytes = object_bytes(objects_.segment_writable.get());
    if (!bytes) return bytes.error();
    Result<Mapping> mapping =
        Mapping::map(objects_.segment_writable.get(), *bytes, Access::kReadWrite);
    if (!mapping) return mapping.error();
    Result<Segment> segment = Segment::open(std::move(*mapping));
    if (!segment) return segment.error();
    objects_.segment.emplace(std::move(*segment));
    return {};
  }

  MaybeFailure judge() {
    const Superblock& block = objects_.segment->superblock();
    CacheShape there = shape_there(block);
    there.device = objects_.segment->device();  // what was checked
    if (const std::string conflict = shape_conflict(options_, there); !conflict.empty()) {
      return Failure{fmt::format("{}: leave the option out to adopt the cache, {} to change it",
                                 conflict, kGiveUp)};
    }
    if (!std::equal(host_.boot_id.begin(), host_.boot_id.end(), block.boot_id)) {
      return succeed(there, "other_boot");
    }
    if (block.pid_namespace != host_.pid_namespace) {
      return Failure{
          fmt::format("cache '{}' was made in another PID namespace ({}, this is {}): run kvtried "
                      "with the host's PID "
                      "namespace (--pid=host, hostPID or shareProcessNamespace: true); if the "
                      "other one is gone, {}",
                      options_.cache, block.pid_namespace, host_.pid_namespace, kGiveUp)};
    }
    if (objects_.segment->poisoned()) {
      return succeed(there, "poisoned");
    }
    const Geometry& geometry = there.geometry;
    if (std::string problem = device_problem(options_, there.device, geometry.planes); !problem.empty()) {
      return Failure{problem, kExitUsage};
    }
    if (!planes_outlive_coordinator(there.device)) return succeed(there, "planes_gone");
    return adopt(there);
  }

  // Nothing is changed before all of it was looked at.
  MaybeFailure adopt(const CacheShape& there) {
    const Segment& segment = *objects_.segment;
    if (const std::string problem = reason_to_refuse(segment); !problem.empty()) {
      return Failure{fmt::format("/dev/shm/{} is corrupt: {}; {} {}", name_, problem, kRepairFirst, kGiveUp)};
    }
    std::copy_n(segment.superblock().cache_id, 2, identity_.cache_id);
    objects_.device = make_device(options_, there.device);
    if (MaybeFailure failure = objects_.device->adopt(planes_of(there))) {
      failure->text += fmt::format("; {}", kGiveUp);
      return failure;
    }
    objects_.adopted = true;
    if (!options_.load.empty()) {
      log_(fmt::format("event=not_loaded cache={} file={} reason=adopted", options_.cache,
                       log_value(options_.load)));
    }
    // What a build that died left. A claim that somebody has is of one that will find the segment there.
    if (const Result<FileDescriptor> claimed = claim_object(name_)) {
      discard_planes(options_.cache);
      (void)discard_object(name_);
    }
    return start();
  }

  // The segment that is there is given up for a new one of the same name; not before the new one is whole, unless
  // there is no room for both.
  MaybeFailure succeed(const std::optional<CacheShape>& base, const char* reason) {
    CacheShape shape;
    if (MaybeFailure failure = plan(base, shape)) return failure;
    log_(fmt::format("event=successor cache={} reason={}", options_.cache, reason));
    return build(shape);
  }

  void give_up_old() {
    if (!old_) return;
    AtomicU64* successor = old_->superblock().successor_id;
    successor[0].store(identity_.cache_id[0], std::memory_order_relaxed);
    successor[1].store(identity_.cache_id[1], std::memory_order_relaxed);
    old_->poison(PoisonReason::kOperator);
  }

  MaybeFailure plan(const std::optional<CacheShape>& base, CacheShape& shape) const {
    if (!base && (!options_.pages || !options_.page_bytes)) {
      return Failure{fmt::format("cache '{}' has to be made{}: --pages and --page-bytes are needed", options_.cache,
                                 options_.load.empty() ? "" : ", and then loaded"),
                     kExitUsage};
    }
    shape = shape_of(options_, base);
    if (const std::string problem = geometry_problem(shape.geometry); !problem.empty()) {
      return Failure{problem, kExitUsage};
    }
    if (const std::string problem = device_problem(options_, shape.device, shape.geometry.planes); !problem.empty()) {
      return Failure{problem, kExitUsage};
    }
    return {};
  }

  PlanesWanted planes_of(const CacheShape& shape) const {
    return {options_.cache, shape.geometry, {identity_.cache_id[0], identity_.cache_id[1]}, options_.mode};
  }

  // The names change last: pools first, then the segment.
  MaybeFailure build(const CacheShape& shape) {
    WarmStart warm_start;
    if (MaybeFailure refused = WarmStart::open(options_, shape.geometry, warm_start)) return refused;
    Result<FileDescriptor> claimed = claim_object(name_);
    if (!claimed && claimed.error().code() == Code::kBusy) return other_builds();
    if (!claimed) return failure_of("/dev/shm/" + name_, claimed.error());
    const bool nothing_there = !objects_.segment_writable.open();
    if (nothing_there && open_object(name_, Access::kReadOnly)) {
      (void)discard_object(name_);
      return other_builds();
    }
    if (objects_.segment) old_.emplace(std::move(*objects_.segment));
    objects_.segment.reset();
    objects_.segment_writable = {};

    MaybeFailure failure = make(shape, *claimed);
    if (failure && failure->no_room && !nothing_there) {
      // Workers that are still attached to the old cache keep its memory until they detach.
      give_up_old();
      remove_planes(options_.cache);
      KVTRIE_CRASH_POINT("store.after_old_removed");
      failure = make(shape, *claimed);
    }
    if (!failure && !options_.load.empty())
      failure = warm_start.load(*objects_.segment, plane_bytes(), stopped_, log_);
    if (!failure) {
      give_up_old();
      failure = objects_.device->publish();
    }
    KVTRIE_CRASH_POINT("store.after_pools_published");
    if (!failure) {
      if (Status status = publish_object(name_); !status)
        failure = failure_of("/dev/shm/" + name_, status);
    }
    if (failure) {
      discard_planes(options_.cache);
      (void)discard_object(name_);
      if (failure->no_room && !other_layouts_of(options_.cache).empty()) {
        failure->text += fmt::format("; /dev/shm also has the cache of another release (kvtrie.{}.v*, not v{}): remove "
                                     "it when its workers are gone",
                                     options_.cache, kLayoutVersion);
      }
      return failure;
    }
    // The old one may have had more planes, or a queue.
    const std::uint32_t named = planes_outlive_coordinator(shape.device) ? shape.geometry.planes : 0;
    remove_planes(options_.cache, named, objects_.device->queue_descriptor() >= 0);
    objects_.guard = std::move(*claimed);
    objects_.adopted = false;
    return start();
  }

  // Pools and segment under their temporary names, memory reserved.
  MaybeFailure make(const CacheShape& shape, const FileDescriptor& claimed) {
    objects_.device = make_device(options_, shape.device);
    if (MaybeFailure failure = objects_.device->make(planes_of(shape))) return failure;
    KVTRIE_CRASH_POINT("store.after_pools_made");
    MaybeFailure failure = make_segment(shape, claimed);
    if (failure) discard_planes(options_.cache);
    return failure;
  }

  MaybeFailure make_segment(const CacheShape& shape, const FileDescriptor& claimed) {
    const std::uint64_t bytes = layout_of(shape.geometry).segment_bytes;
    const std::string what = fmt::format("/dev/shm/{} of {} bytes", name_, bytes);
    Status reserved = place_memory(claimed.get(), bytes, options_.memory, segment_huge_bytes_);
    if (reserved) reserved = reserve_object(claimed.get(), bytes, options_.mode);
    if (!reserved) return failure_of(what, reserved);
    // Not the claimed descriptor: with that one the lock would be handed out.
    Result<FileDescriptor> fd = open_temporary(name_, Access::kReadWrite);
    if (!fd) return failure_of(what, fd.error());
    Result<Mapping> mapping = Mapping::map(fd->get(), bytes, Access::kReadWrite);
    if (!mapping) return failure_of(what, mapping.error());
    identity_.cache_name = options_.cache;
    std::ranges::copy(host_.boot_id, identity_.boot_id);
    identity_.pid_namespace = host_.pid_namespace;
    identity_.clock = shape.clock;
    identity_.tick_ns = shape.tick_ns;
    identity_.device = shape.device;
    identity_.page_checksums = shape.page_checksums;
    Result<Segment> segment = Segment::build(std::move(*mapping), shape.geometry, identity_);
    if (!segment) return failure_of(what, segment.error());
    objects_.segment.emplace(std::move(*segment));
    objects_.segment_writable = std::move(*fd);
    return {};
  }

  PlaneBytes plane_bytes() const {
    std::vector<int> descriptors;
    for (std::uint32_t plane = 0; plane < objects_.device->plane_count(); ++plane) {
      descriptors.push_back(objects_.device->descriptor(plane, Access::kReadWrite));
    }
    return {std::move(descriptors), objects_.segment->geometry().page_bytes};
  }

  Failure other_builds() const {
    return Failure{fmt::format("another coordinator, with another --dir, is making cache '{}' at this moment: give "
                               "both one --dir, or this cache another name",
                               options_.cache),
                   kExitOtherRunning};
  }

  MaybeFailure start() {
    Result<FileDescriptor> fd = open_object(name_, Access::kReadOnly);
    if (!fd) return failure_of("/dev/shm/" + name_, fd.error());
    objects_.segment_read_only = std::move(*fd);
    if (MaybeFailure failure = objects_.device->start()) return failure;
    std::string memory;
    if (options_.memory.huge_pages) {
      memory = " segment_huge_bytes=" + (objects_.adopted ? "as_made" : std::to_string(segment_huge_bytes_));
    }
    log_(fmt::format("event=device cache={} {}{}", options_.cache, objects_.device->describe(), memory));
    return {};
  }

  const Options& options_;
  const HostIdentity& host_;
  const LogSink& log_;
  CacheObjects& objects_;
  const std::function<bool()>& stopped_;
  const std::string name_ = segment_object_name(options_.cache);
  SegmentIdentity identity_;
  std::uint64_t segment_huge_bytes_ = 0;  // when it was made
  std::optional<Segment> old_;
};

}  // namespace

MaybeFailure read_host_identity(HostIdentity& host) {
  const Result<BootId> boot_id = read_boot_id();
  if (!boot_id) return failure_of("/proc/sys/kernel/random/boot_id", boot_id.error());
  const Result<std::uint64_t> pid_namespace = own_pid_namespace();
  if (!pid_namespace) return failure_of("/proc/self/ns/pid", pid_namespace.error());
  host = {*boot_id, *pid_namespace};
  return {};
}

CacheShape shape_there(const Superblock& superblock) {
  return {geometry_of(superblock), static_cast<ClockKind>(superblock.clock_kind), superblock.tick_ns,
          static_cast<DeviceKind>(superblock.incompatible_features),
          (superblock.compatible_features & kFeaturePageChecksums) != 0};
}

MaybeFailure open_or_make_cache(const Options& options, const HostIdentity& host,
                                const LogSink& log, CacheObjects& objects,
                                const std::function<bool()>& stopped) {
  return Store(options, host, log, objects, stopped).run();
}

}  // namespace kvtrie
