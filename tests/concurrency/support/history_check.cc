// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/concurrency/support/history_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <tuple>

#include "tests/concurrency/support/history_steps.h"

namespace kvtrie::test {
namespace {

constexpr std::size_t kStatesMax = 300'000;
constexpr std::size_t kProcessesMax = 8;
constexpr std::size_t kStepsMax = 64;  // of a call

enum class Stage : std::uint8_t { kUnborn, kWriting, kPending, kLive, kAborted, kOver };

// The cache, by steps that can be taken back.
class Model {
 public:
  explicit Model(const Steps& steps)
      : steps_(steps), lives_(steps.lives.size()), canonical_(steps.keys, kNobody),
        held_(static_cast<std::size_t>(steps.sequences)) {}

  // kKept: the step can be done now.
  Promise against(const StepCall& call, const Step& step) const {
    switch (step.kind) {
      case StepKind::kMatch: {
        for (const int life : step.lives) {
          if (of(life).stage != Stage::kLive) return Promise::kMatchIsLive;
        }
        const int next = step.key == 0 ? kNobody : canonical_[step.key];
        return next == kNobody || of(next).stage != Stage::kLive ? Promise::kKept : Promise::kPublishedIsFound;
      }
      case StepKind::kPending:
        return of(step.life).stage == Stage::kPending || of(step.life).stage == Stage::kAborted
                   ? Promise::kKept
                   : Promise::kPendingIsPending;
      case StepKind::kTake: {
        const int before = story(step.life).before;
        const bool free = before == kNobody || of(before).stage == Stage::kOver;
        return free && of(step.life).stage == Stage::kUnborn ? Promise::kKept : Promise::kPageIsOnes;
      }
      case StepKind::kAnnounce:
        if (of(step.life).stage != Stage::kWriting) return Promise::kPageIsOnes;
        if (canonical_[step.key] != kNobody) return Promise::kKeyOnce;
        return may_be_parent(call, story(step.life).parent) ? Promise::kKept : Promise::kParentHeld;
      case StepKind::kBlocked:
        return canonical_[step.key] != kNobody && canonical_[step.key] != step.life ? Promise::kKept
                                                                                     : Promise::kKeyOnce;
      case StepKind::kLink:
        return of(step.life).stage == Stage::kLive ? Promise::kKept : Promise::kMatchIsLive;
      case StepKind::kPublish: {
        const int parent = story(step.life).parent;
        if (of(step.life).stage != Stage::kPending) return Promise::kPageIsOnes;
        return parent == kNobody || of(parent).stage == Stage::kLive ? Promise::kKept : Promise::kParentsFirst;
      }
      case StepKind::kDrop:
        return Promise::kKept;
      case StepKind::kAbort:
        return of(step.life).stage == Stage::kPending ? Promise::kKept : Promise::kPageIsOnes;
      case StepKind::kFree:
        return of(step.life).stage == Stage::kWriting || of(step.life).stage == Stage::kAborted
                   ? Promise::kKept
                   : Promise::kPageIsOnes;
      case StepKind::kRetire:
        if (of(step.life).stage != Stage::kLive) return Promise::kMatchIsLive;
        if (of(step.life).holds != 0) return Promise::kLeaseKeeps;
        return of(step.life).children == 0 ? Promise::kKept : Promise::kChildKeepsParent;
    }
    return Promise::kRecord;
  }

  void apply(const StepCall& call, const Step& step) { change(call, step, 1); }
  void take_back(const StepCall& call, const Step& step) { change(call, step, -1); }

  // Nothing that needs it to come later: then it is done as soon as it can be. Steps that only look, and those that
  // only make more possible. A match may come at once since its pages cannot go before it anyway, and not after it
  // before the release.
  bool at_once(const Step& step) const {
    switch (step.kind) {
      case StepKind::kAnnounce:
      case StepKind::kPublish:
      case StepKind::kAbort:
      case StepKind::kRetire:
        return false;
      case StepKind::kFree:
        return story(step.life).key == 0;
      default:
        return true;
    }
  }

 private:
  struct LifeNow {
    Stage stage = Stage::kUnborn;
    int holds = 0;
    int children = 0;  // Pending or Live
  };

  const LifeNow& of(int life) const { return lives_[static_cast<std::size_t>(life)]; }
  LifeNow& of(int life) { return lives_[static_cast<std::size_t>(life)]; }
  const LifeStory& story(int life) const { return steps_.lives[static_cast<std::size_t>(life)]; }

