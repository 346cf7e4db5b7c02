// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Operations of a worker that dies in them: waiting for what others compute, incomplete pages and partial matches, forks,
// pages given back, batches.

#include "tests/crash/scenario_lists.h"

namespace kvtrie::test {
namespace {

constexpr std::int64_t kShortWaitNs = 2'000'000;
constexpr SequenceOptions kPartial{.partial = true};

void wait(Victim& v, std::int64_t wait_ns, bool comes) {
  BeginReport report;
  const Status status = v.engine.worker().wait_for_pending(v.sequence, wait_ns, report);
  if (status.ok() != comes) throw Violation("the wait ended otherwise");
}

void finish_survivor(CrashWorld& world, bool publishes) {
  OpenSequence& open = world.opened().front();
  if (publishes) (void)world.engine(open.slot.value).publish(open.sequence, open.path.size());
  world.engine(open.slot.value).release(open.sequence);
  world.opened().clear();
}

// Two requests with two pages in common, and one apart.
const std::vector<Path>& batch_paths() {
  static const std::vector<Path> paths{{1, 2, 3}, {1, 2, 4}, {5}};
  return paths;
}

void prepare_batch(Victim& v) {
  if (!v.engine.prepare_batch(v.more, batch_paths())) throw Violation("no batch");
}

void compute_batch(Victim& v) {
  for (std::size_t i = 0; i < v.more.size(); ++i) v.engine.compute(v.more[i], batch_paths()[i]);
}

void prepare_computed_batch(Victim& v) {
  prepare_batch(v);
  compute_batch(v);
}

}  // namespace

std::vector<Scenario> wait_scenarios() {
  const auto open_12 = [](CrashWorld& w) { w.open(kSurvivor, {1, 2}); };
  const auto begin_123 = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}); };
  return {
      {.name = "wait.matches",
       .setup = open_12,
       .prepare = begin_123,
       .meanwhile = [](CrashWorld& w) { finish_survivor(w, true); },
       .operate = [](Victim& v) { wait(v, 0, true); },
       .cached = {{1, 2}},
       .again = {1, 2, 3}},
      {.name = "wait.given_up",
       .setup = open_12,
       .prepare = begin_123,
       .meanwhile = [](CrashWorld& w) { finish_survivor(w, false); },
       .operate = [](Victim& v) { wait(v, 0, true); },
       .again = {1, 2, 3}},
      {.name = "wait.sleeps",
       .setup =
           [](CrashWorld& w) {
             w.cache(kSurvivor, {1});
             w.open(kSurvivor, {1, 2});
           },
       .prepare = begin_123,
       .operate = [](Victim& v) { wait(v, kShortWaitNs, false); },
       .cached = {{1}},
       .again = {1, 2, 3},
       .sleeps = true},
      {.name = "publish.wakes",  // somebody waits for one of its pages
       .prepare =
           [](Victim& v) {
             (void)v.engine.prepare(v.sequence, {1, 2});
             v.segment().worker(kVictimSlot).pending_word.fetch_or(1);
           },
       .operate = [](Victim& v) { (void)v.engine.publish(v.sequence, 2); },
       .may_come = {{1, 2}},
       .done_come = {{1, 2}},
       .again = {1, 2}},
  };
}

std::vector<Scenario> incomplete_scenarios() {
  const auto publish_half = [](Victim& v) {
    (void)v.engine.prepare(v.sequence, {1, half(2)});
    (void)v.engine.publish_incomplete(v.sequence, {1, half(2)});
  };
  const auto go_on = [](Victim& v) {
    v.engine.worker().append(v.sequence, std::vector<std::uint32_t>{2002, 2003});
    if (!v.engine.allocate(v.sequence, 3)) throw Violation("no pages");
    v.engine.copy_due(v.sequence);
  };
  const auto cache_half = [](CrashWorld& w) { w.cache(kSurvivor, {1, half(2)}); };
  return {
      {.name = "publish.incomplete",
       .prepare = [](Victim& v) { (void)v.engine.prepare(v.sequence, {1, half(2)}); },
       .operate = [](Victim& v) { (void)v.engine.publish_incomplete(v.sequence, {1, half(2)}); },
       .may_come = {{1, half(2)}},
       .done_come = {{1, half(2)}},
       .again = {1, 2, 3}},
      {.name = "allocate.goes_on",
       .prepare = publish_half,
       .operate = go_on,
       .cached = {{1, half(2)}},
       .again = {1, 2, 3}},
      {.name = "publish.gone_on",
       .prepare =
           [publish_half, go_on](Victim& v) {
             publish_half(v);
             go_on(v);
             v.engine.compute(v.sequence, {1, 2});
           },
       .operate = [](Victim& v) { (void)v.engine.publish(v.sequence, 2); },
       .cached = {{1, half(2)}},
       .may_come = {{1, 2}},
       .done_come = {{1, 2}},
       .again = {1, 2, 3}},
      {.name = "begin.partial",
       .setup = cache_half,
       .operate = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}, kPartial); },
       .cached = {{1, half(2)}},
       .again = {1, 2, 3}},
      {.name = "allocate.partial",
       .setup = cache_half,
       .prepare = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}, kPartial); },
       .operate =
           [](Victim& v) {
             (void)v.engine.allocate(v.sequence, 3);
             v.engine.copy_due(v.sequence);
           },
       .cached = {{1, half(2)}},
       .again = {1, 2, 3}},
      {.name = "publish.copied_by_caller",  // whose claim on what he copied from ends with it
       .setup = cache_half,
       .prepare =
           [](Victim& v) {
             (void)v.engine.begin(v.sequence, {1, 2, 3}, kPartial);
             if (!v.engine.allocate(v.sequence, 3)) throw Violation("no pages");
             v.engine.worker().leave_copy_to_caller(v.sequence);
             v.engine.compute(v.sequence, {1, 2, 3});
           },
       .operate = [](Victim& v) { (void)v.engine.publish(v.sequence, 3); },
       .cached = {{1, half(2)}},
       .may_come = {{1, 2, 3}},
       .done_come = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "release.incomplete",
       .prepare = publish_half,
       .operate = [](Victim& v) { v.engine.release(v.sequence); },
       .cached = {{1, half(2)}},
       .again = {1, 2, 3}},
  };
}

