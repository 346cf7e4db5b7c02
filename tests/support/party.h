// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Interleaving on purpose: a party runs its work in a thread of its own, but only when it is let,
// and up to a named crash point. So one party stands between two stores while the test's thread
// does what another process would, and each run of a test is the same run.
//
//   Party evictor([&] { evict(2); });
//   ASSERT_TRUE(evictor.run_to("evict.after_condemn"));
//   ... what a worker does at exactly that moment ...
//   evictor.finish();
//
// Needs crash points (KVTRIE_DEV). One of the test's thread and the parties runs at a time.
#pragma once

#include "shm/crash_point.h"

#ifdef KVTRIE_DEV
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace kvtrie::test {

class Party {
 public:
  explicit Party(std::function<void()> work)
      : thread_([this, work = std::move(work)] { run(work); }) {
    crash_hook.store(at_place);
  }
  Party(const Party&) = delete;
  Party& operator=(const Party&) = delete;
  ~Party() {
    let_run({}, 0);
    thread_.join();
  }

  // Runs until it passes `place` for the `hit`-th time from now. False: its work ended before.
  bool run_to(std::string_view place, unsigned hit = 1) {
    let_run(std::string(place), hit);
    rethrow();
    return !ended_;
  }
  // To its end; throws what the work threw.
  void finish() {
    let_run({}, 0);
    rethrow();
  }

 private:
  void run(const std::function<void()>& work) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return its_turn_; });
    }
    current() = this;
    try {
      work();
    } catch (...) {
      failure_ = std::current_exception();
    }
    current() = nullptr;
    const std::scoped_lock lock(mutex_);
    ended_ = true;
    its_turn_ = false;
    changed_.notify_all();
  }

  void let_run(std::string place, unsigned hit) {
    std::unique_lock lock(mutex_);
    if (ended_) return;
    place_ = std::move(place);
    hits_left_ = hit;
    its_turn_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !its_turn_; });
  }

  void rethrow() {
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

  void pause_at(std::string_view place) {
    std::unique_lock lock(mutex_);
    if (place != place_ || --hits_left_ != 0) return;
    its_turn_ = false;
    changed_.notify_all();
    changed_.wait(lock, [this] { return its_turn_; });
  }

  static void at_place(const char* place) {
    if (Party* party = current()) party->pause_at(place);
  }
  static Party*& current() {
    thread_local Party* party = nullptr;
    return party;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool its_turn_ = false;
  bool ended_ = false;
  std::string place_;
  unsigned hits_left_ = 0;
  std::exception_ptr failure_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace kvtrie::test
#endif