  bool may_be_parent(const StepCall& call, int parent) const {
    if (parent == kNobody) return true;
    if (of(parent).stage == Stage::kPending) return story(parent).owner == call.operation.process;
    return of(parent).stage == Stage::kLive &&
           std::ranges::find(held_[static_cast<std::size_t>(call.sequence)], parent) !=
               held_[static_cast<std::size_t>(call.sequence)].end();
  }

  void set(int life, Stage from, Stage to, int way) { of(life).stage = way > 0 ? to : from; }
  void hold(const StepCall& call, int life, int way) {
    std::vector<int>& held = held_[static_cast<std::size_t>(call.sequence)];
    of(life).holds += way;
    if (way > 0) {
      held.push_back(life);
    } else {
      held.pop_back();  // steps are taken back in reverse
    }
  }
  // In the key's place, and a child of its parent.
  void enter(const Step& step, int way) {
    const LifeStory& told = story(step.life);
    canonical_[told.key] = way > 0 ? step.life : kNobody;
    if (told.parent != kNobody) of(told.parent).children += way;
  }

  void change(const StepCall& call, const Step& step, int way) {
    switch (step.kind) {
      case StepKind::kPending:
      case StepKind::kBlocked:
        return;
      case StepKind::kMatch:
        for (const int life : step.lives) hold(call, life, way);
        return;
      case StepKind::kLink:
        return hold(call, step.life, way);
      case StepKind::kTake:
        return set(step.life, Stage::kUnborn, Stage::kWriting, way);
      case StepKind::kAnnounce:
        set(step.life, Stage::kWriting, Stage::kPending, way);
        return enter(step, way);
      case StepKind::kPublish:
        set(step.life, Stage::kPending, Stage::kLive, way);
        return hold(call, step.life, way);
      case StepKind::kDrop:
        for (const int life : held_[static_cast<std::size_t>(call.sequence)]) of(life).holds -= way;
        return;
      case StepKind::kAbort:
        set(step.life, Stage::kPending, Stage::kAborted, way);
        return enter(step, -way);
      case StepKind::kFree:
        return set(step.life, story(step.life).key == 0 ? Stage::kWriting : Stage::kAborted, Stage::kOver, way);
      case StepKind::kRetire:
        set(step.life, Stage::kLive, Stage::kOver, way);
        return enter(step, -way);
    }
  }

  const Steps& steps_;
  std::vector<LifeNow> lives_;
  std::vector<int> canonical_;           // by key: the life that is Pending or Live
  std::vector<std::vector<int>> held_;  // by sequence
};

class Search {
 public:
  explicit Search(Steps& steps) : steps_(steps), model_(steps), done_(steps.calls.size()) {
    running_.fill(kNobody);
    for (std::size_t i = 0; i < steps.calls.size(); ++i) {
      const Operation& call = steps.calls[i].operation;
      events_.push_back({call.invoked, false, static_cast<int>(i)});
      events_.push_back({call.responded, true, static_cast<int>(i)});
    }
    // Of equal stamps the invocations first: the calls are concurrent.
    std::ranges::stable_sort(events_, {}, [](const Event& event) { return std::tuple(event.stamp, event.response); });
  }

  void run() {
    Verdict& verdict = steps_.verdict;
    const bool found = go_on(0);
    verdict.states = seen_.size();
    if (found) return;
    if (seen_.size() >= kStatesMax) {
      verdict.broken = {Promise::kUndecided};
      verdict.text = "the search took too long";
      return;
    }
    verdict.broken.assign(stuck_on_.begin(), stuck_on_.end());
    verdict.text = stuck_text_;
  }

 private:
  struct Event {
    std::uint64_t stamp;
    bool response;
    int call;
  };
  struct Done {
    int call;
    int step;  // nobody: the call began or ended here
    int running;
  };
  using State = std::array<std::uint64_t, kProcessesMax + 1>;

  StepCall& call_at(int call) { return steps_.calls[static_cast<std::size_t>(call)]; }
  std::uint64_t& done_of(int call) { return done_[static_cast<std::size_t>(call)]; }
  bool complete(int call) {
    const std::size_t steps = call_at(call).steps.size();
    return steps == 0 || done_of(call) == ~std::uint64_t{0} >> (64 - steps);
  }
  int& running(int call) { return running_[call_at(call).operation.process]; }

