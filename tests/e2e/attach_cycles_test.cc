// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Attaching and leaving ten thousand times, with the plugin as it is shipped and a real kvtried: no descriptor, mapping
// or byte is left, neither here nor there, nor in the segment. And the same of processes that die in the midst of it.

#include <gtest/gtest.h>
#include <malloc.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "shm/free_pages.h"
#include "shm/lease_table.h"
#include "shm/worker_table.h"
#include "tests/support/served_cache.h"
#include "worker_plugin/kvtrie.h"

namespace kvtrie {
namespace {

using test::Child;
using test::eventually;
using test::Line;

constexpr int kCycles = 10'000;
constexpr int kWarmUp = 500;  // until caches of the allocator and of the process have their size
constexpr int kKills = 300;
constexpr std::uint32_t kPages = 64;
constexpr std::uint32_t kWorkers = 4;
// Less than 16 bytes a cycle, more than what an allocator's bins and a stack do by themselves.
constexpr std::int64_t kNoise = 64 * 1024;

// What a process has of everything that can leak.
struct Held {
  std::int64_t descriptors = 0;
  std::int64_t mappings = 0;
  std::int64_t anonymous_bytes = 0;  // resident
  std::int64_t address_bytes = 0;
};

std::int64_t kib_of(const std::string& status, const std::string& name) {
  const std::size_t at = status.find("\n" + name + ":");
  return at == std::string::npos ? -1 : std::stoll(status.substr(at + name.size() + 2));
}

Held held_by(pid_t pid) {
  const std::string process = "/proc/" + std::to_string(pid);
  Held held;
  const std::filesystem::directory_iterator descriptors(process + "/fd");
  held.descriptors = std::distance(begin(descriptors), end(descriptors));
  std::ifstream maps(process + "/maps");
  held.mappings = std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
  std::ifstream file(process + "/status");
  const std::string status{std::istreambuf_iterator<char>(file), {}};
  held.anonymous_bytes = kib_of(status, "RssAnon") * 1024;
  held.address_bytes = kib_of(status, "VmSize") * 1024;
  EXPECT_GT(held.anonymous_bytes, 0);
  return held;
}

void expect_no_more(const Held& before, const Held& after, const char* whose) {
  EXPECT_LE(after.descriptors, before.descriptors) << whose;
  EXPECT_LE(after.mappings, before.mappings + 4) << whose;  // the kernel merges neighbours, or not
  EXPECT_LE(after.address_bytes, before.address_bytes + kNoise) << whose;
  EXPECT_LE(after.anonymous_bytes, before.anonymous_bytes + 2 * kNoise) << whose;
}

std::int64_t heap_bytes() {
  const struct mallinfo2 heap = ::mallinfo2();
  return static_cast<std::int64_t>(heap.uordblks + heap.hblkhd);
}

class AttachCyclesTest : public test::ServedCacheTest {
 protected:
  AttachCyclesTest() : ServedCacheTest(kPages, kWorkers) {}

