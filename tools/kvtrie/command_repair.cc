// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/kvtrie/command_repair.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

#include "shm/copy_queue.h"
#include "shm/crash_point.h"
#include "shm/page_checksum.h"
#include "shm/repair.h"
#include "shm/verify.h"
#include "tools/kvtrie/caches.h"
#include "tools/kvtrie/coordinator_lock.h"
#include "tools/kvtrie/host.h"
#include "tools/kvtrie/snapshot.h"
#include "tools/kvtrie/text.h"

namespace kvtrie::inspect {
namespace {

constexpr unsigned kSettleMs = 200;  // while processes live: then it is for looking only
constexpr char kOnlyDestroy[] = "nothing of it can be saved: kvtrie destroy, or kvtried --fresh";

// Maps that may write one of these files, of processes that we may look at.
bool maps_writable(const std::string& maps_path, const std::vector<struct stat>& files) {
  std::ifstream maps(maps_path);
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);  // range perms offset major:minor inode path
    std::string range, perms, offset, device;
    std::uint64_t inode = 0;
    if (!(words >> range >> perms >> offset >> device >> inode) || perms.size() < 4) continue;
    if (perms[1] != 'w' || perms[3] != 's') continue;
    const bool one = std::ranges::any_of(files, [&](const struct stat& file) {
      return file.st_ino == inode && fmt::format("{:02x}:{:02x}", major(file.st_dev), minor(file.st_dev)) == device;
    });
    if (one) return true;
  }
  return false;
}

class Repairer {
 public:
  Repairer(const Environment& environment, const RepairRequest& request)
      : environment_(environment),
        request_(request),
        lock_(environment, request.cache, request.directory, "then repair it if it still has to be") {
    report_.cache = request.cache;
  }

  Outcome run() {
    Result<Segment> opened = open_segment(request_.cache, Access::kReadOnly);
    if (!opened) return cannot_open(opened.error());
    if (const auto refusal = lock_.take()) return failure(refusal->code, refusal->message, request_.json);
    // Once more, under the lock: that is the one that it is about.
    Result<FileDescriptor> fd = open_object(name_, Access::kReadOnly);
    opened = open_segment(request_.cache, Access::kReadOnly);
    if (!opened || !fd) return cannot_open(opened ? fd.error() : opened.error());
    old_.emplace(std::move(*opened));
    if (::fstat(fd->get(), &file_) != 0) return system(fmt::format("fstat of /dev/shm/{}", name_), errno);
    if (const std::string problem = host_problem(); !problem.empty()) return refuse(problem);
    if (const std::string problem = planes_problem(); !problem.empty()) return refuse(problem);
    find_living();
    const VerifyReport found = verify(
        *old_, {.adopting = true, .findings_max = 1, .settle_ms = report_.living.empty() ? 0 : kSettleMs});
    report_.findings_total = found.findings_total;
    if (found.clean()) return render(report_, request_.json);
    report_.needed = true;
    report_.first_finding = to_string(found.findings.front());
    report_.first_finding = printable(report_.first_finding.data(), report_.first_finding.size());
    report_.segment_bytes = old_->size_bytes();
    report_.plan = plan_repair(*old_, checksum_check());
    name_namespaces();
    if (!request_.apply) return render(report_, request_.json, Exit::kFindings);
    if (!report_.living.empty()) return refuse(living_text());
    if (auto failed = replace()) return std::move(*failed);
    report_.done = true;
    return render(report_, request_.json);
  }

 private:
  Outcome refuse(const std::string& why) const {
    return failure(Exit::kRefused, fmt::format("cache '{}': {}", request_.cache, why), request_.json);
  }
  Outcome system(const std::string& what, int error) const {
    const std::string why = error == 0 ? "" : fmt::format(": {}", std::strerror(error));
    return failure(Exit::kSystem, fmt::format("cache '{}': {}{}; nothing was changed", request_.cache, what, why),
                   request_.json);
  }

  Outcome cannot_open(Status status) const {
    std::string text = open_problem(environment_, request_.cache, status);
    if (exit_of(status) == Exit::kCorrupt) text += fmt::format("; --repair needs a whole superblock: {}", kOnlyDestroy);
    return failure(exit_of(status), text, request_.json);
  }

  // --- what must be so

  std::string host_problem() const {
    const HostView host(*old_);
    if (!host.same_boot()) return fmt::format("the segment is of another boot: {}", kOnlyDestroy);
    if (!host.same_pid_namespace())
      return "the segment was made in another PID namespace, where its workers may live: run kvtrie there";
    for (const AtomicU64& id : old_->superblock().successor_id) {
      if (id.load(kRelaxed) != 0)
        return fmt::format("the segment was given up for a successor, whose its pools may be: {}", kOnlyDestroy);
    }
    return {};
  }

