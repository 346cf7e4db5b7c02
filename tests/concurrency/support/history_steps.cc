// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/concurrency/support/history_steps.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>
#include <tuple>
#include <utility>

namespace kvtrie::test {
namespace {

constexpr std::uint32_t kNames = 2;

class Reader {
 public:
  explicit Reader(const History& history) : history_(history) {
    for (std::uint32_t i = 0; i <= kHistoryDepth; ++i) steps_.keys = steps_.keys * kNames + kNames + 1;
  }

  Steps read() {
    for (const Operation& operation : history_.operations) steps_.calls.push_back({operation});
    std::ranges::stable_sort(steps_.calls, [](const StepCall& a, const StepCall& b) {
      return std::tuple(a.operation.process, a.operation.invoked) <
             std::tuple(b.operation.process, b.operation.invoked);
    });
    at_ = 0;
    for (StepCall& call : steps_.calls) {
      read_call(call);
      ++at_;
    }
    for (const auto& [which, open] : sequences_)
      expect(open.released, Promise::kRecord, "a sequence was not released");
    order_lives();
    read_evictions();
    check_names();
    check_enough();
    check_rest();
    return std::move(steps_);
  }

 private:
  struct SequenceNow {
    int number = kNobody;
    std::vector<Position> positions;
    bool released = false;
  };

  void expect(bool holds, Promise promise, const std::string& what) {
    if (holds) return;
    if (!steps_.verdict.breaks(promise)) steps_.verdict.broken.push_back(promise);
    if (steps_.verdict.text.empty()) steps_.verdict.text = fmt::format("{}: {}", name_of(promise), what);
  }

  static std::uint32_t key_of(const Operation& call, std::uint32_t pages) {
    std::uint32_t key = 0;
    for (std::uint32_t i = 0; i < pages; ++i) key = key * kNames + call.path[i] % kNames + 1;
    return key;
  }

  int life_of(Life name) {
    const auto [found, added] = index_.try_emplace(name, static_cast<int>(steps_.lives.size()));
    if (added) steps_.lives.push_back({.name = name});
    return found->second;
  }
  LifeStory& story(int life) { return steps_.lives[static_cast<std::size_t>(life)]; }

  std::uint64_t add(StepCall& call, Step step) {
    call.steps.push_back(std::move(step));
    return std::uint64_t{1} << (call.steps.size() - 1);
  }

  void read_call(StepCall& call) {
    const Operation& operation = call.operation;
    expect(operation.invoked <= operation.responded, Promise::kRecord, "a call ends before it begins");
    expect(!operation.wrong_bytes, Promise::kRightPage, "a page had the bytes of another path");
    if (operation.call == Call::kEvict) return evictions_.push_back(at_);
    SequenceNow& now = sequences_[{operation.process, operation.sequence}];
    if (now.number == kNobody) now.number = steps_.sequences++;
    call.sequence = now.number;
    const std::span after(operation.after.data(), operation.positions);
    if (operation.call == Call::kBegin) {
      read_begin(call, after);
    } else if (operation.call == Call::kRelease) {
      read_release(call, now);
    } else {
      read_progress(call, now, after);
    }
    now.positions.assign(after.begin(), after.end());
  }

  void read_begin(StepCall& call, std::span<const Position> after) {
    const Operation& operation = call.operation;
    Step match{StepKind::kMatch};
    for (const Position& position : after) match.lives.push_back(life_of(position.node));
    if (after.size() < operation.path_pages) match.key = key_of(operation, operation.positions + 1U);
    add(call, std::move(match));
    if (operation.pending != 0) add(call, {StepKind::kPending, life_of(operation.pending)});
  }

