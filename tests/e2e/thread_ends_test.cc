// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A thread ends inside a call (as by exit of the thread alone, without unwinding) while its process lives, at each
// crash point of each call. Other threads of the process go on, on other sequences of its worker and on other workers,
// and calls on what the dead thread had in hand answer at once; kvtrie_detach works, and then the coordinator has
// everything back.

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <thread>

#include "shm/crash_point.h"
#include "tests/e2e/stopped_fixture.h"
#include "tests/support/stopped_victim.h"

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
using test::the_sequence;
using test::Wrong;

constexpr unsigned kSecondsMax = 60;  // then something hangs
constexpr int kPointsMax = 300;

// The calling thread ends at that crash point from now on; 0: nowhere.
thread_local int points_left = 0;

void end_there(const char*) {
  if (points_left != 0 && --points_left == 0) ::syscall(SYS_exit, 0);
}

template <typename Call>
auto in_time(const char* what, Call call) {
  const auto start = std::chrono::steady_clock::now();
  const auto result = call();
  if (std::chrono::steady_clock::now() - start > kLongest) throw Wrong(std::string(what) + " took too long");
  return result;
}

struct Scene {
  PluginWorker& worker;  // whose thread ends
  PluginWorker& other;
};

struct EndingCall {
  std::function<void(Scene&)> before;
  std::function<void(Scene&)> call;
  std::function<void(Scene&)> meanwhile;   // when the call waits
  std::function<void(Scene&)> afterwards;  // when the thread has ended, here or behind the call
};

class Engine {
 public:
  Engine(const test::TemporaryCache& cache, const Segment& segment) : cache_(cache), segment_(segment), other_(cache) {}

  // Ends a thread at each crash point of the call; how many there are.
  int end_at_each(const EndingCall& steps) {
    for (int n = 1; n < kPointsMax; ++n) {
      try {
        if (!end_at(n, steps)) return n - 1;
      } catch (const Wrong& wrong) {
        throw Wrong("at crash point " + std::to_string(n) + ": " + wrong.what());
      }
    }
    throw Wrong("the call does not end");
  }
  void detach() const { other_.detach(); }

 private:
  // False: the call returned before.
  bool end_at(int n, const EndingCall& steps) {
    PluginWorker worker(cache_, "threads");
    Scene scene{worker, other_};
    the_sequence() = {};
    steps.before(scene);
    bool returned = false;
    std::string failure;
    std::thread thread([&] {
      points_left = n;
      try {
        steps.call(scene);
      } catch (const std::exception& wrong) {
        failure = wrong.what();
      }
      points_left = 0;
      returned = true;
    });
    if (steps.meanwhile) {
      std::this_thread::sleep_for(milliseconds(20));
      steps.meanwhile(scene);
    }
    thread.join();
    if (!failure.empty()) throw Wrong(failure);
    if (steps.afterwards) steps.afterwards(scene);
    if (!returned) others_go_on(worker);
    (void)kvtrie_release(held_by_other_);
    held_by_other_ = {};
    kvtrie_code code = KVTRIE_E_BUSY;
    const bool detached = eventually([&] { return (code = kvtrie_detach(worker.worker)) != KVTRIE_E_BUSY; }, kLongest);
    if (!detached || code != KVTRIE_OK) throw Wrong(std::string("detach: ") + kvtrie_last_error());
    everything_is_back();
    return !returned;
  }

