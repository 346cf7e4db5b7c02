// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/engine_loop.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <stdexcept>
#include <thread>
#include <utility>

namespace kvtrie::engine {
namespace {

constexpr auto kNothingToDo = std::chrono::microseconds(100);
constexpr std::uint32_t kPagesWaitMs = 200;  // then it looks whether it is asked to stop
constexpr std::uint32_t kLooksMax = 3;
constexpr std::uint32_t kStepsUntilAsked = 4;
constexpr std::uint32_t kSabotageEvery = 25;

// Always: as long as somebody is at it. Else: as long as it is likely to pay.
kv::WaitOptions wait_options(WaitMode mode) {
  kv::WaitOptions options;
  if (mode == WaitMode::kWait) options = {.slowness = 1e9, .grace_ms = 1e6, .worth_ms = 0, .limit_ms = 30'000};
  return options;
}

}  // namespace

EngineLoop::EngineLoop(const kv::Worker& worker, kvtrie_namespace name_space, Engine& engine, Board& board,
                       std::uint32_t number, const kv::PrefillSpeed& measured)
    : worker_(worker),
      name_space_(name_space),
      engine_(engine),
      board_(board),
      settings_(board.settings()),
      number_(number),
      geometry_(worker.geometry()),
      page_tokens_(geometry_.tokens_per_page),
      policy_(geometry_, wait_options(settings_.wait)),
      faults_(board, number),
      tally_(board.tally(number)),
      speed_(measured) {}

void EngineLoop::run() {
  while (!board_.stopping()) {
    take_requests();
    look_at_waiting(false);
    // After a refusal not in each step: pages come when something ends, here or in another process.
    if (running_.empty() || steps_until_admit_ == 0) admit();
    if (!running_.empty()) {
      step();
    } else if (!waiting_.empty()) {
      look_at_waiting(true);
    } else if (queue_.empty()) {
      if (board_.finished() == board_.requests()) return;
      std::this_thread::sleep_for(kNothingToDo);
    }
  }
}

void EngineLoop::take_requests() {
  while (queue_.size() + waiting_.size() + running_.size() < settings_.in_flight) {
    const std::optional<std::uint32_t> index = board_.take(number_);
    if (!index) return;
    auto request = std::make_unique<Request>();
    request->index = *index;
    request->spec = make_request(board_.workload(), *index);
    request->beams.resize(1);
    request->beams[0].tokens = request->spec.prompt;
    request->taken_ns = now_ns();
    faults_.plan(*request);
    queue_.push_back(std::move(request));
  }
}

// ---- from the queue to running

// Requests are begun and given pages together, all of a batch or none; a smaller batch when there are too few pages.
void EngineLoop::admit() {
  while (!queue_.empty()) {
    std::vector<RequestPtr> group;
    while (!queue_.empty() && group.size() < settings_.batch) {
      RequestPtr request = std::move(queue_.front());
      queue_.pop_front();
      if (request->fault == Stage::kBegin) {
        const kv::Begun begun = worker_.begin(name_space_, request->spec.prompt);
        (void)faults_.strike(Stage::kBegin, *request);
        abort(std::move(request));  // what was begun ends with this scope
      } else if (!wait_pays(request)) {
        group.push_back(std::move(request));
      }
    }
    std::size_t count = group.size();
    kv::Outcome outcome = KVTRIE_OK;
    for (; count > 0; count /= 2) {
      // Rule 1: wait for pages only when nothing here could give any, and with nothing in hand.
      outcome = prepare(std::span(group).first(count), running_.empty() && waiting_.empty() && count == 1);
      if (outcome) break;
      if (count == 1 && outcome == KVTRIE_E_NEVER)
        throw std::runtime_error("a request needs more pages than there are");
      if (outcome == KVTRIE_E_STALE) throw std::runtime_error("the namespace lost its place");
    }
    // What did not fit waits for its turn, in its old order.
    queue_.insert(queue_.begin(), std::make_move_iterator(group.begin() + static_cast<std::ptrdiff_t>(count)),
                  std::make_move_iterator(group.end()));
    group.resize(count);
    for (RequestPtr& request : group)
      run_or_look_again(std::move(request));
    if (!outcome) {
      steps_until_admit_ = kStepsUntilAsked;
      return;
    }
  }
}

// KVTRIE_OK: all of them have begun and have pages. Else none.
kv::Outcome EngineLoop::prepare(std::span<RequestPtr> group, bool may_wait) {
  kv::Batch batch;
  for (const RequestPtr& request : group) {
    for (const Beam& beam : request->beams) {
      // Rule 5.
      batch.add(name_space_, kv::Tokens(beam.tokens).first(beam.tokens.size() - 1), tokens_wanted(*request, beam));
    }
  }
  kv::AllocateOptions options;
  options.wait_ms = may_wait ? kPagesWaitMs : 0;
  const kv::Outcome outcome = batch.prepare(worker_, &options);
  if (!outcome) {
    tally_.add(Count::kNotNow);
    return outcome;
  }
  tally_.add(Count::kBatches);
  std::size_t item = 0;
  for (const RequestPtr& request : group) {
    for (Beam& beam : request->beams) {
      const std::uint64_t cached = batch.item(item).cached_tokens;
      const std::uint64_t shared = batch.item(item).shared_tokens;
      tally_.add(request->preempted ? Count::kResumedCached : Count::kCached, cached);
      tally_.add(Count::kShared, shared);
      start(beam, std::move(batch.sequence(item++)), cached, shared);
    }
    if (request->preempted) tally_.add(Count::kResumed);
  }
  return outcome;
}

// A sequence that has pages now.
void EngineLoop::start(Beam& beam, kv::Sequence sequence, std::uint64_t cached, std::uint64_t shared) {
  beam.sequence = std::move(sequence);
  beam.computed = cached;
  beam.borrowed_end = static_cast<std::uint32_t>((cached + shared) / page_tokens_);
  beam.sequence.append(kv::Tokens(&beam.tokens.back(), 1));
  load_pages(worker_, beam);
}

// Between begin and allocate another process may have announced the same pages. Then this begin came a little too
// early: begun again, it sees what is under way, and may wait for it.
void EngineLoop::run_or_look_again(RequestPtr request) {
  if (faults_.strike(Stage::kAllocate, *request)) return abort(std::move(request));
  Beam& first = request->beams[0];
  const auto to_compute = static_cast<double>(first.tokens.size() - first.computed);
  if (settings_.wait != WaitMode::kCompute && !request->ignores && request->beams.size() == 1 &&
      request->looks < kLooksMax && policy_.is_worth_waiting_for(to_compute, speed_.tokens_per_s()) &&
      kv::announced_by_another(first.sequence, first.tokens.size() - 1, page_tokens_)) {
    ++request->looks;
    tally_.add(Count::kLookedAgain);
    let_go(*request);
    queue_.push_front(std::move(request));
    return;
  }
  if (sabotages(Sabotage::kForeignPage, *request)) {
    const std::uint64_t own = first.computed / page_tokens_;
    if (own + 2 < first.pages.size()) std::swap(first.pages[own], first.pages[own + 1]);
  }
  running_.push_back(std::move(request));
}

// Whether another process computes what comes next, and waiting for it pays. Then it waits: moved to waiting_.
bool EngineLoop::wait_pays(RequestPtr& request) {
  if (settings_.wait == WaitMode::kCompute || request->ignores || request->beams.size() > 1) return false;
  Beam& beam = request->beams[0];
  const kv::Tokens known = kv::Tokens(beam.tokens).first(beam.tokens.size() - 1);
  // Of most requests nothing is under way, and this look is the cheaper one.
  const kv::Probed probed = worker_.probe(name_space_, known);
  if (!probed.outcome || probed.result.pending_pages == 0) return false;
  kv::Begun begun = worker_.begin(name_space_, known);
  if (!begun.outcome) return false;
  request->wait.emplace(begun.result);
  kv::Advice advice = request->wait->advise(policy_, speed_.tokens_per_s());
  if (advice.choice == kv::Choice::kIgnore && request->looks > 0) {
    // A short part. But somebody was first with our first page, and may be announcing the others now.
    (void)request->wait->look(begun.sequence, 1).code();
    advice = request->wait->advise(policy_, speed_.tokens_per_s());
  }
  if (advice.choice != kv::Choice::kWait) {
    if (advice.choice == kv::Choice::kIgnore) tally_.add(Count::kIgnored);
    request->wait.reset();
    return false;
  }
  tally_.add(Count::kWaited);
  beam.sequence = std::move(begun.sequence);
  waiting_.push_back(std::move(request));
  return true;
}

// Each of them: are the pages there, or is it time to stop? Sleeps, for the first one, when there is nothing else to
// do.
void EngineLoop::look_at_waiting(bool may_sleep) {
  std::vector<RequestPtr> still;
  for (RequestPtr& request : std::exchange(waiting_, {})) {
    kv::Advice advice = request->wait->advise(policy_, speed_.tokens_per_s());
    kv::Outcome outcome = KVTRIE_E_TIMEOUT;
    if (advice.choice == kv::Choice::kWait) {
      outcome = request->wait->look(request->beams[0].sequence, std::exchange(may_sleep, false) ? advice.look_ms : 0);
      advice = request->wait->advise(policy_, speed_.tokens_per_s());
    }
    if (outcome == KVTRIE_E_TIMEOUT && advice.choice == kv::Choice::kWait) {
      still.push_back(std::move(request));
    } else {
      request->ignores = outcome == KVTRIE_E_TIMEOUT && advice.choice == kv::Choice::kIgnore;
      if (request->ignores) tally_.add(Count::kIgnored);
      end_wait(std::move(request));
    }
  }
  std::ranges::move(still, std::back_inserter(waiting_));
}

// What came is matched. The rest is this request's to compute, if there are pages for it; else it holds nothing while
// it waits for them.
void EngineLoop::end_wait(RequestPtr request) {
  note_wake(*request, board_);
  const kv::BeginResult found = request->wait->result();
  Beam& beam = request->beams[0];
  tally_.add(Count::kWaitedTokens, found.cached_tokens);
  request->wait.reset();
  kv::AllocateOptions options;
  options.flags = KVTRIE_NO_WAIT;
  if (!beam.sequence.allocate(tokens_wanted(*request, beam), &options)) {
    beam.sequence = {};
    queue_.push_front(std::move(request));
    return;
  }
  start(beam, std::move(beam.sequence), found.cached_tokens, 0);
  run_or_look_again(std::move(request));
}

// ---- one step

void EngineLoop::step() {
  if (steps_until_admit_ > 0) --steps_until_admit_;
  make_room();
  if (running_.empty()) return;
  std::vector<Part> parts;
  std::vector<Work> works;
  plan(parts, works);
  if (parts.empty()) throw std::logic_error("no running request can go on");
  if (settings_.sabotage == Sabotage::kPublishEarly) publish();
  compute(parts, works);
  remove_failed(Stage::kCompute);  // its pages may be half written: they go back unpublished
  if (settings_.sabotage != Sabotage::kPublishEarly) publish();  // rule 4
  remove_failed(Stage::kPublish);
  for (RequestPtr& request : std::exchange(running_, {})) {
    const bool has_room = request->beams[0].candidates.empty() || advance(*request);
    if (request->finished()) {
      finish(std::move(request));
    } else if (has_room) {
      running_.push_back(std::move(request));
    } else {
      preempt(std::move(request));
    }
  }
}

// A page for each known token, oldest request first.
void EngineLoop::make_room() {
  for (std::size_t i = 0; i < running_.size(); ++i) {
    for (std::size_t b = 0; i < running_.size() && b < running_[i]->beams.size();) {
      if (grow(*running_[i], running_[i]->beams[b])) {
        ++b;
        continue;
      }
      RequestPtr youngest = std::move(running_.back());  // rule 2; it may be running_[i]
      running_.pop_back();
      preempt(std::move(youngest));
    }
  }
}

bool EngineLoop::grow(Request& request, Beam& beam) {
  if (beam.pages.size() * page_tokens_ >= beam.tokens.size()) return true;
  kv::AllocateOptions options;
  options.flags = KVTRIE_NO_WAIT;
  if (!beam.sequence.allocate(tokens_wanted(request, beam), &options)) return false;
  load_pages(worker_, beam);
  return true;
}

// Rule 6. Whole pages; who computes them may have gone meanwhile, and left them to this sequence.
void EngineLoop::skip_what_others_computed(Beam& beam) {
  if (beam.computed >= std::uint64_t{beam.borrowed_end} * page_tokens_) return;
  std::vector<kvtrie_own_page> own(beam.pages.size());
  own.resize(beam.sequence.own_pages(own));
  for (const kvtrie_own_page& page : own) {
    if (page.position >= beam.borrowed_end) return;
    if (std::uint64_t{page.position} * page_tokens_ != beam.computed) continue;
    if (page.state == KVTRIE_PAGE_PRIVATE || page.state == KVTRIE_PAGE_ANNOUNCED) {
      beam.borrowed_end = 0;  // ours now, with all that follow
      return;
    }
    if (page.state == KVTRIE_PAGE_BORROWED && !is_computed_by_another(beam, page.position)) return;
    beam.computed += page_tokens_;
  }
}

bool EngineLoop::is_computed_by_another(const Beam& beam, std::uint32_t position) const {
  for (const RequestPtr& request : running_) {
    for (const Beam& other : request->beams) {
      if (&other != &beam && position < other.page_ids.size() &&
          other.page_ids[position] == beam.page_ids[position] &&
          other.computed >= (std::uint64_t{position} + 1) * page_tokens_) {
        return true;
      }
    }
  }
  return false;
}

// Decoding first, one token a beam, so that nobody's text stops for another's long prompt; prefill with what is left
// of the budget, in chunks.
void EngineLoop::plan(std::vector<Part>& parts, std::vector<Work>& works) {
  std::uint64_t budget = settings_.chunk;
  const auto at_last_token = [](const Beam& beam) { return beam.computed + 1 == beam.tokens.size(); };
  std::vector<Request*> prefill;
  for (const RequestPtr& request : running_) {
    for (Beam& beam : request->beams) {
      beam.step_end = 0;
      skip_what_others_computed(beam);
    }
    // All beams of a request get their next tokens in one step.
    if (!std::ranges::all_of(request->beams, at_last_token)) {
      prefill.push_back(request.get());
      continue;
    }
    for (Beam& beam : request->beams)
      plan_beam(*request, beam, beam.tokens.size(), parts, works);
    budget -= std::min<std::uint64_t>(budget, request->beams.size());
  }
  for (Request* request : prefill) {
    for (Beam& beam : request->beams) {
      const std::uint64_t end = beam.tokens.size() - (request->beams.size() > 1 ? 1 : 0);
      budget -= plan_beam(*request, beam, std::min(end, beam.computed + budget), parts, works);
    }
  }
}

// How many tokens are to be computed.
std::uint64_t EngineLoop::plan_beam(Request& request, Beam& beam, std::uint64_t end, std::vector<Part>& parts,
                                    std::vector<Work>& works) {
  const bool anothers = beam.computed < std::uint64_t{beam.borrowed_end} * page_tokens_;
  if (anothers || end <= beam.computed) return 0;
  beam.step_end = end;
  const std::uint32_t wanted = end == beam.tokens.size() ? request.spec.beams : 0;
  parts.push_back({&request, &beam});
  works.push_back({beam.tokens, beam.pages, beam.computed, end, wanted, {}, beam.sequence.handle().id, request.index,
                   beam.page_ids});
  // Faults: half of it is computed.
  const std::uint64_t half = beam.computed + (end - beam.computed + 1) / 2;
  if (request.fault == Stage::kCompute || sabotages(Sabotage::kHalfWrite, request)) works.back().end = half;
  return end - beam.computed;
}

void EngineLoop::compute(std::span<const Part> parts, std::span<Work> works) {
  const std::uint64_t start = now_ns();
  engine_.step(works);
  const double seconds = static_cast<double>(now_ns() - start) * 1e-9;
  std::uint64_t prefilled = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Beam& beam = *parts[i].beam;
    Request& request = *parts[i].request;
    const std::uint64_t prompt_end = std::min<std::uint64_t>(beam.step_end, request.spec.prompt.size());
    const std::uint64_t of_prompt = prompt_end - std::min(beam.computed, prompt_end);
    request.prefilled += of_prompt;
    prefilled += of_prompt;
    tally_.add(Count::kDecoded, beam.step_end - beam.computed - of_prompt);
    beam.computed = beam.step_end;
    beam.candidates = std::move(works[i].candidates);
    if (of_prompt > 1) faults_.strike_owner(request);
  }
  // Steps that mostly decode say nothing about prefill.
  if (prefilled > parts.size()) speed_.computed(prefilled, seconds);
  tally_.add(Count::kPrefilled, prefilled);
  tally_.add(Count::kSteps);
}

void EngineLoop::publish() {
  for (const RequestPtr& request : running_) {
    for (Beam& beam : request->beams) {
      if (beam.step_end == 0) continue;
      const kv::Published done = beam.sequence.publish(beam.step_end);
      if (!done.outcome) continue;  // flushed: its text goes on from its own pages
      tally_.add(Count::kPublished, done.result.pages_published);
      tally_.add(Count::kKeptPrivate, done.result.pages_private);
    }
  }
}

// ---- back to the queue, or away

void EngineLoop::preempt(RequestPtr request) {
  let_go(*request);
  request->preempted = true;
  tally_.add(Count::kPreempted);
  queue_.push_front(std::move(request));
}

// It failed, and is asked for once more: from its prompt.
void EngineLoop::abort(RequestPtr request) {
  let_go(*request);
  request->beams.resize(1);
  request->beams[0].tokens = request->spec.prompt;
  request->beams[0].cost = 0;
  request->prefilled = 0;
  queue_.push_back(std::move(request));
}

void EngineLoop::remove_failed(Stage stage) {
  for (RequestPtr& request : std::exchange(running_, {})) {
    const bool took_part = request->fault == stage;
    if (took_part && faults_.strike(stage, *request)) {
      abort(std::move(request));
    } else {
      running_.push_back(std::move(request));
    }
  }
}

void EngineLoop::finish(RequestPtr request) {
  let_go(*request);
  steps_until_admit_ = 0;
  if (faults_.strike(Stage::kRelease, *request)) return abort(std::move(request));
  record_answer(*request, board_.record(request->index));
  board_.finish(request->index);
}

// Some ahead, so that not each step allocates.
std::uint64_t EngineLoop::tokens_wanted(const Request& request, const Beam& beam) const {
  const std::uint64_t all = request.tokens_at_end();
  return request.preempted ? all : std::min<std::uint64_t>(all, beam.tokens.size() + page_tokens_);
}

bool EngineLoop::sabotages(Sabotage kind, const Request& request) const {
  return settings_.sabotage == kind && request.index % kSabotageEvery == 0;
}

}  // namespace kvtrie::engine