  // allocate and publish.
  void read_progress(StepCall& call, const SequenceNow& now, std::span<const Position> after) {
    const Operation& operation = call.operation;
    const bool publishes = operation.call == Call::kPublish;
    expect(after.size() >= now.positions.size(), Promise::kRecord, "a sequence has fewer pages than before");
    std::uint64_t chain = 0;      // what came last of announcing and linking
    std::uint64_t published = 0;  // of publishing and linking
    std::uint64_t taken = 0;
    for (std::uint32_t i = 0; i < after.size(); ++i) {
      if (i >= now.positions.size()) taken |= read_take(call, after[i].page);
    }
    bool ended = false;  // what follows is not announced
    int parent = kNobody;
    for (std::uint32_t i = 0; i < after.size(); ++i) {
      const Position& position = after[i];
      const Position before =
          i < now.positions.size() ? now.positions[i] : Position{position.page, 0, Kept::kPrivate, false};
      const std::uint32_t key = key_of(operation, i + 1);
      expect(before.page == position.page, Promise::kRecord, "a position has another page than before");
      if (position.node != 0 && before.node == 0 && position.kept != Kept::kPrivate) {
        expect(!ended, Promise::kParentHeld, "announced below a page that is not");
        const int life = life_of(position.page);
        LifeStory& told = story(life);
        expect(told.key == 0, Promise::kKeyOnce, "announced twice");
        told.key = key;
        told.parent = parent;
        chain = add(call, {StepKind::kAnnounce, life, key, {}, chain | taken});
      } else if (position.node != 0 && before.node == 0) {
        expect(publishes, Promise::kRecord, "linked by another call than publish");
        chain = published = add(call, {StepKind::kLink, life_of(position.node), key, {}, chain | published | taken});
      }
      if (position.kept == Kept::kPublished && before.kept != Kept::kPublished) {
        expect(publishes, Promise::kRecord, "published by another call than publish");
        const int life = life_of(position.page);
        story(life).published = true;
        published = add(call, {StepKind::kPublish, life, key, {}, chain | published});
      }
      expect(!publishes || position.kept != Kept::kAnnounced || i >= operation.asked, Promise::kPublishedIsFound,
             "publish left an announced page");
      if (position.node == 0 && !ended && operation.done && !operation.passed_by) {
        const bool looked = publishes || !before.before_other;
        expect(position.before_other, Promise::kKeyOnce, "stays private though nobody has it");
        if (looked && position.before_other) add(call, {StepKind::kBlocked, life_of(position.page), key, {}, chain});
      }
      ended = ended || position.node == 0;
      parent = position.node == 0 ? kNobody : life_of(position.node);
    }
  }

  std::uint64_t read_take(StepCall& call, Life page) {
    const int life = life_of(page);
    LifeStory& told = story(life);
    expect(call.operation.call == Call::kAllocate, Promise::kRecord, "a page came without allocate");
    expect(told.taken_by == kNobody, Promise::kPageIsOnes,
           fmt::format("page {} was given twice in one life", told.page()));
    expect(told.page() < history_.pages, Promise::kRecord, "a page that there is not");
    told.taken_by = at_;
    told.owner = call.operation.process;
    return add(call, {StepKind::kTake, life});
  }

  void read_release(StepCall& call, SequenceNow& now) {
    expect(!now.released, Promise::kRecord, "released twice");
    now.released = true;
    add(call, {StepKind::kDrop, now.number});
    std::uint64_t aborted = 0;
    for (const Position& position : now.positions) {
      if (position.kept == Kept::kAnnounced) aborted |= add(call, {StepKind::kAbort, life_of(position.page)});
    }
    for (const Position& position : now.positions) {
      if (position.kept != Kept::kAnnounced && position.kept != Kept::kPrivate) continue;
      const int life = life_of(position.page);
      story(life).ended_by = at_;
      add(call, {StepKind::kFree, life, 0, {}, position.kept == Kept::kAnnounced ? aborted : 0});
    }
  }

  void order_lives() {
    std::map<std::pair<std::uint32_t, std::uint64_t>, int> by_page;
    for (std::size_t i = 0; i < steps_.lives.size(); ++i)
      by_page[{steps_.lives[i].page(), Handle{steps_.lives[i].name}.generation()}] = static_cast<int>(i);
    const std::pair<const std::pair<std::uint32_t, std::uint64_t>, int>* last = nullptr;
    for (const auto& entry : by_page) {
      if (last != nullptr && last->first.first == entry.first.first) story(entry.second).before = last->second;
      last = &entry;
    }
  }

