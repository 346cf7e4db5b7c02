// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/death_watch.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace kvtrie::replay {
namespace {

constexpr auto kBetweenLooks = std::chrono::microseconds(20);  // at a slot that is to be given back
constexpr int kIdleMs = 1000;

}  // namespace

DeathWatch::DeathWatch(const Segment& segment, int priority)
    : segment_(segment), priority_(priority), wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_.open()) throw std::system_error(errno, std::generic_category(), "eventfd");
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

DeathWatch::~DeathWatch() {
  thread_.request_stop();
  ::eventfd_write(wake_.get(), 1);
}

void DeathWatch::expect(pid_t pid) {
  Dying dying{.pid = pid, .pidfd = FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))),
              .grants = {}, .since = {}, .served = {}};
  if (!dying.pidfd.open()) throw std::system_error(errno, std::generic_category(), "pidfd_open");
  add_grants(dying);
  {
    const std::scoped_lock guard(lock_);
    dying.served = served();
    dying_.push_back(std::move(dying));
  }
  ::eventfd_write(wake_.get(), 1);
}

void DeathWatch::coordinator_serves(bool serves) {
  const std::scoped_lock guard(lock_);
  if (serves == (disturbances_ % 2 == 0)) return;
  served_before_ = served();
  ++disturbances_;
  serves_since_ = Clock::now();
}

DeathWatch::Clock::duration DeathWatch::served() const {
  return served_before_ + (disturbances_ % 2 == 0 ? Clock::now() - serves_since_ : Clock::duration{});
}

// Slots that have this process: before its death, and after it too, since it may get one in between.
void DeathWatch::add_grants(Dying& dying) const {
  const WorkerTable table(segment_);
  for (std::uint16_t slot = 1; slot < segment_.slot_count(); ++slot) {
    const SlotWord word = table.word(WorkerId{slot});
    if (word.state() == SlotState::kFree) continue;
    if (segment_.worker(WorkerId{slot}).pid.load(std::memory_order_relaxed) != static_cast<std::uint32_t>(dying.pid)) {
      continue;
    }
    const SlotGrant grant{WorkerId{slot}, word.incarnation()};
    if (std::ranges::find(dying.grants, grant) == dying.grants.end()) dying.grants.push_back(grant);
  }
}

void DeathWatch::run(const std::stop_token& stop) {
  if (priority_ > 0) {
    const sched_param wanted{priority_};
    (void)::pthread_setschedparam(::pthread_self(), SCHED_RR, &wanted);
  }
  std::vector<pollfd> wanted;
  while (!stop.stop_requested()) {
    wanted.assign(1, {wake_.get(), POLLIN, 0});
    bool measuring = false;
    {
      const std::scoped_lock guard(lock_);
      for (const Dying& dying : dying_) {
        if (!dying.reported) wanted.push_back({dying.pidfd.get(), POLLIN, 0});
        measuring = measuring || dying.reported;
      }
    }
    const timespec between{0, std::chrono::nanoseconds(kBetweenLooks).count()};
    const timespec idle{kIdleMs / 1000, 0};
    (void)::ppoll(wanted.data(), wanted.size(), measuring ? &between : &idle, nullptr);
    const auto now = Clock::now();
    eventfd_t ignored = 0;
    if (wanted[0].revents != 0) (void)::eventfd_read(wake_.get(), &ignored);

    const std::scoped_lock guard(lock_);
    // Those that came in meanwhile stand behind those that were asked for.
    std::size_t asked = 1;
    std::erase_if(dying_, [&](Dying& dying) {
      const bool answered = !dying.reported && asked < wanted.size();
      if (answered && wanted[asked++].revents != 0) report(dying, now);
      return dying.reported && finish(dying);
    });
  }
}

void DeathWatch::report(Dying& dying, Clock::time_point now) const {
  dying.reported = true;
  dying.since = now;
  dying.disturbances = disturbances_;
  add_grants(dying);
}

bool DeathWatch::finish(const Dying& dying) {
  if (dying.grants.empty()) {
    ++result_.unattached;
    return true;
  }
  const WorkerTable table(segment_);
  if (!std::ranges::all_of(dying.grants, [&](SlotGrant grant) { return table.over(grant); })) return false;
  const auto took = static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - dying.since).count());
  const bool served = dying.disturbances % 2 == 0 && dying.disturbances == disturbances_;
  (served ? result_.served : result_.disturbed).record(took);
  return true;
}

std::string DeathWatch::overdue(std::chrono::milliseconds limit) const {
  const std::scoped_lock guard(lock_);
  for (const Dying& dying : dying_) {
    if (served() - dying.served < limit) continue;
    return fmt::format("process {} {}, kvtried has served for {} ms since, and what it held is not given back",
                       dying.pid, dying.reported ? "died" : "was killed", limit.count());
  }
  return {};
}

std::size_t DeathWatch::pending() const {
  const std::scoped_lock guard(lock_);
  return dying_.size();
}

DeathWatch::Result DeathWatch::result() const {
  const std::scoped_lock guard(lock_);
  return result_;
}

}  // namespace kvtrie::replay