  std::string planes_problem() {
    if (old_->device() == DeviceKind::kCuda)
      return fmt::format("its pages were in device memory, which ended with the coordinator: {}", kOnlyDestroy);
    const Geometry& geometry = old_->geometry();
    for (std::uint32_t plane = 0; plane < geometry.planes; ++plane) {
      const std::string name = pool_object_name(request_.cache, plane);
      Result<FileDescriptor> fd = open_object(name, Access::kReadOnly);
      if (!fd) return fmt::format("/dev/shm/{}: {}; {}", name, fd.error().what(), kOnlyDestroy);
      struct stat info {};
      if (::fstat(fd->get(), &info) != 0) return fmt::format("/dev/shm/{}: {}", name, std::strerror(errno));
      if (static_cast<std::uint64_t>(info.st_size) != pool_bytes(geometry)) {
        return fmt::format("/dev/shm/{} has {} bytes, the segment says {}: {}", name, info.st_size,
                           pool_bytes(geometry), kOnlyDestroy);
      }
      pools_.push_back(info);
      pool_fds_.push_back(std::move(*fd));
    }
    if (old_->device() != DeviceKind::kQueued) return {};
    const std::string name = queue_object_name(request_.cache);
    Result<CopyQueue> queue = open_queue(Access::kReadOnly);
    return queue ? std::string() : fmt::format("/dev/shm/{}: {}; {}", name, queue.error().what(), kOnlyDestroy);
  }

  Result<CopyQueue> open_queue(Access access) const {
    Result<FileDescriptor> fd = open_object(queue_object_name(request_.cache), access);
    if (!fd) return fd.error();
    Result<Mapping> mapping = Mapping::map(fd->get(), CopyQueue::size_bytes(old_->geometry()), access);
    if (!mapping) return mapping.error();
    return CopyQueue::open(std::move(*mapping), old_->geometry(), old_->superblock().cache_id);
  }

  // By the slots, and, since these may be damaged, by who maps what so that it can write.
  void find_living() {
    const HostView host(*old_);
    for (std::uint32_t i = 1; i < old_->slot_count(); ++i) {
      const WorkerRecord& record = old_->worker({static_cast<std::uint16_t>(i)});
      if (SlotWord{record.slot_state.load(kRelaxed)}.state() == SlotState::kLeaving) continue;  // uses nothing any more
      const std::uint32_t pid = record.pid.load(kRelaxed);
      const Liveness liveness = host.liveness(pid, record.start_time.load(kRelaxed));
      if (liveness != Liveness::kAlive && liveness != Liveness::kUnknown) continue;
      report_.living.push_back({pid, i, printable(record.name, sizeof record.name)});
    }
    std::vector<struct stat> files = pools_;
    files.push_back(file_);
    std::error_code error;
    for (std::filesystem::directory_iterator each("/proc", error), end; !error && each != end; each.increment(error)) {
      const std::string entry = each->path().filename().string();
      std::uint32_t pid = 0;
      const auto [rest, bad] = std::from_chars(entry.data(), entry.data() + entry.size(), pid);
      if (bad != std::errc() || rest != entry.data() + entry.size() || pid == static_cast<std::uint32_t>(::getpid()))
        continue;
      if (std::ranges::find(report_.living, pid, &LivingProcess::pid) != report_.living.end()) continue;
      if (maps_writable(each->path().string() + "/maps", files)) report_.living.push_back({pid, 0, ""});
    }
  }

  std::string living_text() const {
    std::vector<std::string> pids;
    for (const LivingProcess& each : report_.living)
      pids.push_back(std::to_string(each.pid));
    return fmt::format("{} with it (pid {}): end {} first (kvtrie workers tells more); nothing was changed",
                       counted(pids.size(), "process still works", "processes still work"), fmt::join(pids, ", "),
                       pids.size() == 1 ? "it" : "them");
  }

  // --- the plan

  // Without it nothing says what the bytes should be.
  ChecksumFits checksum_check() {
    if (!old_->page_checksums()) return {};
    for (const FileDescriptor& fd : pool_fds_) {
      Result<Mapping> mapping = Mapping::map(fd.get(), pool_bytes(old_->geometry()), Access::kReadOnly);
      if (!mapping) return {};
      planes_.push_back(std::move(*mapping));
    }
    return [this](PageIndex page, std::uint64_t checksum) {
      return checksum == page_checksum(old_->geometry().planes, old_->geometry().page_bytes, page.value,
                                       [this](std::uint32_t plane) { return planes_[plane].data(); });
    };
  }

