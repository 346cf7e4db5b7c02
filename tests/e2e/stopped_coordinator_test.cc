// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A coordinator that is stopped (SIGSTOP) at chosen places of what it does keeps no worker waiting (C6): lookups,
// leases, allocation from the free pages, publishing and releasing go on, over Condemned pages too; after SIGCONT it
// goes on, and all is right. A stripe it never holds while it serves: only loading a cache announces pages, before the
// segment has a name.

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <thread>

#include "shm/admin_client.h"
#include "shm/page_table.h"
#include "shm/pins.h"
#include "shm/wire.h"
#include "tests/e2e/stop_orders.h"
#include "tests/e2e/stopped_fixture.h"
#include "tests/support/plugin_worker.h"
#include "tests/support/survivors.h"

#ifdef KVTRIE_DEV

namespace kvtrie {
namespace {

using std::chrono::milliseconds;
using test::Child;
using test::eventually;
using test::kLongest;
using test::Line;
using test::PluginWorker;
using test::Prompt;
using test::Survivors;

constexpr std::uint32_t kPrompts = 30;  // about 100 pages: they fit
constexpr milliseconds kStopped{100};

class StoppedCoordinatorTest : public test::StoppedFixture {
 protected:
  void SetUp() override {
    program_ = KVTRIE_TEST_KVTRIED_STOPS;
    const std::string path = cache_.directory() + "/stop-orders";
    orders_ = test::map_stop_orders(path);
    ASSERT_NE(orders_, nullptr);
    ::setenv(test::kStopOrdersVariable, path.c_str(), 1);
    test::StoppedFixture::SetUp();
    survivors_ = std::make_unique<Survivors>(cache_, 3, kPrompts);
    ASSERT_TRUE(survivors_->go_on(30, milliseconds(0)));
  }
  void TearDown() override {
    if (survivors_) survivors_->end();
    test::StoppedFixture::TearDown();
    ::unsetenv(test::kStopOrdersVariable);
    ::munmap(orders_, sizeof *orders_);
  }

  CoordinatorAddress address() const { return {cache_.directory(), cache_.name()}; }
  bool stopped() const {
    int status = 0;
    return eventually([&] { return ::waitpid(daemon_->pid(), &status, WUNTRACED | WNOHANG) == daemon_->pid(); }) &&
           WIFSTOPPED(status);
  }
  void expect_workers_go_on(const std::string& place) {
    survivors_->clear_times();
    EXPECT_TRUE(survivors_->go_on(30, kStopped)) << place;
    survivors_->expect_nobody_waited(place, kLongest);
  }
  void expect_serves(const std::string& where) const {
    std::string message;
    EXPECT_TRUE(ping(address(), message)) << where << ": " << message;
  }
  // A process that asks for something, and what it got: 0 when it was right.
  template <typename Ask>
  static std::unique_ptr<Child> asking(Ask ask) {
    return std::make_unique<Child>([ask](Line) {
      try {
        return ask();
      } catch (const std::exception& wrong) {
        ::dprintf(2, "%s\n", wrong.what());
        return 1;
      }
    });
  }
  // Stops at each place while it does what `ask` wants.
  void stop_at_each(const std::vector<std::pair<const char*, std::uint32_t>>& places, const std::function<int()>& ask) {
    for (const auto& [place, hits] : places) {
      SCOPED_TRACE(place);
      test::order_stop(*orders_, place, hits);
      const std::unique_ptr<Child> asks = asking(ask);
      ASSERT_TRUE(stopped());
      expect_workers_go_on(place);
      daemon_->send(SIGCONT);
      EXPECT_EQ(asks->wait(), 0);
      expect_serves(place);
      EXPECT_TRUE(survivors_->go_on(10, milliseconds(0)));
    }
  }
  // A worker with a lease, Pending and Writing pages. Killed, its coordinator has something to reap.
  std::unique_ptr<Child> holder(std::uint32_t number) const {
    auto child = std::make_unique<Child>([this, number](Line line) {
      const PluginWorker worker(cache_, "holder");
      const Prompt tokens = PluginWorker::prompt(number, 3);
      kvtrie_sequence own{};
      (void)worker.cache(PluginWorker::prompt(number + 1, 2));
      (void)worker.begin(tokens, own);
      PluginWorker::must(worker.allocate(own, tokens.size() + 32, 5000), "allocate");
      line.say();
      return static_cast<int>(line.hear());
    });
    EXPECT_EQ(child->line().hear(), '+');
    return child;
  }
  int evict_all() const {
    const PluginWorker worker(cache_);
    std::uint64_t evicted = 0;
    PluginWorker::must(kvtrie_evict(worker.worker, worker.space, 0, &evicted), "evict");
    worker.detach();
    return 0;
  }

