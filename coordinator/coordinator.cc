// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/coordinator.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <limits>
#include <vector>

#include "coordinator/raised_nice.h"
#include "coordinator/reload.h"
#include "shm/crash_point.h"
#include "shm/futex.h"
#include "shm/process_identity.h"
#include "shm/recovery.h"

namespace kvtrie {
namespace {

constexpr std::uint32_t kClientLinesASecond = 500;  // attached, detached, reaped

void set_state(const Segment& segment, CoordinatorState state) {
  segment.superblock().coordinator_state.store(static_cast<std::uint32_t>(state),
                                               std::memory_order_seq_cst);
}

}  // namespace

MaybeFailure Coordinator::watch(const FileDescriptor& epoll, int fd) const {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return system_failure("epoll_ctl", errno);
  return {};
}

MaybeFailure Coordinator::lock() {
  return CacheDirectory::lock(options_.directory, options_.cache, options_.mode, directory_);
}

MaybeFailure Coordinator::start(int signal_fd) {
  signal_fd_ = signal_fd;
  if (MaybeFailure failure = read_host_identity(host_)) return failure;
  if (MaybeFailure failure =
          open_or_make_cache(options_, host_, log_, cache_, [this] { return signalled(); })) {
    return failure;
  }
  client_log_ = limited_log(log_, kClientLinesASecond);
  reaper_.emplace(segment(), *cache_.device, client_log_);
  if (MaybeFailure failure = reaper_->start()) return failure;
  if (MaybeFailure failure = take_over()) return failure;

  keeper_.emplace(segment(), Watermarks{options_.low_percent, options_.high_percent});
  admin_.emplace(segment(), *keeper_, [this] { return interrupted(); }, client_log_);
  service_.emplace(options_, cache_, *reaper_, *admin_, client_log_);
  doorbell_.emplace(segment());
  if (MaybeFailure failure = doorbell_->start()) return failure;
  connections_.emplace(*service_);
  if (MaybeFailure failure = connections_->listen(directory_.socket_path(), options_.mode))
    return failure;

  urgent_ = FileDescriptor(::epoll_create1(EPOLL_CLOEXEC));
  epoll_ = FileDescriptor(::epoll_create1(EPOLL_CLOEXEC));
  if (!urgent_.open() || !epoll_.open()) return system_failure("epoll_create1", errno);
  if (MaybeFailure failure = watch(urgent_, signal_fd_)) return failure;
  if (MaybeFailure failure = watch(urgent_, reaper_->epoll_fd())) return failure;
  for (const int fd : {urgent_.get(), doorbell_->event_fd(), connections_->epoll_fd()}) {
    if (MaybeFailure failure = watch(epoll_, fd)) return failure;
  }
  if (reload_fd_ >= 0) {
    if (MaybeFailure failure = watch(epoll_, reload_fd_)) return failure;
  }
  if (options_.prefault) {
    if (MaybeFailure failure = start_prefault()) return failure;
  }
  // Last, so that no thread was made by a real-time one.
  if (MaybeFailure failure = realtime_.start(options_.realtime)) return failure;
  set_state(segment(), CoordinatorState::kServing);
  return {};
}

MaybeFailure Coordinator::start_prefault() {
  std::vector<PrefaultObject> objects;
  const auto add = [&](int fd, std::uint64_t bytes) -> MaybeFailure {
    FileDescriptor copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy.open()) return system_failure("--prefault: copying a descriptor", errno);
    objects.push_back({std::move(copy), bytes});
    return {};
  };
  if (MaybeFailure failure = add(cache_.segment_writable.get(), segment().size_bytes())) return failure;
  // Other devices' planes are not ours to write to.
  if (segment().device() == DeviceKind::kHost) {
    for (std::uint32_t plane = 0; plane < cache_.device->plane_count(); ++plane) {
      const int memory = cache_.device->descriptor(plane, Access::kReadWrite);
      if (MaybeFailure failure = add(memory, cache_.device->plane_bytes())) return failure;
    }
  }
  prefault_.emplace();
  if (MaybeFailure failure = prefault_->start(std::move(objects))) return failure;
  return watch(epoll_, prefault_->event_fd());
}

MaybeFailure Coordinator::take_over() {
  Superblock& block = segment().superblock();
  const Result<std::uint64_t> start_time = own_start_time();
  if (!start_time) return failure_of("/proc/self/stat", start_time.error());
  set_state(segment(), CoordinatorState::kAdopting);
  block.coordinator_start_time.store(*start_time, std::memory_order_relaxed);
  block.coordinator_pid.store(static_cast<std::uint32_t>(::getpid()), std::memory_order_relaxed);
  block.coordinator_epoch.fetch_add(1, std::memory_order_seq_cst);
  KVTRIE_CRASH_POINT("adopt.after_epoch");
  if (!cache_.adopted) return {};

  const RaisedNice hurry;
  const auto start = std::chrono::steady_clock::now();
  Reaper::AdoptSlots slots;
  if (MaybeFailure failure = reaper_->adopt(slots)) return failure;
  KVTRIE_CRASH_POINT("adopt.after_slots");
  const PageRecovery pages = adopt_pages(segment());
  PinTable(segment()).recover();
  KVTRIE_CRASH_POINT("adopt.after_pages");
  wake_everybody();
  segment().count(kCoordinatorSlot, Counter::kAdoptions);
  const auto took = std::chrono::steady_clock::now() - start;
  log_(fmt::format(
      "event=adopt cache={} workers={} reaped={} condemned={} retiring={} orphans={} took_us={}",
      options_.cache, slots.alive, slots.reaped, pages.condemned, pages.retiring, pages.orphans,
      std::chrono::duration_cast<std::chrono::microseconds>(took).count()));
  return {};
}