  // This thread is another one of the same process.
  void others_go_on(PluginWorker& worker) {
    if (the_sequence().id != 0) {
      const kvtrie_code code = in_time("a call on it", [] { return kvtrie_publish(the_sequence(), 16, nullptr); });
      if (code != KVTRIE_E_BUSY && code != KVTRIE_E_STALE) throw Wrong("a call on it answered " + std::to_string(code));
      // Its thread has ended for us a moment before it has for the kernel.
      const auto says_why = [] {
        (void)kvtrie_publish(the_sequence(), 16, nullptr);
        const std::string text = kvtrie_last_error();
        return text.find("kvtrie_detach") != std::string::npos || text.find("batch") != std::string::npos;
      };
      if (code == KVTRIE_E_BUSY && !eventually(says_why, kLongest)) {
        throw Wrong(std::string("no word about the thread's end: ") + kvtrie_last_error());
      }
    }
    std::uint32_t number = 700;
    for (const PluginWorker* of : {&worker, static_cast<PluginWorker*>(&other_)}) {
      for (int i = 0; i < 4; ++i) {  // so that all stripes are met
        const Prompt tokens = PluginWorker::prompt(number++, 2);
        const kvtrie_sequence sequence = in_time("the cycle of another thread", [&] { return of->cache(tokens); });
        kvtrie_sequence again{};
        if (of->begin(tokens, again) != 2) throw Wrong("what another thread published is not found");
        PluginWorker::release(again);
        in_time("release", [&] { return kvtrie_release(sequence); });
      }
    }
  }

  void everything_is_back() {
    const WorkerTable table(segment_);
    const auto alone = [&] { return table.stats().slots[static_cast<std::size_t>(SlotState::kActive)] == 1 &&
                                    table.stats().slots[static_cast<std::size_t>(SlotState::kLeaving)] == 0 &&
                                    table.stats().slots[static_cast<std::size_t>(SlotState::kReaping)] == 0; };
    if (!eventually(alone)) throw Wrong("the slot does not come back");
    std::uint64_t evicted = 0;
    PluginWorker::must(kvtrie_evict(other_.worker, {0}, 0, &evicted), "evict");
    const VerifyReport report = verify(segment_, {.at_rest = true});
    if (!report.clean()) throw Wrong(to_string(report.findings.at(0)));
    for (std::uint32_t i = 0; i < segment_.page_count(); ++i) {
      const StateWord word{segment_.descriptor({i}).state.load()};
      if (word.state() != PageState::kFree) throw Wrong(std::string("a page is ") + name_of(word.state()));
    }
    if (FreePages(segment_).count() != segment_.page_count()) throw Wrong("free bits");
  }

 public:
  // Pages of the other worker, so that there are none.
  void hold_all() {
    const Prompt tokens = PluginWorker::prompt(60, segment_.page_count());
    (void)other_.begin(tokens, held_by_other_);
    PluginWorker::must(other_.allocate(held_by_other_, FreePages(segment_).count() * PluginWorker::kTokens, 0), "hold");
  }
  void let_go() {
    PluginWorker::release(held_by_other_);
    held_by_other_ = {};
  }
  kvtrie_sequence& held_by_other() { return held_by_other_; }

 private:
  const test::TemporaryCache& cache_;
  const Segment& segment_;
  PluginWorker other_;
  kvtrie_sequence held_by_other_{};
};

class ThreadEndsTest : public test::StoppedFixture {
 protected:
  // In a process of its own, as an engine.
  template <typename Body>
  void engine(int points_least, Body body) {
    Child child([&](Line) {
      ::alarm(kSecondsMax);
      crash_hook.store(end_there);
      try {
        const Result<Segment> segment = open_segment(cache_.name(), Access::kReadWrite);
        Engine made(cache_, *segment);
        const int points = body(made);
        made.detach();
        if (points >= points_least) return 0;
        ::dprintf(2, "only %d crash points\n", points);
        return 2;
      } catch (const std::exception& wrong) {
        ::dprintf(2, "%s\n", wrong.what());
        return 1;
      }
    });
    EXPECT_EQ(child.wait(), 0);
  }
  void end_at_each(int points_least, test::StoppedCall (*make)(std::uint32_t)) {
    engine(points_least, [make](Engine& made) {
      const test::StoppedCall steps = make(10);
      return made.end_at_each({[&](Scene& scene) {
                                 PluginWorker::release(scene.other.cache(PluginWorker::prompt(10, 2)));
                                 if (steps.before) steps.before(scene.worker);
                               },
                               [&](Scene& scene) { steps.call(scene.worker); },
                               {},
                               {}});
    });
  }
};