  void name_namespaces() {
    for (std::uint32_t i = 0; i < report_.plan.namespaces.size(); ++i) {
      const NamespacePlan& plan = report_.plan.namespaces[i];
      if (!plan.kept && !plan.lost()) continue;
      const NamespaceRecord& record = old_->name_space({static_cast<std::uint16_t>(i)});
      report_.namespaces.push_back({i, printable(record.label, sizeof record.label), plan});
    }
  }

  // --- the replacement

  // Nothing, or why there is no new segment; the old one is as it was then.
  std::optional<Outcome> replace() {
    Result<FileDescriptor> claimed = claim_object(name_);
    if (!claimed && claimed.error().code() == Code::kBusy) return refuse("another process is making it at this moment");
    if (!claimed) return system(fmt::format("/dev/shm/{}.tmp", name_), claimed.error().system_errno());
    KVTRIE_CRASH_POINT("repair.after_claim");
    std::optional<Outcome> failed = fill(*claimed);
    if (!failed) failed = publish();
    if (failed) (void)discard_object(name_);
    return failed;
  }

  std::optional<Outcome> fill(const FileDescriptor& claimed) {
    const std::string what = fmt::format("/dev/shm/{}.tmp of {}", name_, bytes_text(old_->size_bytes()));
    const auto failed = [&](Status status) {
      return system(fmt::format("{}: {}", what, status.what()), status.system_errno());
    };
    if (Status status = reserve_object(claimed.get(), old_->size_bytes(), file_.st_mode & 0777); !status)
      return failed(status);
    KVTRIE_CRASH_POINT("repair.after_reserve");
    Result<Mapping> mapping = Mapping::map(claimed.get(), old_->size_bytes(), Access::kReadWrite);
    if (!mapping) return failed(mapping.error());
    Result<Segment> fresh = Segment::build(std::move(*mapping), old_->geometry(), identity_of(*old_));
    if (!fresh) return failed(fresh.error());
    KVTRIE_CRASH_POINT("repair.after_build");
    write_repaired(*old_, report_.plan, *fresh);
    KVTRIE_CRASH_POINT("repair.after_write");
    const VerifyReport result = verify(*fresh, {.at_rest = true, .findings_max = 1, .settle_ms = 0});
    if (!result.clean()) {
      return refuse(fmt::format("what would be kept is not sound ({}): somebody writes to the segment; nothing was "
                                "changed",
                                to_string(result.findings.front())));
    }
    // Run by root for a kvtried of another user.
    const bool same_owner = file_.st_uid == ::geteuid() && file_.st_gid == ::getegid();
    if (!same_owner && ::fchown(claimed.get(), file_.st_uid, file_.st_gid) != 0)
      return system(what + " cannot be given to the owner of the segment; run kvtrie as that user", errno);
    return std::nullopt;
  }

  std::optional<Outcome> publish() {
    // Slots are free in the new segment, so their rings must be at their end (copy_queue.h, Q3).
    if (old_->device() == DeviceKind::kQueued) {
      Result<CopyQueue> queue = open_queue(Access::kReadWrite);
      if (!queue) return refuse(fmt::format("its copy queue: {}; nothing was changed", queue.error().what()));
      for (std::uint32_t i = 0; i < queue->ring_count(); ++i) {
        const WorkerId slot{static_cast<std::uint16_t>(i)};
        while (queue->next(slot)) queue->finish(slot);
      }
    }
    KVTRIE_CRASH_POINT("repair.before_publish");
    if (Status status = publish_object(name_); !status)
      return system(fmt::format("/dev/shm/{}: {}", name_, status.what()), status.system_errno());
    KVTRIE_CRASH_POINT("repair.after_publish");
    return std::nullopt;
  }

  const Environment& environment_;
  const RepairRequest& request_;
  const std::string name_ = segment_object_name(request_.cache);
  CoordinatorLock lock_;
  RepairReport report_;
  std::optional<Segment> old_;
  struct stat file_ {};
  std::vector<struct stat> pools_;
  std::vector<FileDescriptor> pool_fds_;
  std::vector<Mapping> planes_;
};

}  // namespace

Outcome run_repair(const Environment& environment, const RepairRequest& request) {
  return Repairer(environment, request).run();
}

}  // namespace kvtrie::inspect