void Coordinator::wake_everybody() const {
  wake_pending_waiters(segment());
  for (std::uint32_t slot = 1; slot < segment().slot_count(); ++slot) {
    WorkerRecord& record = segment().worker({static_cast<std::uint16_t>(slot)});
    if (record.pages_wanted.load(std::memory_order_seq_cst) == 0) continue;
    record.wait_word.fetch_add(1, std::memory_order_seq_cst);
    futex_wake_all(record.wait_word);
  }
}

bool Coordinator::urgent() const {
  epoll_event event{};
  return ::epoll_wait(urgent_.get(), &event, 1, 0) > 0;
}

std::int64_t Coordinator::sleep_ms(bool due) const {
  if (due) return 0;
  std::int64_t sleep = connections_->next_deadline_ms();
  for (const std::int64_t poll : {keeper_->poll_after_ms(), admin_->poll_after_ms()}) {
    if (poll >= 0) sleep = sleep < 0 ? poll : std::min(sleep, poll);
  }
  if (const std::int64_t poll = reaper_->poll_after_ms(); poll >= 0) {
    sleep = sleep < 0 ? poll : std::min(sleep, poll);
  }
  return std::min<std::int64_t>(sleep, std::numeric_limits<int>::max());
}

bool Coordinator::signalled() const {
  pollfd signals{signal_fd_, POLLIN, 0};
  return ::poll(&signals, 1, 0) > 0;
}

// In the midst of an eviction: the dead are reaped at once, and the pass goes on (ADR 0009,
// tests/model/reap_in_scan.pml): deaths that come faster than a scan must not keep the pool full.
bool Coordinator::interrupted() {
  health_.works();
  if (!urgent()) return false;
  raise_priority();
  (void)reaper_->reap_dead();
  realtime_.lower();
  return signalled();
}

void Coordinator::raise_priority() {
  if (!realtime_.raise()) log_("event=realtime_lost why=\"the limit of real-time priority was lowered\"");
}

void Coordinator::reload_settings() {
  Options next;
  if (const MaybeFailure failure = read_options_(next)) {
    log_(fmt::format("event=reload_failed why=\"{}: everything stays as it was\"", failure->text));
    return;
  }
  for (const std::string& line : log_lines(reload(options_, next))) log_(line);
  keeper_->set_watermarks({options_.low_percent, options_.high_percent});
}

// True: something happened that a pass should look at.
bool Coordinator::attend(int fd) {
  if (fd == urgent_.get()) {
    stop_signalled_ = stop_signalled_ || signalled();
  } else if (fd == doorbell_->event_fd()) {
    doorbell_->clear();
    (void)reaper_->reap_leaving();
    return true;
  } else if (fd == connections_->epoll_fd()) {
    connections_->serve();
  } else if (fd == reload_fd_) {
    reload_settings();
    return true;
  } else {
    log_(prefault_->result());
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  }
  return false;
}

std::optional<Coordinator::End> Coordinator::ended() {
  if (stop_signalled_ || admin_->stop_requested()) return End::kStopped;
  if (!segment().poisoned()) return std::nullopt;
  log_(fmt::format("event=poisoned cache={} reason={}", options_.cache,
                   segment().superblock().poison_reason.load(std::memory_order_relaxed)));
  return End::kPoisoned;
}

MaybeFailure Coordinator::run(End& end) {
  bool due = true;
  std::uint64_t cleared = 0;
  for (;;) {
    std::array<epoll_event, 8> events;
    raise_priority();
    health_.sleeps();
    const int ready = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                   static_cast<int>(sleep_ms(due)));
    health_.works();
    if (ready < 0 && errno != EINTR) return system_failure("epoll_wait", errno);
    (void)reaper_->reap_dead();
    realtime_.lower();
    for (int i = 0; i < ready; ++i) due |= attend(events[static_cast<std::size_t>(i)].data.fd);
    connections_->drop_expired();
    admin_->look_after_pins();
    if (const std::optional<End> how = ended()) {
      end = *how;
      return {};
    }
    due |= admin_->pages_changed();
    due |= keeper_->poll_after_ms() == 0;
    if (due || reaper_->cleared() != cleared) {
      cleared = reaper_->cleared();
      (void)keeper_->pass([this] { return interrupted(); });
      due = keeper_->poll_after_ms() == 0 || reaper_->cleared() != cleared;
    }
  }
}

std::string Coordinator::ready_problem() const {
  if (std::string problem = health_.problem(); !problem.empty()) return problem;
  if (segment().poisoned()) return "the segment was given up as broken: its successor is being made";
  const auto state = static_cast<CoordinatorState>(
      segment().superblock().coordinator_state.load(std::memory_order_relaxed));
  if (state == CoordinatorState::kDraining) return "draining: no new workers (kvtrie drain --undo ends that)";
  return state == CoordinatorState::kServing ? "" : "not serving: stopping, or not started yet";
}

void Coordinator::stop() {
  if (prefault_) prefault_->stop();
  connections_.reset();
  doorbell_.reset();
  segment().superblock().coordinator_pid.store(0, std::memory_order_relaxed);
  set_state(segment(), CoordinatorState::kStopped);
  log_(fmt::format("event=stopped cache={}", options_.cache));
}

}  // namespace kvtrie