  test::StopOrders* orders_ = nullptr;
  std::unique_ptr<Survivors> survivors_;
};

TEST_F(StoppedCoordinatorTest, WhileItEvicts) {
  const std::uint64_t rescues = segment_->total(Counter::kRescues);
  stop_at_each({{"evict.after_condemn", 20}, {"evict.after_retire", 1}, {"finish.after_unindex", 1},
                {"evict.after_free", 1}, {"evict.after_condemn", 1}},
               [this] { return evict_all(); });
  EXPECT_GT(segment_->total(Counter::kRescues), rescues) << "Condemned pages are hits";
}

TEST_F(StoppedCoordinatorTest, WhileItReaps) {
  std::uint32_t number = 10;
  for (const char* const place :
       {"reap.after_reaping", "finish.after_unindex", "reap.before_held", "reap.after_chunk", "reap.after_lease",
        "reap.after_waits", "reap.after_identity_cleared"}) {
    SCOPED_TRACE(place);
    const std::unique_ptr<Child> dies = holder(number);
    const std::uint64_t reaped = segment_->total(Counter::kReapedWorkers);
    test::order_stop(*orders_, place, 1);
    dies->kill();
    ASSERT_TRUE(stopped());
    expect_workers_go_on(place);
    daemon_->send(SIGCONT);
    EXPECT_TRUE(eventually([&] { return segment_->total(Counter::kReapedWorkers) > reaped; }));
    expect_serves(place);
    number += 10;
  }
}

TEST_F(StoppedCoordinatorTest, WhileItAnswers) {
  stop_at_each({{"attach.after_identity", 1}, {"attach.after_attaching", 1}}, [this] {
    PluginWorker(cache_).detach();
    return 0;
  });
  stop_at_each({{"namespace.before_open", 1}}, [this] {
    const PluginWorker worker(cache_);
    const kvtrie_field field{"model", "another"};
    kvtrie_namespace space{};
    PluginWorker::must(kvtrie_open_namespace(worker.worker, &field, 1, "another", &space), "namespace");
    worker.detach();
    return 0;
  });
  stop_at_each({{"flush.before_generation", 1}, {"flush.after_generation", 1}}, [this] {
    const PluginWorker worker(cache_);
    const kvtrie_field field{"model", "another"};
    kvtrie_namespace space{};
    PluginWorker::must(kvtrie_open_namespace(worker.worker, &field, 1, "another", &space), "namespace");
    PluginWorker::must(kvtrie_flush(worker.worker, space), "flush");
    worker.detach();
    return 0;
  });
  const PluginWorker pinner(cache_);
  const kvtrie_sequence kept = pinner.cache(PluginWorker::prompt(10, 2));
  std::uint32_t page = 0;
  PluginWorker::must(kvtrie_get_pages(kept, 1, 1, &page), "pages");
  const Handle handle = Handle::page({page}, StateWord{segment_->descriptor({page}).state.load()});
  stop_at_each({{"pin.after_record", 1}, {"pin.after_lease", 1}, {"unpin.after_lease", 1}},
               [&] {
                 std::string message;
                 const Result<PinMade> pin = request_pin(address(), {handle, 0, "stopped"}, message);
                 if (!pin) throw test::Wrong("pin: " + message);
                 if (!request_unpin(address(), pin->pin, handle, message)) throw test::Wrong("unpin: " + message);
                 return 0;
               });
  PluginWorker::release(kept);
  pinner.detach();
}

// Killed with Condemned and Retiring pages and with a worker that died; its successor is stopped in the midst of taking
// over.
TEST_F(StoppedCoordinatorTest, WhileItAdopts) {
  std::uint32_t number = 10;
  for (const char* const place : {"adopt.after_slots", "reap.after_chunk", "adopt.after_page", "adopt.after_chunk",
                                  "adopt.after_pages", "adopt.after_epoch"}) {
    SCOPED_TRACE(place);
    const std::unique_ptr<Child> dies = holder(number);
    test::order_stop(*orders_, "evict.after_retire", 1);
    const std::unique_ptr<Child> asks = asking([this] {
      const PluginWorker worker(cache_);
      std::uint64_t evicted = 0;
      return kvtrie_evict(worker.worker, worker.space, 0, &evicted) == KVTRIE_E_NO_COORDINATOR ? 0 : 1;
    });
    ASSERT_TRUE(stopped());
    dies->kill();
    daemon_->send(SIGKILL);
    (void)daemon_->wait();
    EXPECT_EQ(asks->wait(), 0);
    test::order_stop(*orders_, place, 1);
    start();
    ASSERT_TRUE(stopped());
    expect_workers_go_on(place);
    daemon_->send(SIGCONT);
    ASSERT_TRUE(daemon_->ready()) << daemon_->err();
    expect_serves(place);
    EXPECT_TRUE(survivors_->go_on(10, milliseconds(0)));
    number += 10;
  }
}

// For longer than any time-out: who asked is told so, nothing else happens, and it goes on where it stood.
TEST_F(StoppedCoordinatorTest, ForLongWithCondemnedPages) {
  test::order_stop(*orders_, "evict.after_condemn", 20);
  const std::unique_ptr<Child> asks = asking([this] {
    const PluginWorker worker(cache_);
    std::uint64_t evicted = 0;
    const kvtrie_code code = kvtrie_evict(worker.worker, worker.space, 0, &evicted);
    worker.detach();
    return code == KVTRIE_E_TIMEOUT ? 0 : 1;
  });
  ASSERT_TRUE(stopped());
  survivors_->clear_times();
  EXPECT_EQ(asks->wait(), 0);
  EXPECT_TRUE(survivors_->go_on(30, milliseconds(0)));
  survivors_->expect_nobody_waited("evict.after_condemn", kLongest);
  daemon_->send(SIGCONT);
  // What was used meanwhile stays.
  EXPECT_TRUE(eventually([&] { return segment_->total(Counter::kEvictionRescued) > 0; }));
  EXPECT_GT(segment_->total(Counter::kRescues), 0U);
  EXPECT_EQ(asking([this] { return evict_all(); })->wait(), 0);
}

}  // namespace
}  // namespace kvtrie

#endif