  bool ready(int call, std::size_t step) {
    return (done_of(call) >> step & 1) == 0 && (call_at(call).steps[step].needs & ~done_of(call)) == 0;
  }
  bool possible(int call, std::size_t step) {
    return ready(call, step) &&
           model_.against(call_at(call), call_at(call).steps[step]) == Promise::kKept;
  }
  void apply(int call, std::size_t step) {
    model_.apply(call_at(call), call_at(call).steps[step]);
    done_of(call) |= std::uint64_t{1} << step;
    trail_.push_back({call, static_cast<int>(step), 0});
  }
  void set_running(int call, int to) {
    trail_.push_back({call, kNobody, running(call)});
    running(call) = to;
  }
  void take_back(std::size_t to) {
    for (; trail_.size() > to; trail_.pop_back()) {
      const Done& last = trail_.back();
      if (last.step == kNobody) {
        running(last.call) = last.running;
        continue;
      }
      const auto step = static_cast<std::size_t>(last.step);
      model_.take_back(call_at(last.call), call_at(last.call).steps[step]);
      done_of(last.call) &= ~(std::uint64_t{1} << step);
    }
  }

  void do_at_once() {
    for (bool more = true; more;) {
      more = false;
      for (const int call : running_) {
        if (call == kNobody) continue;
        for (std::size_t i = 0; i < call_at(call).steps.size(); ++i) {
          if (!model_.at_once(call_at(call).steps[i]) || !possible(call, i)) continue;
          apply(call, i);
          more = true;
        }
      }
    }
  }

  // From event `at` on, as far as there is nothing to choose. Then each choice: the steps that must come now first.
  bool go_on(std::size_t at) {
    for (;; ++at) {
      do_at_once();
      if (at == events_.size()) return true;
      const Event& event = events_[at];
      if (!event.response) {
        set_running(event.call, event.call);
      } else if (complete(event.call)) {
        set_running(event.call, kNobody);
      } else {
        break;
      }
    }
    const int due = events_[at].call;
    if (seen_.size() >= kStatesMax || !seen_.insert(state(at)).second) return false;
    const std::size_t mark = trail_.size();
    std::array<int, kProcessesMax> order = running_;
    std::ranges::partition(order, [due](int call) { return call == due; });
    for (const int call : order) {
      if (call == kNobody) continue;
      for (std::size_t i = 0; i < call_at(call).steps.size(); ++i) {
        if (!possible(call, i)) continue;
        apply(call, i);
        if (go_on(at)) return true;
        take_back(mark);
      }
    }
    note_stuck(at, due);
    return false;
  }

  State state(std::size_t at) {
    State state{at};
    for (std::size_t i = 0; i < running_.size(); ++i)
      state[i + 1] = running_[i] == kNobody ? 0 : done_of(running_[i]);
    return state;
  }

  void note_stuck(std::size_t at, int due) {
    if (at < furthest_) return;
    if (at > furthest_) stuck_on_.clear();
    furthest_ = at;
    const StepCall& call = call_at(due);
    for (std::size_t i = 0; i < call.steps.size(); ++i) {
      if (!ready(due, i)) continue;
      const Promise against = model_.against(call, call.steps[i]);
      if (against == Promise::kKept) continue;
      stuck_on_.insert(against);
      stuck_text_ = fmt::format("{}: call {} of process {}, sequence {}, step {} of kind {} has no instant",
                                name_of(against), static_cast<int>(call.operation.call), call.operation.process,
                                call.operation.sequence, i, static_cast<int>(call.steps[i].kind));
    }
  }

  Steps& steps_;
  Model model_;
  std::vector<std::uint64_t> done_;
  std::vector<Event> events_;
  std::array<int, kProcessesMax> running_{};
  std::vector<Done> trail_;
  std::set<State> seen_;
  std::size_t furthest_ = 0;
  std::set<Promise> stuck_on_;
  std::string stuck_text_;
};

}  // namespace

const char* name_of(Promise promise) {
  constexpr const char* kNames[] = {
      "kept", "a match is of Live pages", "what is published is found", "what is pending is coming",
      "the right page", "a page is one's", "a key is in one page", "the parent is held", "parents first",
      "a lease keeps", "a child keeps its parent", "the counts", "enough is enough", "the record", "undecided"};
  return kNames[static_cast<std::size_t>(promise)];
}

bool Verdict::breaks(Promise promise) const { return std::ranges::find(broken, promise) != broken.end(); }

Verdict check(const History& history) {
  Steps steps = steps_of(history);
  for (const StepCall& call : steps.calls) {
    if (call.steps.size() > kStepsMax || call.operation.process >= kProcessesMax)
      return {{Promise::kRecord}, "too long a call or too many processes", 0};
  }
  if (steps.verdict.right()) Search(steps).run();
  return std::move(steps.verdict);
}

}  // namespace kvtrie::test
