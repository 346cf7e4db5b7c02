// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker that is stopped (SIGSTOP) at chosen places of its calls loses nothing and keeps nobody waiting (C5): while
// others go on under the pressure of evictions, a reap and an adoption, all that it holds stays; after SIGCONT it goes
// on as if nothing had been.

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "shm/free_pages.h"
#include "shm/wire.h"
#include "tests/e2e/stopped_fixture.h"
#include "tests/support/stopped_victim.h"
#include "tests/support/survivors.h"

#ifdef KVTRIE_DEV

namespace kvtrie {
namespace {

using std::chrono::milliseconds;
using test::eventually;
using test::kLongest;
using test::PluginWorker;
using test::Prompt;
using test::StoppedCall;
using test::StoppedVictim;
using test::Survivors;

constexpr std::uint32_t kPrompts = 100;  // 350 pages: more than there are
constexpr milliseconds kStopped{150};
// Longer than any time-out of the code: 5 s are given to who attaches.
constexpr milliseconds kLongStop{kWireTimeoutMs + 700};

class StoppedWorkerTest : public test::StoppedFixture {
 protected:
  std::uint64_t passed_by() const { return segment_->total(Counter::kStripesPassedBy); }

  // Stopped at each of the places in turn, while the others go on.
  void stop_at_each(const std::vector<const char*>& places, StoppedCall (*make)(std::uint32_t),
                    bool holds_stripe = false) {
    Survivors survivors(cache_, 3, kPrompts);
    survivors.press(true);
    ASSERT_TRUE(survivors.go_on(50, milliseconds(0)));
    std::uint32_t number = 10;
    for (const char* const place : places) {
      SCOPED_TRACE(place);
      StoppedVictim victim(cache_, *segment_, place, number, make(number));
      ASSERT_TRUE(victim.ready());
      ASSERT_TRUE(victim.stop());
      const std::uint64_t passed_before = passed_by();
      const std::uint64_t evicted_before = survivors.evicted();
      survivors.clear_times();
      ASSERT_TRUE(survivors.go_on(30, kStopped));
      ASSERT_TRUE(eventually([&] { return survivors.evicted() > evicted_before; })) << "no pressure, no proof";
      survivors.expect_nobody_waited(place, kLongest);
      if (holds_stripe) {
        EXPECT_GT(passed_by(), passed_before);
      }
      victim.expect_all_still_there();
      EXPECT_EQ(victim.go_on_and_finish(), 0);
      ASSERT_TRUE(survivors.go_on(10, milliseconds(0)));
      number += 10;
    }
    survivors.end();
  }
};

TEST_F(StoppedWorkerTest, InBegin) {
  stop_at_each({"walk.after_page", "lease.before_store", "lease.after_store"}, test::stopped_begin);
}

TEST_F(StoppedWorkerTest, InAllocate) {
  stop_at_each({"take.after_held", "take.after_bits", "take.after_state", "announce.after_node",
                "announce.after_unlock"},
               test::stopped_allocate);
}

TEST_F(StoppedWorkerTest, HoldingAStripe) {
  stop_at_each({"announce.after_lock", "announce.after_pending", "announce.after_index_store"}, test::stopped_allocate,
               true);
}

TEST_F(StoppedWorkerTest, InPublish) {
  stop_at_each({"publish.after_lease", "publish.after_live"}, test::stopped_publish);
}

TEST_F(StoppedWorkerTest, InRelease) {
  stop_at_each({"release.after_unindex", "give_back.after_free", "give_back.after_bits", "release.before_lease",
                "release.after_lease"},
               test::stopped_release);
}

TEST_F(StoppedWorkerTest, InFork) {
  stop_at_each({"take.after_bits", "lease.before_store", "lease.after_store"}, test::stopped_fork);
}

TEST_F(StoppedWorkerTest, InABatch) {
  stop_at_each({"batch.after_take", "take.after_state", "announce.after_index_store"}, test::stopped_batch);
}

// What stayed private since its stripe was held is tried again by the next call, and then all can match it.
TEST_F(StoppedWorkerTest, APagePassedByIsPublishedByTheNextCall) {
  PluginWorker worker(cache_);
  StoppedVictim victim(cache_, *segment_, "announce.after_lock", 10, test::stopped_allocate(10));
  ASSERT_TRUE(victim.ready());
  ASSERT_TRUE(victim.stop());
  std::vector<std::pair<Prompt, kvtrie_sequence>> kept_private;
  const std::uint64_t before = passed_by();
  for (std::uint32_t number = 500; kept_private.size() < 3 && number < 560; ++number) {
    const Prompt tokens = PluginWorker::prompt(number, 1);
    kvtrie_sequence sequence{};
    (void)worker.begin(tokens, sequence);
    PluginWorker::must(worker.allocate(sequence, tokens.size(), 0), "allocate");
    worker.compute(sequence, tokens);
    if (worker.publish(sequence, tokens) == 0) {
      PluginWorker::release(sequence);
      continue;
    }
    kept_private.emplace_back(tokens, sequence);
  }
  ASSERT_EQ(kept_private.size(), 3U);
  EXPECT_EQ(passed_by(), before + 6) << "each in allocate, and in publish";
  for (const auto& [tokens, sequence] : kept_private) {
    EXPECT_EQ(worker.publish(sequence, tokens), 1U) << "its holder is still stopped";
  }
  EXPECT_EQ(victim.go_on_and_finish(), 0);
  for (const auto& [tokens, sequence] : kept_private) {
    EXPECT_EQ(worker.publish(sequence, tokens), 0U);
    kvtrie_sequence found{};
    EXPECT_EQ(worker.begin(tokens, found), 1U);
    PluginWorker::release(found);
    PluginWorker::release(sequence);
  }
  worker.detach();
}

// The owner of pages that somebody waits for publishes without waiting for him.
TEST_F(StoppedWorkerTest, WaitingForAnothersPages) {
  PluginWorker owner(cache_);
  std::uint32_t number = 10;
  for (const char* const place : {"wait_pending.before_bit", "wait_pending.after_bit", "wait_pending.before_sleep"}) {
    const Prompt tokens = PluginWorker::prompt(number + 2, 3);
    kvtrie_sequence announced{};
    (void)owner.begin(tokens, announced);
    PluginWorker::must(owner.allocate(announced, tokens.size(), 0), "allocate");
    owner.compute(announced, tokens);
    StoppedVictim victim(cache_, *segment_, place, number,
                         {[&](PluginWorker& worker) { (void)worker.begin(tokens, test::the_sequence()); },
                          [&](PluginWorker&) {
                            kvtrie_begin_result hit{};
                            hit.size = sizeof hit;
                            PluginWorker::must(kvtrie_wait_pending(test::the_sequence(), 20'000, &hit), "wait");
                            if (hit.cached_pages != 3) throw test::Wrong("what came is no hit");
                          },
                          [&](PluginWorker& worker) {
                            worker.check_bytes(test::the_sequence(), tokens, 3);
                            PluginWorker::release(test::the_sequence());
                          }});
    ASSERT_TRUE(victim.ready());
    ASSERT_TRUE(victim.stop());
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(owner.publish(announced, tokens), 0U);
    PluginWorker::release(announced);
    EXPECT_LT(std::chrono::steady_clock::now() - start, kLongest) << place;
    victim.expect_all_still_there();
    EXPECT_EQ(victim.go_on_and_finish(), 0) << place;
    number += 10;
  }
  owner.detach();
}

// Its wish binds others for 200 ms (W3), and a reservation of the coordinator for 300 ms, though it is the oldest.
TEST_F(StoppedWorkerTest, WaitingForPagesBindsNobodyForLong) {
  PluginWorker holder(cache_);
  const Prompt wanted = PluginWorker::prompt(12, 120);
  StoppedVictim victim(cache_, *segment_, "wait.after_wanted", 10,
                       {[&](PluginWorker& worker) { (void)worker.begin(wanted, test::the_sequence()); },
                        [&](PluginWorker& worker) {
                          PluginWorker::must(worker.allocate(test::the_sequence(), wanted.size(), 30'000), "allocate");
                        },
                        [&](PluginWorker&) { PluginWorker::release(test::the_sequence()); }});
  ASSERT_TRUE(victim.ready());
  std::vector<kvtrie_sequence> parts;  // of the holder, ten pages each, all there are
  while (FreePages(*segment_).count() >= 10) {
    parts.emplace_back();
    const Prompt tokens = PluginWorker::prompt(100 + static_cast<std::uint32_t>(parts.size()), 10);
    (void)holder.begin(tokens, parts.back());
    PluginWorker::must(holder.allocate(parts.back(), tokens.size(), 0), "allocate");
  }
  ASSERT_TRUE(victim.stop());
  for (int i = 0; i < 3; ++i) {  // far fewer than it waits for
    PluginWorker::release(parts.back());
    parts.pop_back();
  }
  PluginWorker newcomer(cache_);
  const Prompt few = PluginWorker::prompt(90, 10);
  kvtrie_sequence sequence{};
  (void)newcomer.begin(few, sequence);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(newcomer.allocate(sequence, few.size(), 15'000), KVTRIE_OK) << kvtrie_last_error();
  EXPECT_LT(std::chrono::steady_clock::now() - start, milliseconds(300) + kLongest);
  victim.expect_all_still_there();
  PluginWorker::release(sequence);
  for (const kvtrie_sequence part : parts) PluginWorker::release(part);
  EXPECT_EQ(victim.go_on_and_finish(), 0);
  holder.detach();
  newcomer.detach();
}

// Many at once, stopped for longer than any time-out, while workers die and are reaped, and the coordinator dies and
// its successor adopts the cache. One more is in the midst of attaching: he alone loses his place, and is told to come
// again.
TEST_F(StoppedWorkerTest, ManyForLongThroughAReapAndAnAdoption) {
  struct Stop {
    const char* place;
    StoppedCall (*make)(std::uint32_t);
  };
  // Who holds a stripe comes last: before him all come to their places.
  const Stop stops[] = {
      {"lease.after_store", test::stopped_begin},      {"take.after_held", test::stopped_allocate},
      {"take.after_bits", test::stopped_allocate},     {"take.after_state", test::stopped_allocate},
      {"announce.after_node", test::stopped_allocate}, {"publish.after_lease", test::stopped_publish},
      {"publish.after_live", test::stopped_publish},   {"release.after_unindex", test::stopped_release},
      {"give_back.after_free", test::stopped_release}, {"lease.before_store", test::stopped_fork},
      {"batch.after_take", test::stopped_batch},       {"announce.after_index_store", test::stopped_allocate}};
  std::vector<std::unique_ptr<StoppedVictim>> victims;
  std::uint32_t number = 10;
  for (const Stop& stop : stops) {
    victims.push_back(std::make_unique<StoppedVictim>(cache_, *segment_, stop.place, number, stop.make(number)));
    ASSERT_TRUE(victims.back()->ready()) << stop.place;
    number += 10;
  }
  test::Child attaching([this](test::Line) {
    crash_hook.store([](const char* place) {
      if (std::string(place) == "attach.before_confirm") ::kill(::getpid(), SIGSTOP);
    });
    try {
      const PluginWorker worker(cache_);
      return 2;
    } catch (const test::Wrong& wrong) {
      if (std::string(wrong.what()).find("attach") == std::string::npos) return 3;
    }
    crash_hook.store(nullptr);
    PluginWorker(cache_).detach();
    return 0;
  });
  int status = 0;
  ASSERT_TRUE(
      eventually([&] { return ::waitpid(attaching.pid(), &status, WUNTRACED | WNOHANG) == attaching.pid(); }));
  ASSERT_TRUE(WIFSTOPPED(status));
  Survivors survivors(cache_, 4, kPrompts);
  survivors.press(true);
  ASSERT_TRUE(survivors.go_on(20, milliseconds(0)));
  for (const auto& victim : victims) ASSERT_TRUE(victim->stop()) << victim->place();
  survivors.clear_times();
  const auto end = std::chrono::steady_clock::now() + kLongStop;
  ASSERT_TRUE(survivors.go_on(30, milliseconds(300)));
  survivors.expect_nobody_waited("twelve are stopped", kLongest);

  survivors.kill(3);
  EXPECT_TRUE(eventually([&] { return segment_->total(Counter::kReapedWorkers) >= 1; }));
  daemon_->send(SIGKILL);
  (void)daemon_->wait();
  EXPECT_TRUE(survivors.go_on(1, milliseconds(0))) << "without a coordinator";
  start();
  ASSERT_TRUE(daemon_->ready()) << daemon_->err();
  ASSERT_TRUE(survivors.go_on(30, milliseconds(0)));
  const std::uint64_t evicted = survivors.evicted();
  EXPECT_TRUE(eventually([&] { return survivors.evicted() > evicted; }));
  std::this_thread::sleep_until(end);

  for (const auto& victim : victims) victim->expect_all_still_there();
  attaching.send(SIGCONT);
  EXPECT_EQ(attaching.wait(), 0);
  // Each finishes while the others are still stopped, but for the stripe's holder: he first, since all want his stripe.
  EXPECT_EQ(victims.back()->go_on_and_finish(), 0) << victims.back()->place();
  victims.pop_back();
  for (const auto& victim : victims) EXPECT_EQ(victim->go_on_and_finish(), 0) << victim->place();
  survivors.end();
}

// The freezer stops as SIGSTOP does, but nobody is told. Version 2 of cgroups, or 1.
TEST_F(StoppedWorkerTest, ByTheFreezer) {
  const auto write = [](const std::string& file, const std::string& text) {
    std::ofstream out(file);
    out << text << std::flush;
    return out.good();
  };
  const bool second = std::filesystem::exists("/sys/fs/cgroup/cgroup.controllers");
  const std::string group =
      std::string(second ? "/sys/fs/cgroup/" : "/sys/fs/cgroup/freezer/") + test::unique_name("kvtrie-test");
  if (::mkdir(group.c_str(), 0700) != 0) GTEST_SKIP() << group << ": " << std::strerror(errno);
  const std::string control = group + (second ? "/cgroup.freeze" : "/freezer.state");
  {
    Survivors survivors(cache_, 3, kPrompts);
    survivors.press(true);
    StoppedVictim victim(cache_, *segment_, "announce.after_lock", 10, test::stopped_allocate(10));
    ASSERT_TRUE(victim.ready());
    ASSERT_TRUE(victim.stop());
    const bool in = write(group + "/cgroup.procs", std::to_string(victim.pid()));
    if (in) {
      EXPECT_TRUE(write(control, second ? "1" : "FROZEN"));
      victim.go_on();  // from SIGSTOP, but not out of the freezer
    }
    const std::uint64_t before = passed_by();
    EXPECT_TRUE(survivors.go_on(30, kStopped));
    survivors.expect_nobody_waited("frozen", kLongest);
    EXPECT_GT(passed_by(), before);
    victim.expect_all_still_there();
    EXPECT_TRUE(!in || write(control, second ? "0" : "THAWED"));
    EXPECT_EQ(victim.go_on_and_finish(), 0);
    survivors.end();
    ::rmdir(group.c_str());
    if (!in) GTEST_SKIP() << group << ": a process may not be put there";
  }
}

}  // namespace
}  // namespace kvtrie

#endif