TEST_F(ThreadEndsTest, InBegin) { end_at_each(4, test::stopped_begin); }
TEST_F(ThreadEndsTest, InAllocate) { end_at_each(15, test::stopped_allocate); }
TEST_F(ThreadEndsTest, InPublish) { end_at_each(4, test::stopped_publish); }
TEST_F(ThreadEndsTest, InRelease) { end_at_each(6, test::stopped_release); }
TEST_F(ThreadEndsTest, InFork) { end_at_each(5, test::stopped_fork); }
TEST_F(ThreadEndsTest, InPrepareBatch) { end_at_each(15, test::stopped_batch); }

// The others of the batch answer, too, and can be released.
TEST_F(ThreadEndsTest, InPublishOfABatch) {
  engine(4, [](Engine& made) {
    std::array<kvtrie_batch_item, 2> items{};
    const Prompt tokens = PluginWorker::prompt(12, 3);
    return made.end_at_each({[&](Scene& scene) {
                               for (kvtrie_batch_item& item : items) {
                                 item = {};
                                 item.size = sizeof item;
                                 item.name_space = scene.worker.space;
                                 item.tokens = tokens.data();
                                 item.token_count = item.total_tokens = tokens.size();
                               }
                               PluginWorker::must(
                                   kvtrie_prepare_batch(scene.worker.worker, items.data(), items.size(), nullptr),
                                   "batch");
                               scene.worker.compute(items[0].sequence, tokens);
                             },
                             [&](Scene& scene) {
                               (void)scene.worker.publish(items[0].sequence, tokens);
                               // When the thread ends, this is what another one finds.
                               const kvtrie_code code = in_time("a call on another of the batch", [&] {
                                 return kvtrie_publish(items[1].sequence, tokens.size(), nullptr);
                               });
                               if (code != KVTRIE_OK) throw Wrong("publish of the second");
                               the_sequence() = items[1].sequence;
                             },
                             {},
                             [&](Scene&) {
                               const kvtrie_code code = in_time("a call on another of the batch", [&] {
                                 return kvtrie_publish(items[1].sequence, tokens.size(), nullptr);
                               });
                               if (code != KVTRIE_OK && code != KVTRIE_E_BUSY) throw Wrong(kvtrie_last_error());
                               (void)in_time("its release", [&] { return kvtrie_release(items[1].sequence); });
                             }});
  });
}

