// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "coordinator/doorbell_watcher.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <system_error>

#include "shm/futex.h"

namespace kvtrie {

MaybeFailure DoorbellWatcher::start() {
  event_ = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event_.open()) return system_failure("eventfd", errno);
  // Nobody else sleeps on the bell, so what stands there is a dead coordinator's.
  segment_.superblock().doorbell.waiters.store(0, std::memory_order_seq_cst);
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  MaybeFailure failure;
  try {
    thread_ = std::thread([this] { watch(); });
  } catch (const std::system_error& error) {
    failure = system_failure("starting the doorbell's thread", error.code().value());
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return failure;
}

DoorbellWatcher::~DoorbellWatcher() {
  if (!thread_.joinable()) return;
  stopping_.store(true);
  ring(segment_.superblock().doorbell);
  thread_.join();
}

void DoorbellWatcher::watch() {
  WakeWord& bell = segment_.superblock().doorbell;
  std::uint32_t seen = bell.word.load(std::memory_order_seq_cst);
  signal_loop();  // for all that was rung before we came
  while (!stopping_.load()) {
    (void)wait_on(bell, seen, -1);
    const std::uint32_t now = bell.word.load(std::memory_order_seq_cst);
    if (now != seen) signal_loop();
    seen = now;
  }
}

void DoorbellWatcher::signal_loop() const {
  const std::uint64_t one = 1;
  // Fails only when the counter is full, which is signal enough.
  [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
}

void DoorbellWatcher::clear() const {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(event_.get(), &count, sizeof count);
}

}  // namespace kvtrie