  kvtrie_worker attach() const {
    kvtrie_attach_options options{};
    options.size = sizeof options;
    options.cache = cache_.name().c_str();
    options.directory = cache_.directory().c_str();
    options.name = "cycles";
    kvtrie_worker worker{0};
    EXPECT_EQ(kvtrie_attach(&options, &worker), KVTRIE_OK) << kvtrie_last_error();
    return worker;
  }
  // A namespace, a prompt of three pages of which two are published and one is left, and a hit; nothing is released.
  static void work(kvtrie_worker worker, std::uint32_t number) {
    const kvtrie_field field{"model", "cycles"};
    kvtrie_namespace space{0};
    EXPECT_EQ(kvtrie_open_namespace(worker, &field, 1, "cycles", &space), KVTRIE_OK) << kvtrie_last_error();
    std::array<std::uint32_t, 48> tokens{};
    tokens.fill(number % 7);
    kvtrie_begin_result result{};
    result.size = sizeof result;
    kvtrie_sequence first{0}, second{0};
    EXPECT_EQ(kvtrie_begin(worker, space, tokens.data(), tokens.size(), nullptr, &result, &first), KVTRIE_OK)
        << kvtrie_last_error();
    EXPECT_EQ(kvtrie_allocate(first, tokens.size(), nullptr), KVTRIE_OK) << kvtrie_last_error();
    EXPECT_EQ(kvtrie_publish(first, 32, nullptr), KVTRIE_OK) << kvtrie_last_error();
    EXPECT_EQ(kvtrie_begin(worker, space, tokens.data(), tokens.size(), nullptr, &result, &second), KVTRIE_OK)
        << kvtrie_last_error();
    EXPECT_EQ(result.cached_tokens, 32U);
  }
  // All that workers held is free again, and what they published is cached.
  void expect_nothing_held() const {
    EXPECT_TRUE(eventually([&] { return WorkerTable(*segment_).stats().slots[0] == kWorkers; }));
    EXPECT_EQ(LeaseTable(*segment_).stats().all(), 0U);
    EXPECT_EQ(FreePages(*segment_).count(), kPages - 7 * 2);
  }
};

TEST_F(AttachCyclesTest, TenThousandLeaveNothing) {
  Child engine([this](Line line) {
    std::uint32_t number = 0;
    const auto cycles = [&](int count) {
      for (int i = 0; i < count && !HasFailure(); ++i) {
        const kvtrie_worker worker = attach();
        work(worker, number++);
        EXPECT_EQ(kvtrie_detach(worker), KVTRIE_OK) << kvtrie_last_error();
      }
    };
    cycles(kWarmUp);
    if (!line.say() || line.hear() != '+') return 2;
    const Held before = held_by(::getpid());
    const std::int64_t heap_before = heap_bytes();
    cycles(kCycles);
    EXPECT_LE(heap_bytes(), heap_before + 1024) << "16 bytes a cycle are 160,000";
    expect_no_more(before, held_by(::getpid()), "the worker");
    return HasFailure() ? 1 : 0;
  });
  ASSERT_EQ(engine.line().hear(), '+');
  ASSERT_TRUE(eventually([&] { return WorkerTable(*segment_).stats().slots[0] == kWorkers; }));
  const Held before = held_by(daemon_->pid());
  ASSERT_TRUE(engine.line().say());
  EXPECT_EQ(engine.wait(), 0);
  expect_nothing_held();
  EXPECT_TRUE(eventually([&] { return held_by(daemon_->pid()).descriptors <= before.descriptors; }));
  expect_no_more(before, held_by(daemon_->pid()), "kvtried");
  EXPECT_EQ(segment_->total(Counter::kAttaches), static_cast<std::uint64_t>(kCycles + kWarmUp));
}

TEST_F(AttachCyclesTest, KilledProcessesLeaveNothing) {
  std::uint32_t number = 0;
  const auto kill_some = [&](int count) {
    for (int i = 0; i < count && !HasFailure(); ++i) {
      Child engine([&](Line line) {
        const kvtrie_worker worker = attach();
        work(worker, number);
        return !HasFailure() && line.say() && line.hear() == '+' ? 0 : 1;
      });
      ASSERT_EQ(engine.line().hear(), '+');
      engine.kill();
      ++number;
    }
    ASSERT_TRUE(eventually([&] { return WorkerTable(*segment_).stats().slots[0] == kWorkers; }));
  };
  kill_some(20);
  const Held before = held_by(daemon_->pid());
  kill_some(kKills);
  expect_nothing_held();
  EXPECT_TRUE(eventually([&] { return held_by(daemon_->pid()).descriptors <= before.descriptors; }));
  const Held after = held_by(daemon_->pid());
  expect_no_more(before, after, "kvtried");
}

}  // namespace
}  // namespace kvtrie
