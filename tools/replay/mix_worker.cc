// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/mix_worker.h"

#include <algorithm>
#include <array>
#include <utility>

namespace kvtrie::replay {
namespace {

constexpr std::uint32_t kTriesMax = 40;
constexpr std::size_t kBatchMax = 5;
constexpr std::uint64_t kNeighbours = 8;     // a companion's request is so near to the last one taken
constexpr std::uint64_t kNewComesFirst = 8;  // an operation that was not done yet, one time in so many

struct OperationTraits {
  const char* name;
  std::uint32_t weight;
};

// In the order of MixWorker::Operation. Flushes are rare, so that there are hits.
constexpr std::array kTraits = {
    OperationTraits{"begin", 120},
    OperationTraits{"prepare a batch", 50},
    OperationTraits{"begin what others begin", 40},
    OperationTraits{"begin beside", 60},
    OperationTraits{"fork", 50},
    OperationTraits{"wait", 80},
    OperationTraits{"allocate", 200},
    OperationTraits{"append", 50},
    OperationTraits{"compute", 250},
    OperationTraits{"publish", 200},
    OperationTraits{"publish incomplete", 120},
    OperationTraits{"give back", 30},
    OperationTraits{"copy out", 50},
    OperationTraits{"release", 300},
    OperationTraits{"preempt", 15},
    OperationTraits{"probe", 40},
    OperationTraits{"probe by hashes", 30},
    OperationTraits{"compare counters", 10},
    OperationTraits{"evict", 10},
    OperationTraits{"flush", 1},
    OperationTraits{"attach beside", 3},
    OperationTraits{"device calls", 5},
    OperationTraits{"misuse", 20},
};

}  // namespace

MixWorker::MixWorker(const MixContext& context, std::uint32_t in_flight, bool successor)
    : context_(context), in_flight_(in_flight), done_(kOperations, successor), counters_(remember_counters(context)) {
  static_assert(kTraits.size() == kOperations);
}

void MixWorker::run() {
  finish_flushes(context_);
  while (!context_.plan.stopping()) {
    fill_jobs();
    if (jobs_.empty() && serving() == 0) break;
    const std::size_t chosen = open_.empty() ? kNone : context_.chance.below(open_.size());
    const Operation operation = draw(chosen);
    done_[static_cast<std::size_t>(operation)] = true;
    context_.mix.add(MixEvent::kOperations);
    try {
      perform(operation, chosen);
    } catch (const PluginError& error) {
      throw PluginError(fmt::format("in '{}': {}", kTraits[static_cast<std::size_t>(operation)].name, error.what()));
    }
  }
  while (!open_.empty())
    end(open_.size() - 1, false);
}

std::size_t MixWorker::serving() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(open_, [](const MixSequencePtr& one) { return one->owns_request; }));
}

void MixWorker::fill_jobs() {
  while (jobs_.size() + serving() < in_flight_) {
    const std::optional<std::uint32_t> taken = context_.plan.take(context_.worker_number);
    if (!taken) return;
    last_taken_ = *taken;
    jobs_.push_back({*taken, true, 0});
  }
}

bool MixWorker::fits(Operation operation, std::size_t chosen) const {
  const bool has_extra_room = open_.size() < 2 * std::size_t{in_flight_};
  switch (operation) {
    case Operation::kBegin:
      return !jobs_.empty() && serving() < in_flight_;
    case Operation::kBatch:
      return !jobs_.empty() && serving() < in_flight_ && has_extra_room;
    case Operation::kCompanion:
      return has_extra_room;
    case Operation::kCounters:
    case Operation::kEvict:
    case Operation::kVisit:
    case Operation::kDevice:
      return true;
    default:
      break;
  }
  if (chosen == kNone) return false;
  const MixSequence& sequence = *open_[chosen];
  switch (operation) {
    case Operation::kFork:
    case Operation::kBeside:
      return has_extra_room;
    case Operation::kWait:
      return !sequence.has_own();
    case Operation::kCompute:
      return can_compute(context_, sequence);
    case Operation::kAppend:
      return sequence.known() < sequence.target_tokens;
    case Operation::kRelease:  // what serves a request does its work first
      return !sequence.owns_request || sequence.flushed || !has_work(context_, sequence);
    case Operation::kPreempt:
      return sequence.owns_request;
    default:
      return true;
  }
}

MixWorker::Operation MixWorker::draw(std::size_t chosen) {
  std::array<std::uint32_t, kOperations> weights{};
  std::uint64_t sum = 0;
  const bool new_first = context_.chance.below(kNewComesFirst) == 0;
  for (const bool only_new : {new_first, false}) {
    sum = 0;
    for (std::size_t i = 0; i < kOperations; ++i) {
      const bool may = fits(static_cast<Operation>(i), chosen) && !(only_new && done_[i]);
      weights[i] = may ? kTraits[i].weight : 0;
      sum += weights[i];
    }
    if (sum > 0) break;
  }
  std::uint64_t at = context_.chance.below(sum);
  std::size_t i = 0;
  while (at >= weights[i])
    at -= weights[i++];
  return static_cast<Operation>(i);
}

void MixWorker::perform(Operation operation, std::size_t chosen) {
  switch (operation) {
    case Operation::kBegin:
      return begin_next();
    case Operation::kBatch:
      return begin_batch();
    case Operation::kCompanion:
      return begin_companion(static_cast<std::uint32_t>((last_taken_ + context_.chance.below(kNeighbours)) %
                                                        context_.plan.request_count()));
    case Operation::kCounters:
      return compare_counters(context_, counters_);
    case Operation::kEvict:
      evict_some(context_);
      return check_all("evict");
    case Operation::kVisit:
      return visit_beside(context_);
    case Operation::kDevice:
      return use_device_calls(context_);
    default:
      return perform_on(operation, chosen);
  }
}

