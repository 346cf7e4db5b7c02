// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/crash/aftermath.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "shm/namespace_table.h"
#include "shm/pins.h"
#include "shm/recovery.h"
#include "shm/worker_table.h"
#include "tests/support/cache_oracle.h"

namespace kvtrie::test {
namespace {

Path front_of(const Path& path, std::size_t pages) {
  return Path(path.begin(), path.begin() + static_cast<std::ptrdiff_t>(pages));
}

// The oracle's two bounds.
struct Bounds {
  Paths must;
  Paths may;
};

Bounds bounds_after(const Scenario& scenario, bool returned) {
  Bounds bounds{scenario.cached, scenario.cached};
  for (const Path& path : scenario.may_go)
    bounds.must.erase(path);
  bounds.may.insert(scenario.may_come.begin(), scenario.may_come.end());
  if (returned) {
    bounds.must.insert(scenario.done_come.begin(), scenario.done_come.end());
    for (const Path& path : scenario.done_go)
      bounds.may.erase(path);
  }
  return bounds;
}

// What a survivor held before the death it holds now.
void check_untouched(const Segment& segment, OpenSequence& open) {
  const Sequence& sequence = open.sequence;
  const auto word_of = [&](PageIndex page) {
    return StateWord{segment.descriptor(page).state.load()};
  };
  for (const Handle& shared : sequence.shared) {
    if (!shared.same_life(word_of(shared.page_index())) ||
        !word_of(shared.page_index()).readable()) {
      throw Violation("a survivor lost a page under its lease");
    }
  }
  for (const OwnPage& own : sequence.own) {
    const StateWord word = word_of(own.page);
    const PageState expected = own.state == OwnState::kPrivate   ? PageState::kWriting
                               : own.state == OwnState::kPending ? PageState::kPending
                                                                 : PageState::kLive;
    if (word.state() != expected || (word.owned() && word.owner() != open.slot)) {
      throw Violation(
          fmt::format("a survivor's page {} became {}", own.page.value, name_of(word.state())));
    }
  }
}

void finish_open_sequences(CrashWorld& world, Bounds& bounds) {
  for (OpenSequence& open : world.opened())
    check_untouched(world.segment(), open);
  for (OpenSequence& open : world.opened()) {
    Engine& engine = world.engine(open.slot.value);
    if (engine.publish(open.sequence, open.path.size()).pages_private != 0) {
      throw Violation(to_text(open.path) + ": a survivor's page stayed private");
    }
    engine.release(open.sequence);
    const Paths published = prefixes_of({open.path});
    bounds.must.insert(published.begin(), published.end());
    bounds.may.insert(published.begin(), published.end());
  }
  world.opened().clear();
}

// Asks for the same path, computes what is missing, and finds all of it the next time.
void ask_again(CrashWorld& world, const Path& path, Bounds& bounds) {
  world.tick();
  Engine& engine = world.engine(kSurvivor);
  Sequence sequence;
  const std::size_t hit = engine.prepare(sequence, path);
  if (hit > 0 && !bounds.may.contains(front_of(path, hit)))
    throw Violation("a hit that nobody published");
  if (hit < path.size() && bounds.must.contains(front_of(path, hit + 1))) {
    throw Violation(fmt::format("{} is cached and only {} pages are found", to_text(path), hit));
  }
  const PublishReport published = engine.publish(sequence, path.size());
  if (published.pages_published != path.size() - hit || published.pages_private != 0) {
    throw Violation(
        fmt::format("{} of {} pages published", published.pages_published, path.size() - hit));
  }
  engine.release(sequence);
  Sequence once_more;
  if (engine.begin(once_more, path) != path.size())
    throw Violation("what was published is not found");
  engine.release(once_more);
  const Paths whole = prefixes_of({path});
  bounds.must.insert(whole.begin(), whole.end());
  bounds.may.insert(whole.begin(), whole.end());
}

// Every page that the state words call Free can be had, once.
void take_all_free(CrashWorld& world) {
  const std::uint32_t free = count_pages(world.segment()).free;
  if (free == 0) return;
  Engine& engine = world.engine(kOtherSurvivor);
  Sequence sequence;
  (void)engine.begin(sequence, {999});
  if (const Status status = engine.allocate(sequence, free); !status) {
    throw Violation(fmt::format("{} pages are Free and cannot be had: {}", free, status.what()));
  }
  std::set<std::uint32_t> distinct;
  for (std::uint32_t p = 0; p < sequence.positions(); ++p)
    distinct.insert(sequence.page_at(p).value);
  if (distinct.size() != free) throw Violation("a page was handed out twice");
  engine.release(sequence);
  if (count_pages(world.segment()).free != free) throw Violation("pages given back are not Free");
}

void empty_the_cache(CrashWorld& world) {
  const std::uint32_t cached = count_pages(world.segment()).cached;
  const std::uint64_t evicted = world.evict(kWorldPages);
  if (evicted != cached || count_pages(world.segment()).free != kWorldPages) {
    throw Violation(fmt::format("{} of {} pages could be evicted", evicted, cached));
  }
}

}  // namespace

void reap_slot(const Segment& segment, WorkerId dead) {
  const SlotWord word = WorkerTable(segment).word(dead);
  if (word.state() == SlotState::kFree) return;
  if (!kvtrie::reap_slot(segment, dead, word, true))
    throw Violation("the slot could not be reaped");
}

void take_over(const Segment& segment, std::span<const WorkerId> dead) {
  NamespaceTable(segment).recover();
  const WorkerTable table(segment);
  table.recover();
  for (std::uint32_t i = 1; i < segment.slot_count(); ++i) {
    const WorkerId slot{static_cast<std::uint16_t>(i)};
    const bool lives = table.word(slot).state() == SlotState::kActive &&
                       std::ranges::find(dead, slot) == dead.end();
    if (!lives) reap_slot(segment, slot);
  }
  adopt_pages(segment);
  PinTable(segment).recover();
}

void recover(const Segment& segment, const Scenario& scenario) {
  std::vector<WorkerId> dead = scenario.dead;
  if (scenario.role == Role::kWorker) dead.push_back(kVictimSlot);
  if (scenario.role == Role::kCoordinator || scenario.adopts) {
    take_over(segment, dead);
  } else {
    for (const WorkerId slot : dead)
      reap_slot(segment, slot);
  }
}

std::string judge(CrashWorld& world, const Scenario& scenario, bool returned) {
  try {
    if (scenario.fence) scenario.fence(world);
    if (scenario.recovery) {
      scenario.recovery(world);
    } else {
      recover(world.segment(), scenario);
    }
  } catch (const Violation& violation) {
    return violation.what();
  }
  return judge_recovered(world, scenario, returned);
}

std::string judge_recovered(CrashWorld& world, const Scenario& scenario, bool returned) {
  try {
    Bounds bounds = bounds_after(scenario, returned);
    const Segment& segment = world.segment();
    visit_stripes(segment, WorkerId{kSurvivor});
    segment.superblock().evictor_busy.store(0);  // by the next coordinator's RoomKeeper
    segment.superblock().reserved_until.store(0);  // by the same, or it is over by now
    if (scenario.recovered) scenario.recovered(world);
    check_at_rest(world.view());
    check_cached(world.view(), bounds.must, bounds.may);
    finish_open_sequences(world, bounds);
    ask_again(world, scenario.again, bounds);
    check_cached(world.view(), bounds.must, bounds.may);
    take_all_free(world);
    empty_the_cache(world);
    check_at_rest(world.view());
    if (segment.poisoned()) return "the segment was poisoned";
  } catch (const Violation& violation) {
    return violation.what();
  }
  return {};
}

}  // namespace kvtrie::test
