// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// kvtried: the coordinator of one cache. Reads flags, file and environment, and joins coordinator
// and metrics.
//
//   stdout   one line, event=ready ..., when it serves, and one more for each successor of a poisoned segment
//   stderr   event=... lines, and why it did not start
//   signals  SIGTERM, SIGINT: clean stop, the cache stays; SIGHUP: flags and file are read again (reload.h)
//   exit     0 stopped by a signal or `kvtrie stop`, 1 failure, 2 flags or file, 3 another coordinator runs

#include <fmt/format.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/command_line.h"
#include "coordinator/coordinator.h"
#include "coordinator/failure.h"
#include "metrics/metrics_server.h"
#include "metrics/pause_histogram.h"
#include "metrics/prefault_collector.h"
#include "metrics/segment_collector.h"
#include "shm/runtime_directory.h"

namespace {

using kvtrie::Failure;
using kvtrie::kExitUsage;
using kvtrie::MaybeFailure;

int fail(const Failure& failure) {
  fmt::print(stderr, "kvtried: {}\n", failure.text);
  return failure.exit_code;
}

// A pidfd a worker and a descriptor a connection: more than the usual soft limit of 1,024.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    (void)::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

// Sizes that are left to the cache that is there stand for themselves with the smallest.
int check(kvtrie::Options options) {
  if (!options.pages) options.pages = kvtrie::kPagesMin;
  if (!options.page_bytes) options.page_bytes = 8;
  const kvtrie::CacheShape shape = kvtrie::shape_of(options, {});
  std::string problem = kvtrie::geometry_problem(shape.geometry);
  if (problem.empty()) problem = kvtrie::device_problem(options, shape.device, shape.geometry.planes);
  if (!problem.empty()) return fail({problem, kExitUsage});
  fmt::print("event=config_ok cache={}\n", options.cache);
  return 0;
}

// A worker that breaks each segment that it is given must not make us build one after the other without a pause: a
// successor is made at the earliest a second after its predecessor was. A signal ends the wait, and the next start.
void wait_until_old(const kvtrie::Segment& segment, int signal_fd) {
  constexpr std::int64_t kAgeMinMs = 1000;
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const std::int64_t made_ms =
      static_cast<std::int64_t>(segment.superblock().created_realtime_ns / 1'000'000);
  const std::int64_t age_ms =
      static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000 - made_ms;
  if (age_ms < 0 || age_ms >= kAgeMinMs) return;
  pollfd signals{signal_fd, POLLIN, 0};
  (void)::poll(&signals, 1, static_cast<int>(kAgeMinMs - age_ms));
}

// The segment was given up: the same program in the same process starts once more, which makes the successor. The
// kernel closes all descriptors, the lock among them, and ends the other threads.
int start_again(char** argv) {
  std::fflush(nullptr);
  ::execv("/proc/self/exe", argv);
  return fail(kvtrie::system_failure("starting once more (execv)", errno));
}

// A descriptor that is readable when one of these came, which do nothing else from now on. Before any thread is made,
// so that none of them is interrupted.
kvtrie::FileDescriptor take_signals(std::initializer_list<int> numbers) {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int number : numbers) ::sigaddset(&set, number);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  return kvtrie::FileDescriptor(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

void clear_signal(int signal_fd) {
  signalfd_siginfo which;
  while (::read(signal_fd, &which, sizeof which) > 0) {
  }
}

void serve_metrics(kvtrie::MetricsServer& server, const kvtrie::Coordinator& coordinator,
                   const kvtrie::PauseHistogram& pauses) {
  server.serve({std::make_shared<kvtrie::SegmentCollector>(coordinator.segment(), pauses, KVTRIE_VERSION),
                std::make_shared<kvtrie::PrefaultCollector>([&coordinator] {
                  const kvtrie::PrefaultFigures figures = coordinator.prefault_figures();
                  return kvtrie::PrefaultCollector::Bytes{figures.done_bytes, figures.total_bytes};
                })},
               {[&coordinator] { return coordinator.alive_problem(); },
                [&coordinator] { return coordinator.ready_problem(); }});
}

std::string runtime_directory() {
  return kvtrie::default_runtime_directory(::geteuid(), std::getenv("XDG_RUNTIME_DIR"));
}

int serve(const kvtrie::Options& options, const kvtrie::CommandLine& command, char** argv) {
  const kvtrie::FileDescriptor signals = take_signals({SIGTERM, SIGINT});
  const kvtrie::FileDescriptor hangups = take_signals({SIGHUP});
  std::signal(SIGPIPE, SIG_IGN);
  if (!signals.open() || !hangups.open()) return fail(kvtrie::system_failure("signalfd", errno));

  kvtrie::Coordinator coordinator(options,
                                  [](std::string_view line) { fmt::print(stderr, "{}\n", line); });
  if (MaybeFailure failure = coordinator.lock()) return fail(*failure);
  kvtrie::PauseHistogram pauses;
  kvtrie::MetricsServer metrics;  // ends before the coordinator's mapping does
  // Before the cache is made, or made anew with --fresh: a port in use must cost nobody his cache.
  if (options.metrics != "off") {
    if (std::string problem = metrics.listen(options.metrics); !problem.empty()) return fail({problem});
  }
  coordinator.reload_on(hangups.get(), [&command, fd = hangups.get()](kvtrie::Options& next) {
    clear_signal(fd);
    return command.apply(runtime_directory(), next);
  });
  if (MaybeFailure failure = coordinator.start(signals.get())) return fail(*failure);
  coordinator.on_pause([&pauses](double seconds) { pauses.observe(seconds); });
  if (options.metrics != "off") serve_metrics(metrics, coordinator, pauses);
  const kvtrie::Segment& segment = coordinator.segment();
  fmt::print(
      "event=ready cache={} pages={} page_bytes={} segment_bytes={} socket={} metrics={} "
      "adopted={}\n",
      options.cache, segment.geometry().pages, segment.geometry().page_bytes, segment.size_bytes(),
      coordinator.socket_path(), metrics.address(), coordinator.adopted() ? 1 : 0);
  std::fflush(stdout);

  kvtrie::Coordinator::End end{};
  const MaybeFailure failure = coordinator.run(end);
  coordinator.stop();
  if (!failure && end == kvtrie::Coordinator::End::kPoisoned) {
    wait_until_old(segment, signals.get());
    return start_again(argv);
  }
  const int exit_code = failure ? fail(*failure) : 0;
  if (options.metrics != "off") {
    // Ending the metrics server takes its library 2 s, and the next coordinator waits for our lock
    // and port. All that must be done is done: the kernel does the rest.
    std::fflush(nullptr);
    std::_Exit(exit_code);
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  kvtrie::CommandLine command(KVTRIE_VERSION);
  if (const std::optional<int> exit_code = command.parse(argc, argv)) return *exit_code;
  kvtrie::Options options;
  if (const MaybeFailure failure = command.apply(runtime_directory(), options)) return fail(*failure);
  if (command.check_only()) return check(options);
  raise_descriptor_limit();
  return serve(options, command, argv);
}