  // A published life ends by eviction only, in the first call after which its page is a generation further.
  void read_evictions() {
    for (std::size_t i = 0; i < steps_.lives.size(); ++i) {
      LifeStory& told = steps_.lives[i];
      if (!told.published || told.page() >= kHistoryPages) continue;
      for (const int at : evictions_) {
        StepCall& call = steps_.calls[static_cast<std::size_t>(at)];
        if (call.operation.generations[told.page()] <= Handle{told.name}.generation()) continue;
        told.ended_by = at;
        add(call, {StepKind::kRetire, static_cast<int>(i)});
        break;
      }
    }
    for (const int at : evictions_) {
      const StepCall& call = steps_.calls[static_cast<std::size_t>(at)];
      expect(call.steps.size() == call.operation.evicted, Promise::kCounts,
             fmt::format("{} pages went, evict says {}", call.steps.size(), call.operation.evicted));
      expect(call.steps.size() <= call.operation.asked, Promise::kCounts, "more pages went than were asked for");
    }
  }

  // What is matched, linked to or reported is what it must be whenever that was.
  void check_names() {
    for (const StepCall& call : steps_.calls) {
      for (const Step& step : call.steps) {
        std::uint32_t pages = 0;
        for (const int life : step.lives)
          expect(story(life).published && story(life).key == key_of(call.operation, ++pages), Promise::kRightPage,
                 fmt::format("page {} of {} was matched, which nobody published as that", story(life).page(), pages));
        if (step.kind == StepKind::kLink)
          expect(story(step.life).published && story(step.life).key == step.key, Promise::kRightPage,
                 "linked to a page that nobody published as that");
        if (step.kind == StepKind::kPending)
          expect(story(step.life).key == key_of(call.operation, call.operation.positions + 1U),
                 Promise::kPendingIsPending, "a page of another key is reported as coming");
      }
    }
  }

  // Pages that were free all the time are found.
  void check_enough() {
    for (const StepCall& failed : steps_.calls) {
      const Operation& call = failed.operation;
      if (call.done) continue;
      std::vector<bool> busy(history_.pages);
      for (const LifeStory& told : steps_.lives) {
        if (told.taken_by == kNobody || told.page() >= history_.pages) continue;
        const Operation& from = steps_.calls[static_cast<std::size_t>(told.taken_by)].operation;
        const bool over =
            told.ended_by != kNobody &&
            steps_.calls[static_cast<std::size_t>(told.ended_by)].operation.responded < call.invoked;
        if (from.invoked <= call.responded && !over) busy[told.page()] = true;
      }
      auto free = static_cast<std::int64_t>(std::ranges::count(busy, false)) - history_.pages_away;
      for (const StepCall& other : steps_.calls) {
        const Operation& beside = other.operation;
        if (&other == &failed || beside.done) continue;
        if (beside.responded < call.invoked || beside.invoked > call.responded) continue;
        free -= beside.asked - beside.positions;
      }
      expect(free < call.asked - call.positions, Promise::kEnoughIsEnough,
             fmt::format("{} pages were not to be had of {} free ones", call.asked - call.positions, free));
    }
  }

  void check_rest() {
    std::vector<Life> left;
    for (const LifeStory& told : steps_.lives) {
      if (told.published && told.ended_by == kNobody) left.push_back(told.name);
    }
    std::vector<Life> cached = history_.cached;
    std::ranges::sort(left);
    std::ranges::sort(cached);
    expect(left == cached, Promise::kCounts, "other pages are cached than were published and not evicted");
    expect(history_.free_pages + cached.size() == history_.pages, Promise::kCounts,
           fmt::format("{} free and {} cached of {}", history_.free_pages, cached.size(), history_.pages));
  }

  const History& history_;
  Steps steps_;
  int at_ = 0;
  std::vector<int> evictions_;
  std::map<Life, int> index_;
  std::map<std::pair<std::uint8_t, std::uint32_t>, SequenceNow> sequences_;
};

}  // namespace

Steps steps_of(const History& history) { return Reader(history).read(); }

}  // namespace kvtrie::test
