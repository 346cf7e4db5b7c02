// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A worker process that the kernel stops at a named crash point of one call, while it holds a lease on a cached prompt,
// Pending pages and Writing ones; and what it does after SIGCONT: the call's end, publishing, and a look at all its
// bytes.
#pragma once

#include "shm/crash_point.h"

#ifdef KVTRIE_DEV
#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shm/segment.h"
#include "tests/shm/test_support.h"
#include "tests/support/eventually.h"
#include "tests/support/plugin_worker.h"

namespace kvtrie::test {

// The call in which it is stopped. `before` comes ahead of it, `after` behind it.
struct StoppedCall {
  std::function<void(PluginWorker&)> before;
  std::function<void(PluginWorker&)> call;
  std::function<void(PluginWorker&)> after;
};

// What the segment says that a slot holds.
struct HeldBySlot {
  std::map<std::uint32_t, std::uint64_t> pages;   // Writing and Pending ones: state words
  std::map<std::uint32_t, std::uint64_t> leases;  // by lease slot: handles of pages
  std::uint64_t slot_state = 0;

  bool operator==(const HeldBySlot&) const = default;
};

inline HeldBySlot held_by_slot(const Segment& segment, WorkerId slot) {
  HeldBySlot held;
  for (std::uint32_t i = 0; i < segment.page_count(); ++i) {
    const StateWord word{segment.descriptor({i}).state.load()};
    if (word.owned() && word.owner() == slot) held.pages[i] = word.raw;
  }
  std::uint32_t i = 0;
  for (const LeaseSlot& lease : segment.leases(slot)) {
    if (Handle{lease.handle.load()}.is_page()) held.leases[i] = lease.handle.load();
    ++i;
  }
  held.slot_state = segment.worker(slot).slot_state.load();
  return held;
}

class StoppedVictim {
 public:
  // Prompts of its own begin at `number`, which leaves ten.
  StoppedVictim(const TemporaryCache& cache, const Segment& segment, std::string place, std::uint32_t number,
                StoppedCall steps)
      : segment_(segment), place_(std::move(place)) {
    child_ = std::make_unique<Child>([&cache, this, number, &steps](Line line) {
      try {
        return run(cache, line, number, steps);
      } catch (const std::exception& wrong) {
        ::dprintf(2, "the stopped process: %s\n", wrong.what());
        return 1;
      }
    });
  }
  StoppedVictim(const StoppedVictim&) = delete;
  StoppedVictim& operator=(const StoppedVictim&) = delete;

  pid_t pid() const { return child_->pid(); }
  const std::string& place() const { return place_; }
  bool ready() const { return child_->line().hear() == 'r'; }
  // Into its call, until the kernel says that it is stopped.
  bool stop() {
    if (!child_->line().say()) return false;
    int status = 0;
    const auto changed = [&] { return ::waitpid(child_->pid(), &status, WUNTRACED | WNOHANG) == child_->pid(); };
    if (!eventually(changed) || !WIFSTOPPED(status)) {
      ADD_FAILURE() << place_ << ": it did not come there, or ended first (status " << status << ")";
      return false;
    }
    for (std::uint16_t i = 1; i < segment_.slot_count(); ++i) {
      if (segment_.worker({i}).pid.load() == static_cast<std::uint32_t>(child_->pid())) slot_ = {i};
    }
    held_ = held_by_slot(segment_, slot_);
    // Of leases that protect something; one that was just stored may find its page gone.
    std::erase_if(held_.leases, [&](const auto& lease) { return !protects(lease.second); });
    return slot_.value != 0;
  }
  // Nothing of it was taken: pages, leases and slot are as they were, and so are the pages that its leases protect.
  void expect_all_still_there() const {
    const HeldBySlot now = held_by_slot(segment_, slot_);
    EXPECT_EQ(now.slot_state, held_.slot_state) << place_;
    EXPECT_EQ(now.pages, held_.pages) << place_;
    EXPECT_GE(held_.pages.size(), 4U) << place_ << ": it holds Pending and Writing pages";
    EXPECT_GE(held_.leases.size(), 1U) << place_;
    for (const auto& [lease, handle] : held_.leases) {
      const auto found = now.leases.find(lease);
      EXPECT_TRUE(found != now.leases.end() && found->second == handle) << place_ << ": lease " << lease;
      EXPECT_TRUE(protects(handle)) << place_ << ": the page of lease " << lease << " went";
    }
  }
  void go_on() const { child_->send(SIGCONT); }
  // Of all that comes after: 0 when it was right.
  int finish() { return child_->wait(); }
  int go_on_and_finish() {
    go_on();
    return finish();
  }

 private:
  bool protects(std::uint64_t raw) const {
    const Handle handle{raw};
    const StateWord word{segment_.descriptor(handle.page_index()).state.load()};
    return handle.same_life(word) && (word.readable() || word.state() == PageState::kPending);
  }

  int run(const TemporaryCache& cache, Line line, std::uint32_t number, const StoppedCall& steps) const {
    PluginWorker worker(cache, "stopped");
    const Prompt leased = PluginWorker::prompt(number, 2);
    const Prompt held = PluginWorker::prompt(number + 1, 2);
    PluginWorker::release(worker.cache(leased));
    kvtrie_sequence lease{};
    kvtrie_sequence own{};
    if (worker.begin(leased, lease) != 2) throw Wrong("what was cached a moment ago is gone");
    (void)worker.begin(held, own);
    PluginWorker::must(worker.allocate(own, held.size() + 2 * PluginWorker::kTokens, 5000), "allocate");
    if (steps.before) steps.before(worker);
    line.say('r');
    if (line.hear() != '+') return 2;
    stops_at() = place_.c_str();
    crash_hook.store(stop_there);
    steps.call(worker);
    crash_hook.store(nullptr);
    if (stops_at() != nullptr) return 3;  // it never came there
    if (steps.after) steps.after(worker);
    worker.check_bytes(lease, leased, 2);
    worker.compute(own, held);
    worker.publish_all(own, held);
    kvtrie_sequence again{};
    if (worker.begin(held, again) != 2) throw Wrong("what it published is not found");
    for (const kvtrie_sequence sequence : {again, own, lease}) PluginWorker::release(sequence);
    worker.detach();
    return 0;
  }
  static const char*& stops_at() {
    static const char* place = nullptr;
    return place;
  }
  static void stop_there(const char* place) {
    if (stops_at() == nullptr || std::strcmp(place, stops_at()) != 0) return;
    stops_at() = nullptr;
    ::kill(::getpid(), SIGSTOP);
  }

