// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/realtime.h"

#include <fmt/format.h>
#include <sched.h>

#include <cerrno>

namespace kvtrie {
namespace {

int schedule(int policy, int priority) {
  sched_param parameters{};
  parameters.sched_priority = priority;
  return ::sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &parameters) == 0 ? 0 : errno;
}

}  // namespace

MaybeFailure Realtime::start(int priority) {
  priority_ = priority;
  if (priority == 0) return {};
  const int error = schedule(SCHED_RR, priority);
  if (error == 0) return {};
  priority_ = 0;
  Failure failure = system_failure(fmt::format("--realtime {}: SCHED_RR", priority), error);
  failure.text += fmt::format(
      "; allow it with LimitRTPRIO={} in the systemd unit (or `ulimit -r`), or with the capability "
      "CAP_SYS_NICE (in a "
      "container --cap-add SYS_NICE), or leave --realtime out",
      priority);
  return failure;
}

bool Realtime::raise() {
  if (priority_ == 0 || schedule(SCHED_RR, priority_) == 0) return true;
  priority_ = 0;
  return false;
}

void Realtime::lower() {
  if (priority_ != 0) (void)schedule(SCHED_OTHER, 0);  // always permitted
}

}  // namespace kvtrie
