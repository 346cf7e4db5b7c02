// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A coordinator in a thread of the test: its loop runs, its segment can be looked at.
#pragma once

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "coordinator/coordinator.h"
#include "tests/support/eventually.h"
#include "tests/support/temporary_cache.h"

namespace kvtrie::test {

class RunningCoordinator {
 public:
  explicit RunningCoordinator(
      const TemporaryCache& cache, const std::function<void(Options&)>& change = [](Options&) {}) {
    Options options;
    options.cache = cache.name();
    options.directory = cache.directory();
    options.pages = 128;
    options.page_bytes = 64;
    options.planes = 2;
    options.workers = 3;
    options.leases = 8;
    options.namespaces = 4;
    options.stripes = 4;
    change(options);
    stop_ = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    coordinator_ = std::make_unique<Coordinator>(options, [this](std::string_view line) {
      const std::lock_guard guard(mutex_);
      log_ += std::string(line) + "\n";
    });
    failure_ = coordinator_->lock();
    if (!failure_) failure_ = coordinator_->start(stop_.get());
    if (!failure_) thread_ = std::thread([this] {
        Coordinator::End end{};
        EXPECT_FALSE(coordinator_->run(end));
      });
  }
  ~RunningCoordinator() { stop(); }
  RunningCoordinator(const RunningCoordinator&) = delete;
  RunningCoordinator& operator=(const RunningCoordinator&) = delete;

  void stop() {
    if (!thread_.joinable()) return;
    const std::uint64_t one = 1;
    EXPECT_EQ(::write(stop_.get(), &one, sizeof one), 8);
    thread_.join();
    coordinator_->stop();
  }
  // Empty: it runs.
  std::string problem() const { return failure_ ? failure_->text : ""; }
  const Segment& segment() const { return coordinator_->segment(); }
  Coordinator& coordinator() { return *coordinator_; }
  std::string log() {
    const std::lock_guard guard(mutex_);
    return log_;
  }
  bool logs(const std::string& part) {
    return eventually([&] { return log().find(part) != std::string::npos; });
  }

 private:
  std::mutex mutex_;
  std::string log_;
  FileDescriptor stop_;
  std::unique_ptr<Coordinator> coordinator_;
  MaybeFailure failure_;
  std::thread thread_;
};

}  // namespace kvtrie::test