// Another thread of the same worker waits for pages after that, and gets them.
TEST_F(ThreadEndsTest, InAWaitForPages) {
  engine(4, [](Engine& made) {
    const Prompt tokens = PluginWorker::prompt(12, 3);
    return made.end_at_each(
        {[&](Scene& scene) {
           made.hold_all();
           (void)scene.worker.begin(tokens, the_sequence());
         },
         [&](Scene& scene) {
           PluginWorker::must(scene.worker.allocate(the_sequence(), tokens.size(), 20'000), "allocate");
         },
         [&](Scene& scene) {
           const Prompt mine = PluginWorker::prompt(13, 3);
           kvtrie_sequence sequence{};
           (void)scene.worker.begin(mine, sequence);
           std::thread waits([&] { (void)scene.worker.allocate(sequence, mine.size(), 20'000); });
           std::this_thread::sleep_for(milliseconds(10));
           made.let_go();
           const auto start = std::chrono::steady_clock::now();
           waits.join();
           if (std::chrono::steady_clock::now() - start > kLongest) throw Wrong("the next one that waits hangs");
           std::uint32_t pages = 0;
           PluginWorker::must(kvtrie_page_count(sequence, &pages), "page count");
           if (pages != 3) throw Wrong("the next one that waited got nothing");
           PluginWorker::release(sequence);
         },
         {}});
  });
}

TEST_F(ThreadEndsTest, InAWaitForAnothersPages) {
  engine(4, [](Engine& made) {
    const Prompt tokens = PluginWorker::prompt(12, 3);
    return made.end_at_each({[&](Scene& scene) {
                               (void)scene.other.begin(tokens, made.held_by_other());
                               PluginWorker::must(scene.other.allocate(made.held_by_other(), tokens.size(), 0),
                                                  "allocate");
                               scene.other.compute(made.held_by_other(), tokens);
                               (void)scene.worker.begin(tokens, the_sequence());
                             },
                             [&](Scene&) {
                               kvtrie_begin_result hit{};
                               hit.size = sizeof hit;
                               PluginWorker::must(kvtrie_wait_pending(the_sequence(), 20'000, &hit), "wait");
                             },
                             [&](Scene& scene) {
                               if (scene.other.publish(made.held_by_other(), tokens) != 0) throw Wrong("publish");
                               made.let_go();
                             },
                             {}});
  });
}

// Then there is no handle to detach: its slot, and what it held, come back when the process ends. Others attach
// meanwhile.
TEST_F(ThreadEndsTest, InAttachAndDetach) {
  engine(6, [this](Engine&) {
    int points = 0;
    for (const bool detaches : {false, true}) {
      for (int n = 1;; ++n) {
        bool returned = false;
        std::unique_ptr<PluginWorker> worker;
        kvtrie_sequence open{};
        if (detaches) {
          worker = std::make_unique<PluginWorker>(cache_);
          (void)worker->begin(PluginWorker::prompt(12, 2), open);
          PluginWorker::must(worker->allocate(open, 32, 0), "allocate");
        }
        std::thread thread([&] {
          points_left = n;
          if (detaches) {
            worker->detach();
          } else {
            worker = std::make_unique<PluginWorker>(cache_);
          }
          points_left = 0;
          returned = true;
        });
        thread.join();
        if (!returned && detaches) {
          const Prompt tokens = PluginWorker::prompt(12, 2);
          kvtrie_begin_result hit{};
          hit.size = sizeof hit;
          const kvtrie_code code = in_time("a call on what is detached", [&] {
            return kvtrie_begin(worker->worker, worker->space, tokens.data(), tokens.size(), nullptr, &hit, &open);
          });
          if (code != KVTRIE_E_STALE || kvtrie_detach(worker->worker) != KVTRIE_E_STALE) throw Wrong("not over");
        }
        const PluginWorker another(cache_);
        PluginWorker::release(in_time("a cycle", [&] { return another.cache(PluginWorker::prompt(400, 2)); }));
        another.detach();
        if (returned) {
          if (!detaches) worker->detach();
          break;
        }
        ++points;
      }
    }
    return points;
  });
}

// POSIX lets calls that talk to the coordinator be cancelled; ours are not, until they return.
TEST_F(ThreadEndsTest, ACancelledThreadEndsAfterItsCall) {
  Child child([this](Line line) {
    ::alarm(kSecondsMax);
    try {
      const PluginWorker worker(cache_);
      line.say();
      if (line.hear() != '+') return 2;
      kvtrie_code code = KVTRIE_OK;
      bool went_on = false;
      std::thread asks([&] {
        std::uint64_t evicted = 0;
        code = kvtrie_evict(worker.worker, worker.space, 0, &evicted);
        ::pthread_testcancel();
        went_on = true;
      });
      std::this_thread::sleep_for(milliseconds(50));
      ::pthread_cancel(asks.native_handle());
      std::this_thread::sleep_for(milliseconds(50));
      line.say();
      asks.join();
      worker.detach();
      return code == KVTRIE_OK && !went_on ? 0 : 3;
    } catch (const std::exception& wrong) {
      ::dprintf(2, "%s\n", wrong.what());
      return 1;
    }
  });
  ASSERT_EQ(child.line().hear(), '+');
  daemon_->send(SIGSTOP);
  child.line().say();
  EXPECT_EQ(child.line().hear(), '+');
  daemon_->send(SIGCONT);
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace kvtrie

#endif
