// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A segment that was given up, one with bytes that cannot be, and a namespace that was flushed. That begins are misses
// on the first two: c_api_faults_test.cc.

#include "tests/worker_plugin/errors/every_call.h"

namespace kvtrie::test {
namespace {

bool uses_pages(const EveryCall& one) {
  return is_any_of(one.name, {"kvtrie_allocate", "kvtrie_prepare_batch", "kvtrie_fork", "kvtrie_publish",
                              "kvtrie_publish_incomplete", "kvtrie_probe", "kvtrie_probe_hashes"});
}

// As a call on a sequence without pages of its own: the wait for others.
kvtrie_code wait_on(kvtrie_sequence sequence) {
  auto result = sized<kvtrie_begin_result>();
  return kvtrie_wait_pending(sequence, 60'000, &result);
}

}  // namespace

ErrorCases poisoned_cases() {
  ErrorCases cases = cases_of(KVTRIE_E_POISONED, "cache '*this cache was given up: detach and attach again", uses_pages,
                              [](ErrorWorld& world) {
                                return Handles{world.worker, world.space, world.sequence};
                              });
  cases.push_back({"kvtrie_wait_pending", KVTRIE_E_POISONED, "this cache was given up: detach and attach again",
                   [](ErrorWorld& world) { return wait_on(world.second); }});
  cases.push_back({"kvtrie_open_namespace", KVTRIE_E_POISONED, "this cache was given up: detach and attach again",
                   [](ErrorWorld& world) {
                     const kvtrie_field field{"model", "new"};
                     kvtrie_namespace opened{7};
                     return kvtrie_open_namespace(world.worker, &field, 1, nullptr, &opened);
                   }});
  return cases;
}

ErrorCases corrupt_cases() {
  ErrorCases cases = {{"kvtrie_begin", KVTRIE_E_CORRUPT, "cache '*a state word that cannot be; begins miss from now on",
                       [](ErrorWorld& world) {
                         const Tokens tokens = prompt(1, 3);
                         auto result = sized<kvtrie_begin_result>();
                         kvtrie_sequence begun{7};
                         const kvtrie_code code = kvtrie_begin(world.worker, world.space, tokens.data(), tokens.size(),
                                                               nullptr, &result, &begun);
                         EXPECT_EQ(begun.id, 0U);
                         return code;
                       }}};
  // Once that was met the worker trusts the segment no more.
  for (ErrorCase& one : cases_of(KVTRIE_E_CORRUPT, "cache '*this cache holds impossible bytes: detach", uses_pages,
                                 [](ErrorWorld& world) {
                                   return Handles{world.worker, world.space, world.sequence};
                                 })) {
    cases.push_back(std::move(one));
  }
  cases.push_back({"kvtrie_wait_pending", KVTRIE_E_CORRUPT, "this cache holds impossible bytes: detach",
                   [](ErrorWorld& world) { return wait_on(world.second); }});
  return cases;
}

ErrorCases flushed_cases() {
  const char* const says = "cache '*the namespace was flushed since this sequence began*begin anew";
  ErrorCases cases = cases_of(
      KVTRIE_E_FLUSHED, says,
      [](const EveryCall& one) {
        return is_any_of(one.name, {"kvtrie_publish", "kvtrie_publish_incomplete"});
      },
      [](ErrorWorld& world) {
        return Handles{world.worker, world.space, world.sequence};
      });
  cases.push_back(
      {"kvtrie_wait_pending", KVTRIE_E_FLUSHED, says, [](ErrorWorld& world) { return wait_on(world.second); }});
  return cases;
}

namespace {

TEST(AbiErrorsTest, SegmentThatWasGivenUp) {
  ErrorWorld world;
  world.second = world.begin(world.worker, world.space, {});
  world.kill_daemon();  // else its successor is there at once
  world.segment().poison(PoisonReason::kOperator);
  world.run(poisoned_cases());
  world.segment().superblock().poison_state = 0;
  world.segment().superblock().poison_reason = 0;
}

TEST(AbiErrorsTest, SegmentWithImpossibleBytes) {
  ErrorWorld world;
  world.second = world.begin(world.worker, world.space, {});
  AtomicU64& word = world.segment().descriptor({world.page_of(world.sequence, 0)}).state;
  const std::uint64_t before = word.load();
  // The first case meets it; the others are of a worker that met it, whatever the word is then.
  ErrorCases cases = corrupt_cases();
  const auto begin = cases.front().provoke;
  cases.front().provoke = [&](ErrorWorld& met) {
    word.store(before | 0xF);
    const kvtrie_code code = begin(met);
    word.store(before);
    return code;
  };
  world.run(cases);
}

TEST(AbiErrorsTest, NamespaceThatWasFlushed) {
  ErrorWorld world;
  world.second = world.begin(world.worker, world.space, prompt(8, 1));
  EXPECT_EQ(kvtrie_flush(world.worker, world.space), KVTRIE_OK) << kvtrie_last_error();
  world.run(flushed_cases());
}

}  // namespace
}  // namespace kvtrie::test
