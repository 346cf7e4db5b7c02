// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Handles that are over, in use, or of which there are too many. Those of a forked child: c_api_fork_test.cc.

#include <thread>

#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {
namespace {

using namespace std::chrono_literals;

// A thread that waits in a call on `sequence` for a page that nobody publishes until the end.
class Waiter {
 public:
  Waiter(ErrorWorld& world, kvtrie_worker other, kvtrie_namespace in_other)
      : pending_(world.allocated(other, in_other, prompt(5, 1))),
        sequence(world.begin(world.worker, world.space, prompt(5, 1))),
        thread_([this] {
          auto result = sized<kvtrie_begin_result>();
          do code_ = kvtrie_wait_pending(sequence, 60'000, &result);
          while (code_ == KVTRIE_E_BUSY);  // with the look below
        }) {
    std::uint32_t count = 0;
    EXPECT_TRUE(eventually([&] { return kvtrie_page_count(sequence, &count) == KVTRIE_E_BUSY; }));
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;
  ~Waiter() {
    EXPECT_EQ(kvtrie_release(pending_), KVTRIE_OK);  // its page is nobody's then
    thread_.join();
    EXPECT_EQ(code_, KVTRIE_OK);
    EXPECT_EQ(kvtrie_release(sequence), KVTRIE_OK) << "it is as it was";
  }

 private:
  kvtrie_sequence pending_;

 public:
  const kvtrie_sequence sequence;

 private:
  kvtrie_code code_ = KVTRIE_E_SYSTEM;
  std::thread thread_;
};

bool needs_a_handle_of_its_own(const EveryCall& one) {
  if (one.by == By::kSequence) return is_any_of(one.name, {"kvtrie_fork"});
  return !is_any_of(one.name, {"kvtrie_detach", "kvtrie_page_address"});
}

}  // namespace

ErrorCases stale_cases() {
  ErrorCases cases = cases_of(
      KVTRIE_E_STALE, "no such *: it was ", [](const EveryCall&) { return true; },
      [](ErrorWorld& world) {
        return Handles{world.gone_worker, world.space, world.gone_sequence};
      });
  const auto of_namespaces = [](const EveryCall& one) {
    return is_any_of(one.name, {"kvtrie_begin", "kvtrie_prepare_batch", "kvtrie_probe", "kvtrie_hash_tokens",
                                "kvtrie_probe_hashes", "kvtrie_evict", "kvtrie_flush"});
  };
  for (ErrorCase& one :
       cases_of(KVTRIE_E_STALE, "no such namespace 0x4d*of this worker*open it", of_namespaces, [](ErrorWorld& world) {
         return Handles{world.worker, {0x4d}, world.sequence};
       })) {
    cases.push_back(std::move(one));
  }
  return cases;
}

ErrorCases busy_cases() {
  ErrorCases cases = cases_of(
      KVTRIE_E_BUSY, "another thread is in a call on sequence 0x*one at a time",
      [](const EveryCall& one) { return one.by == By::kSequence; },
      [](ErrorWorld& world) {
        return Handles{world.worker, world.space, world.sequence};
      });
  cases.push_back({"kvtrie_detach", KVTRIE_E_BUSY, "another thread is inside a call of this worker*then detach",
                   [](ErrorWorld& world) { return kvtrie_detach(world.worker); }});
  cases.push_back({"kvtrie_writer_over", KVTRIE_E_BUSY, "0x*is attached", [](ErrorWorld& world) {
                     std::uint64_t id = 0;
                     EXPECT_EQ(kvtrie_worker_id(world.worker, &id), KVTRIE_OK);
                     return kvtrie_writer_over(world.worker, id);
                   }});
  return cases;
}

ErrorCases full_table_cases() {
  return cases_of(KVTRIE_E_FULL, "65535 sequences and calls are open in this process: release some",
                  needs_a_handle_of_its_own, [](ErrorWorld& world) {
                    return Handles{world.worker, world.space, world.sequence};
                  });
}

namespace {

TEST(AbiErrorsTest, HandlesThatAreOver) { run_in_world(stale_cases()); }

TEST(AbiErrorsTest, HandlesInUse) {
  ErrorWorld world;
  const kvtrie_worker other = world.attach();
  const Waiter waiter(world, other, world.open(other, "model"));
  const kvtrie_sequence quiet = std::exchange(world.sequence, waiter.sequence);
  world.run(busy_cases());
  world.sequence = quiet;
}

// 65,535 sequences, as many as a process can have; each that ends makes room for one. In a process of its own: what one
// attachment has used stays with its index (handle_table.h).
TEST(AbiErrorsTest, MoreHandlesThanTheProcessHas) {
  Child process([](Line) {
    ErrorWorld world({"--leases", "65536", "--workers", "2"});
    auto result = sized<kvtrie_begin_result>();
    kvtrie_sequence begun{0}, last{0};
    std::uint32_t open = 0;
    for (; open < 70'000; ++open, last = begun) {
      if (kvtrie_begin(world.worker, world.space, nullptr, 0, nullptr, &result, &begun) != KVTRIE_OK) break;
    }
    EXPECT_GT(open, 65'000U);
    world.run(full_table_cases());
    EXPECT_EQ(kvtrie_release(last), KVTRIE_OK);
    EXPECT_EQ(kvtrie_fork(world.sequence, nullptr, &begun), KVTRIE_OK) << kvtrie_last_error();
    return testing::Test::HasFailure() ? 1 : 0;
  });
  EXPECT_EQ(process.wait(), 0);
}

}  // namespace
}  // namespace kvtrie::test