  const Segment& segment_;
  std::string place_;
  WorkerId slot_;
  HeldBySlot held_;
  std::unique_ptr<Child> child_;
};

// --- calls that are stopped

struct NamedCall {
  const char* name;
  std::vector<const char*> places;
  StoppedCall (*make)(std::uint32_t number);
};

inline kvtrie_sequence& the_sequence() {
  static kvtrie_sequence sequence{};
  return sequence;
}

// Begun, and pages for all of it.
inline void prepare(PluginWorker& worker, const Prompt& tokens) {
  (void)worker.begin(tokens, the_sequence());
  PluginWorker::must(worker.allocate(the_sequence(), tokens.size(), 5000), "allocate");
  worker.compute(the_sequence(), tokens);
}
inline void publish_and_look(PluginWorker& worker, const Prompt& tokens) {
  worker.compute(the_sequence(), tokens);
  worker.publish_all(the_sequence(), tokens);
  kvtrie_sequence again{};
  if (worker.begin(tokens, again) * PluginWorker::kTokens != tokens.size()) throw Wrong("its publication is not found");
  PluginWorker::release(again);
  PluginWorker::release(the_sequence());
}

inline StoppedCall stopped_begin(std::uint32_t number) {
  const Prompt tokens = PluginWorker::prompt(number, 2);  // cached, and under a lease already
  return {nullptr,
          [tokens](PluginWorker& worker) {
            if (worker.begin(tokens, the_sequence()) != 2) throw Wrong("a leased page is no hit");
          },
          [](PluginWorker&) { PluginWorker::release(the_sequence()); }};
}
inline StoppedCall stopped_allocate(std::uint32_t number) {
  const Prompt tokens = PluginWorker::prompt(number + 2, 3);
  return {[tokens](PluginWorker& worker) { (void)worker.begin(tokens, the_sequence()); },
          [tokens](PluginWorker& worker) {
            PluginWorker::must(worker.allocate(the_sequence(), tokens.size(), 10'000), "allocate");
          },
          [tokens](PluginWorker& worker) { publish_and_look(worker, tokens); }};
}
inline StoppedCall stopped_publish(std::uint32_t number) {
  const Prompt tokens = PluginWorker::prompt(number + 2, 3);
  return {[tokens](PluginWorker& worker) { prepare(worker, tokens); },
          [tokens](PluginWorker& worker) { (void)worker.publish(the_sequence(), tokens); },
          [tokens](PluginWorker& worker) { publish_and_look(worker, tokens); }};
}
inline StoppedCall stopped_release(std::uint32_t number) {
  const Prompt tokens = PluginWorker::prompt(number + 2, 3);
  return {[tokens](PluginWorker& worker) {
            prepare(worker, tokens);
            Prompt first(tokens.begin(), tokens.begin() + PluginWorker::kTokens);
            worker.publish_all(the_sequence(), first);  // so it has a lease of its own to drop
          },
          [](PluginWorker&) { PluginWorker::release(the_sequence()); },
          [tokens](PluginWorker& worker) {
            prepare(worker, tokens);
            publish_and_look(worker, tokens);
          }};
}
inline StoppedCall stopped_fork(std::uint32_t number) {
  const Prompt tokens = PluginWorker::prompt(number + 2, 3);
  static kvtrie_sequence child{};
  return {[tokens](PluginWorker& worker) {
            prepare(worker, tokens);
            Prompt first(tokens.begin(), tokens.begin() + PluginWorker::kTokens);
            worker.publish_all(the_sequence(), first);
          },
          [](PluginWorker&) {
            kvtrie_fork_options options{};
            options.size = sizeof options;
            options.wait_ms = 10'000;
            PluginWorker::must(kvtrie_fork(the_sequence(), &options, &child), "fork");
          },
          [tokens](PluginWorker& worker) {
            publish_and_look(worker, tokens);
            PluginWorker::release(child);
          }};
}
inline StoppedCall stopped_batch(std::uint32_t number) {
  static std::array<kvtrie_batch_item, 2> items{};
  const Prompt tokens = PluginWorker::prompt(number + 2, 3);  // both: the second borrows
  return {nullptr,
          [tokens](PluginWorker& worker) {
            for (kvtrie_batch_item& item : items) {
              item = {};
              item.size = sizeof item;
              item.name_space = worker.space;
              item.tokens = tokens.data();
              item.token_count = tokens.size();
              item.total_tokens = tokens.size();
            }
            kvtrie_allocate_options options{};
            options.size = sizeof options;
            options.wait_ms = 10'000;
            PluginWorker::must(kvtrie_prepare_batch(worker.worker, items.data(), items.size(), &options), "batch");
          },
          [tokens](PluginWorker& worker) {
            the_sequence() = items[0].sequence;
            publish_and_look(worker, tokens);
            PluginWorker::release(items[1].sequence);
          }};
}

}  // namespace kvtrie::test
#endif