void MixWorker::perform_on(Operation operation, std::size_t chosen) {
  MixSequence& sequence = *open_[chosen];
  switch (operation) {
    case Operation::kFork:
      if (MixSequencePtr child = fork_sequence(context_, sequence)) open_.push_back(std::move(child));
      return;
    case Operation::kBeside:
      if (MixSequencePtr begun = begin_beside(context_, sequence)) open_.push_back(std::move(begun));
      return;
    case Operation::kWait:
      return wait_for_pending(context_, sequence);
    case Operation::kAllocate:
      return allocate_or_make_room(chosen);
    case Operation::kAppend:
      return append_tokens(context_, sequence);
    case Operation::kCompute:
      return compute_pages(context_, sequence);
    case Operation::kPublish:
    case Operation::kPublishIncomplete:
      return publish_pages(context_, sequence, operation == Operation::kPublishIncomplete);
    case Operation::kGiveBack:
      return give_pages_back(context_, sequence);
    case Operation::kCopyOut:
      return copy_out_and_compare(context_, sequence);
    case Operation::kRelease:
      return end(chosen, sequence.flushed);
    case Operation::kPreempt:
      return end(chosen, true);
    case Operation::kProbe:
      return probe_prefix(context_, sequence);
    case Operation::kProbeHashes:
      return probe_by_hashes(context_, sequence);
    case Operation::kFlush:
      return flush_and_begin_again(chosen);
    case Operation::kMisuse:
      return misuse(context_, sequence);
    default:
      return;
  }
}

void MixWorker::begin_next() {
  const MixJob job = jobs_.front();
  jobs_.pop_front();
  if (MixSequencePtr begun = begin_sequence(context_, job)) {
    open_.push_back(std::move(begun));
  } else {
    jobs_.push_back(job);
  }
}

// Requests that are due, and now and then one of them twice: as parallel samples.
void MixWorker::begin_batch() {
  std::vector<MixJob> batch;
  const std::size_t most = std::min({kBatchMax, in_flight_ - serving(), jobs_.size()});
  for (std::size_t left = context_.chance.between(1, most); left > 0; --left) {
    batch.push_back(jobs_.front());
    jobs_.pop_front();
  }
  if (context_.chance.percent(60)) batch.push_back({batch.front().request, false, 0});
  std::vector<MixSequencePtr> begun = prepare_batch(context_, batch);
  if (begun.empty()) {
    for (MixJob& job : batch) {
      if (job.owns_request && ++job.tries <= kTriesMax) {
        jobs_.push_back(job);
      } else if (job.owns_request) {
        context_.tally.add(Tally::kFailed);
        context_.mix.add(MixEvent::kGivenUp);
        context_.plan.finish(job.request, false);
      }
    }
  }
  for (MixSequencePtr& one : begun)
    open_.push_back(std::move(one));
}

void MixWorker::begin_companion(std::uint32_t request) {
  if (MixSequencePtr begun = begin_sequence(context_, {request, false, 0})) open_.push_back(std::move(begun));
}

void MixWorker::allocate_or_make_room(std::size_t chosen) {
  if (allocate_pages(context_, *open_[chosen])) return;
  if (!context_.chance.percent(40)) return;
  context_.tally.add(Tally::kRetries);
  end(chosen, true);
}

// Nothing of the older weights may match: the same prompt is begun with at once.
void MixWorker::flush_and_begin_again(std::size_t chosen) {
  const std::uint32_t request = open_[chosen]->request;
  if (!flush_namespace(context_, open_[chosen]->name_space)) return;
  check_all("flush");  // what they hold stays readable
  begin_companion(request);
}

void MixWorker::check_all(const char* when) {
  for (const MixSequencePtr& one : open_) {
    look(context_, *one);
    check(context_, *one, when);
  }
}

// `preempted`: its request is begun again later.
void MixWorker::end(std::size_t chosen, bool preempted) {
  MixSequencePtr sequence = std::move(open_[chosen]);
  open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(chosen));
  release_sequence(context_, *sequence);
  if (!sequence->owns_request) return;
  if (!preempted) return finish(*sequence, true);
  context_.mix.add(MixEvent::kPreempted);
  if (sequence->tries >= kTriesMax) {
    context_.mix.add(MixEvent::kGivenUp);
    return finish(*sequence, false);
  }
  jobs_.push_back({sequence->request, true, sequence->tries + 1});
}

void MixWorker::finish(const MixSequence& sequence, bool served) {
  WorkerTally& tally = context_.tally;
  const std::uint32_t page_tokens = context_.shape.tokens;
  const Request request = context_.plan.request(sequence.request);
  tally.add(served ? Tally::kServed : Tally::kFailed);
  tally.add(Tally::kBlocksAsked, request.hash_ids.size());
  tally.add(Tally::kBlocksHit, blocks_in_pages(sequence.cached, page_tokens));
  tally.add(Tally::kTokensAsked, prompt_tokens(request));
  tally.add(Tally::kTokensHit, std::uint64_t{sequence.cached} * page_tokens);
  context_.plan.finish(sequence.request, served);
}

}  // namespace kvtrie::replay