std::vector<Scenario> fork_scenarios() {
  const auto prepare_123 = [](Victim& v) {
    (void)v.engine.prepare(v.sequence, {1, 2, 3}, 2);
    (void)v.engine.publish(v.sequence, 1);
  };
  const auto fork = [](Victim& v) {
    if (!v.engine.fork(v.sequence, v.more[0])) throw Violation("no fork");
  };
  return {
      {.name = "fork",
       .prepare = prepare_123,
       .operate = fork,
       .cached = {{1}},
       .again = {1, 2, 3}},
      {.name = "fork.both_go_on",
       .prepare =
           [prepare_123, fork](Victim& v) {
             prepare_123(v);
             fork(v);
           },
       .operate =
           [](Victim& v) {
             (void)v.engine.publish(v.sequence, 3);
             (void)v.engine.publish(v.more[0], 3);
             v.engine.release(v.sequence);
             v.engine.release(v.more[0]);
           },
       .cached = {{1}},
       .may_come = {{1, 2, 3}},
       .done_come = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "fork.partial",  // the child has a claim of its own on what it will copy from
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1, half(2)}); },
       .prepare = [](Victim& v) { (void)v.engine.begin(v.sequence, {1, 2, 3}, kPartial); },
       .operate =
           [fork](Victim& v) {
             fork(v);
             if (!v.more[0].source.any()) throw Violation("the child has nothing to copy");
           },
       .cached = {{1, half(2)}},
       .again = {1, 2, 3}},
      {.name = "fork.not_now",
       .setup = [](CrashWorld& w) { w.open(kSurvivor, {9}, kWorldPages - 1 - 6); },
       .prepare = prepare_123,
       .operate =
           [](Victim& v) {
             if (v.engine.fork(v.sequence, v.more[0])) throw Violation("forked into pages that are not there");
           },
       .cached = {{1}},
       .again = {1}},
      {.name = "give_back",
       .prepare = prepare_123,
       .operate =
           [](Victim& v) {
             if (!v.engine.worker().give_back(v.sequence, 1, 3)) throw Violation("not given back");
             if (!v.engine.worker().give_back(v.sequence, 4, 1)) throw Violation("not given back");
           },
       .cached = {{1}},
       .again = {1, 2, 3}},
  };
}

std::vector<Scenario> batch_scenarios() {
  return {
      {.name = "batch.prepare",
       .setup = [](CrashWorld& w) { w.cache(kSurvivor, {1}); },
       .operate = prepare_batch,
       .cached = {{1}},
       .again = {1, 2, 3}},
      {.name = "batch.waits",  // holding nothing
       .setup = [](CrashWorld& w) { w.open(kSurvivor, {9}, kWorldPages - 1 - 4); },
       .operate =
           [](Victim& v) {
             if (v.engine.prepare_batch(v.more, batch_paths(), kShortWaitNs)) throw Violation("five of four pages");
           },
       .again = {1, 2},
       .sleeps = true},
      {.name = "batch.publish",
       .prepare = prepare_computed_batch,
       .operate =
           [](Victim& v) {
             (void)v.engine.publish(v.more[1], 3);  // waits for the other's
             (void)v.engine.publish(v.more[0], 3);
             v.engine.release(v.more[0]);
             if (v.engine.publish(v.more[1], 3).pages_private != 0) throw Violation("a page stayed private");
             v.engine.release(v.more[1]);
           },
       .may_come = {{1, 2, 3}, {1, 2, 4}},
       .done_come = {{1, 2, 3}, {1, 2, 4}},
       .again = {1, 2, 3}},
      {.name = "batch.publish_incomplete",  // of a page that the other shares: it stays private, and is published whole
       .prepare = prepare_computed_batch,
       .operate =
           [](Victim& v) {
             PublishReport report;
             if (!v.engine.worker().publish_incomplete(v.more[0], kWorldTokens + kWorldTokens / 2, report) ||
                 report.pages_private != 1) {
               throw Violation("published with fewer tokens than the batch shares");
             }
             (void)v.engine.publish(v.more[0], 3);
             v.engine.release(v.more[0]);
           },
       .may_come = {{1, 2, 3}},
       .done_come = {{1, 2, 3}},
       .again = {1, 2, 3}},
      {.name = "batch.hands_over",
       .prepare = prepare_computed_batch,
       .operate =
           [](Victim& v) {
             (void)v.engine.publish(v.more[0], 1);
             v.engine.release(v.more[0]);
             (void)v.engine.publish(v.more[1], 3);
             v.engine.release(v.more[1]);
             v.engine.release(v.more[2]);
           },
       .may_come = {{1, 2, 4}},
       .done_come = {{1, 2, 4}},
       .again = {1, 2, 3}},
  };
}

}  // namespace kvtrie::test
