// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <span>

#include "tools/replay/mix_operations.h"

namespace kvtrie::replay {
namespace {

constexpr std::uint32_t kWaitMaxMs = 8;

// Two of three prompts end inside a page, and the same wherever the request is begun with.
std::vector<std::uint32_t> prompt_of(const Request& request, std::uint32_t index) {
  std::vector<std::uint32_t> tokens;
  tokens_of_prompt(request, tokens);
  const std::uint64_t draw = mix64(index + kGoldenGamma);
  if (draw % 3 != 0 && !tokens.empty()) tokens.resize(tokens.size() - draw / 3 % kBlockTokens);
  return tokens;
}

MixSequencePtr new_sequence(const MixContext& context, const MixJob& job, std::span<const std::uint32_t> tokens) {
  const std::uint32_t name_space = namespace_of_request(job.request, context.plan.settings().namespaces);
  auto sequence =
      std::make_unique<MixSequence>(context.shape, name_space, context.board.weights(name_space).done.load());
  sequence->request = job.request;
  sequence->owns_request = job.owns_request;
  sequence->tries = job.tries;
  sequence->content.learn(tokens);
  sequence->target_tokens = sequence->known() + context.plan.planned(job.request).output_length;
  return sequence;
}

MixSequencePtr new_sequence(const MixContext& context, const MixJob& job) {
  return new_sequence(context, job, prompt_of(context.plan.request(job.request), job.request));
}

kvtrie_begin_options draw_options(const MixContext& context, MixSequence& sequence) {
  Random& chance = context.chance;
  sequence.flags =
      context.drawn(KVTRIE_PARTIAL, 70) | context.drawn(KVTRIE_NO_READ, 5) | context.drawn(KVTRIE_NO_PUBLISH, 8) |
      context.drawn(KVTRIE_TOKENS_STAY, 40);  // they do, in its content
  kvtrie_begin_options options{};
  options.size = sizeof options;
  options.flags = sequence.flags;
  options.request_tag = sequence.request;
  options.retention_ticks = static_cast<std::uint32_t>(chance.below(4) == 0 ? chance.below(1000) : 0);
  options.hint = static_cast<std::uint8_t>(chance.below(4));
  options.priority = static_cast<std::uint8_t>(chance.below(16));
  return options;
}

void drive_clock(const MixContext& context, std::uint32_t request) {
  context.calls.make<MixCall::drive_clock>({context.drives_clock ? KVTRIE_OK : KVTRIE_E_INVALID}, context.worker,
                                           context.plan.planned(request).tick);
}

// What begin and prepare_batch say of a match.
void take_match(const MixContext& context, MixCall call, MixSequence& sequence, std::uint64_t cached_tokens) {
  const std::uint32_t page_tokens = context.shape.tokens;
  context.calls.require(cached_tokens % page_tokens == 0 && cached_tokens <= sequence.known(), call,
                        "{} of {} tokens are cached", cached_tokens, sequence.known());
  context.calls.require(!sequence.has(KVTRIE_NO_READ) || cached_tokens == 0, call, "matched with KVTRIE_NO_READ");
  sequence.cached = sequence.published = static_cast<std::uint32_t>(cached_tokens / page_tokens);
  WorkerTally& tally = context.tally;
  tally.add(Tally::kPagesHit, sequence.cached);
  tally.add(Tally::kBegins);
  tally.add(Tally::kPagesAsked, sequence.known() / page_tokens);
  if (sequence.cached > 0) context.mix.add(MixEvent::kHits);
}

void count_runs(const MixContext& context, const MixSequence& sequence) {
  std::uint64_t runs = sequence.cached > 0 ? 1 : 0;
  for (std::uint32_t i = 1; i < sequence.cached; ++i)
    runs += sequence.held[i].page != sequence.held[i - 1].page + 1 ? 1 : 0;
  context.tally.add(Tally::kRuns, runs);
}

void check_partial(const MixContext& context, MixCall call, const MixSequence& sequence, std::uint32_t tokens,
                   std::uint32_t page) {
  context.calls.require((tokens == 0) == (page == KVTRIE_NO_PAGE), call, "{} partial tokens of page {:#x}", tokens,
                        page);
  if (tokens == 0) return;
  const std::uint64_t rest = sequence.known() - std::uint64_t{sequence.cached} * context.shape.tokens;
  context.calls.require(sequence.has(KVTRIE_PARTIAL) && !sequence.has(KVTRIE_NO_READ) &&
                            tokens <= std::min<std::uint64_t>(rest, context.shape.tokens) &&
                            page < context.geometry.pages,
                        call, "{} partial tokens of page {}, flags {:#x}", tokens, page, sequence.flags);
  context.mix.add(MixEvent::kPartialFound);
}

kvtrie_allocate_options draw_wait(const MixContext& context) {
  kvtrie_allocate_options options{};
  options.size = sizeof options;
  options.wait_ms = static_cast<std::uint32_t>(context.chance.below(2) * context.chance.below(kWaitMaxMs));
  options.flags = context.drawn(KVTRIE_NO_WAIT, 10) | context.drawn(KVTRIE_NO_COPY, 20);
  return options;
}

struct BatchArrays {
  std::vector<MixSequencePtr> sequences;
  std::vector<kvtrie_begin_options> options;
  std::vector<std::vector<std::uint32_t>> computed_by;
  std::vector<kvtrie_batch_item> items;
  std::uint64_t pages_needed = 0;
};

BatchArrays batch_of(const MixContext& context, const std::vector<MixJob>& jobs) {
  BatchArrays batch;
  for (const MixJob& job : jobs) {
    MixSequence& sequence = *batch.sequences.emplace_back(new_sequence(context, job));
    batch.options.push_back(draw_options(context, sequence));
    // For the prompt and some of the answer; sometimes not even for the prompt.
    const std::uint64_t total = context.chance.percent(10)
                                    ? context.chance.below(sequence.known() + 1)
                                    : sequence.known() + context.chance.below(2 * context.shape.tokens);
    batch.computed_by.emplace_back(context.pages_for(total));
    kvtrie_batch_item item{};
    item.size = sizeof item;
    item.name_space = context.namespaces[sequence.name_space];
    item.tokens = sequence.content.tokens().data();
    item.token_count = sequence.known();
    item.total_tokens = total;
    batch.items.push_back(item);
    batch.pages_needed += context.pages_for(total);
  }
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    batch.items[i].options = &batch.options[i];
    batch.items[i].computed_by = batch.computed_by[i].data();
  }
  return batch;
}

// computed_by of item `index`: cached pages, then those of earlier items with the same tokens so far, then its own.
void check_computers(const MixContext& context, const BatchArrays& batch, std::uint32_t index, std::uint32_t shared) {
  const MixSequence& sequence = *batch.sequences[index];
  const std::vector<std::uint32_t>& computers = batch.computed_by[index];
  const std::uint64_t page_tokens = context.shape.tokens;
  for (std::uint32_t position = 0; position < computers.size(); ++position) {
    const std::uint32_t computer = computers[position];
    bool fits = false;
    if (position < sequence.cached) {
      fits = computer == KVTRIE_CACHED;
    } else if (position >= sequence.cached + shared) {
      fits = computer == index;
    } else if (computer < index) {
      const MixSequence& other = *batch.sequences[computer];
      const std::uint64_t end = (position + 1) * page_tokens;
      const std::span<const std::uint32_t> mine = sequence.content.tokens();
      const std::span<const std::uint32_t> theirs = other.content.tokens();
      fits = other.name_space == sequence.name_space && end <= mine.size() && end <= theirs.size() &&
             std::ranges::equal(mine.first(end), theirs.first(end)) &&
             sequence.held[position].state == KVTRIE_PAGE_BORROWED &&
             sequence.held[position].page == other.held[position].page;
    }
    context.calls.require(fits, MixCall::prepare_batch,
                          "item {}: position {} is computed by {:#x}; {} cached, {} shared", index, position, computer,
                          sequence.cached, shared);
  }
}

void take_item(const MixContext& context, const BatchArrays& batch, std::uint32_t index, std::uint32_t flags) {
  constexpr MixCall kCall = MixCall::prepare_batch;
  MixSequence& sequence = *batch.sequences[index];
  const kvtrie_batch_item& item = batch.items[index];
  sequence.handle = item.sequence;
  take_match(context, kCall, sequence, item.cached_tokens);
  check_partial(context, kCall, sequence, item.partial_tokens, item.partial_page);
  look(context, sequence);
  count_runs(context, sequence);
  context.calls.require(
      sequence.positions() == std::max<std::uint64_t>(sequence.cached, context.pages_for(item.total_tokens)), kCall,
      "item {}: {} pages for {} tokens", index, sequence.positions(), item.total_tokens);
  const auto shared = static_cast<std::uint32_t>(item.shared_tokens / context.shape.tokens);
  check_computers(context, batch, index, shared);
  context.mix.add(MixEvent::kBatchShared, shared);
  std::uint32_t copied = 0;
  if (item.partial_tokens > 0 && sequence.has_own()) {
    copied = item.partial_tokens;
    if ((flags & KVTRIE_NO_COPY) != 0) {
      use_own_copy(context, sequence, item.partial_page, sequence.cached, copied);
    } else {
      sequence.held[sequence.cached].note->computed = copied;
      context.mix.add(MixEvent::kPartialCopied);
    }
  } else if (item.partial_tokens > 0) {
    sequence.partial = note_hit(context, item.partial_page, item.partial_tokens);
  }
  salt_private_pages(context, sequence, copied);
}

MixSequencePtr begin_with(const MixContext& context, MixSequencePtr sequence) {
  constexpr MixCall kCall = MixCall::begin;
  drive_clock(context, sequence->request);
  const kvtrie_begin_options options = draw_options(context, *sequence);
  kvtrie_begin_result result{};
  result.size = sizeof result;
  const kvtrie_code code = context.calls.make<MixCall::begin>(
      {KVTRIE_OK, KVTRIE_E_NOT_NOW}, context.worker, context.namespaces[sequence->name_space],
      sequence->content.tokens().data(), sequence->known(), &options, &result, &sequence->handle);
  context.calls.require((sequence->handle.id != 0) == (code == KVTRIE_OK), kCall, "handle {:#x}", sequence->handle.id);
  if (code != KVTRIE_OK) return nullptr;
  take_match(context, kCall, *sequence, result.cached_tokens);
  context.calls.require(result.cached_pages == sequence->cached, kCall, "{} pages", result.cached_pages);
  if (!weights_are_current(context, *sequence)) {
    context.mix.add(MixEvent::kBesideFlush);
    context.calls.make<MixCall::release>({KVTRIE_OK}, sequence->handle);
    return nullptr;
  }
  check_partial(context, kCall, *sequence, result.partial_tokens, result.partial_page);
  if (result.partial_tokens > 0) sequence->partial = note_hit(context, result.partial_page, result.partial_tokens);
  look(context, *sequence);
  context.calls.require(sequence->positions() == sequence->cached, kCall, "{} positions", sequence->positions());
  count_runs(context, *sequence);
  check(context, *sequence, "begin");
  return sequence;
}

}  // namespace

bool weights_are_current(const MixContext& context, const MixSequence& sequence) {
  return context.board.weights(sequence.name_space).asked.load() == sequence.weights;
}

MixSequencePtr begin_sequence(const MixContext& context, const MixJob& job) {
  return begin_with(context, new_sequence(context, job));
}

MixSequencePtr begin_beside(const MixContext& context, const MixSequence& like) {
  Random& chance = context.chance;
  std::vector<std::uint32_t> tokens = like.content.tokens();
  const std::uint64_t pages = chance.percent(50) ? like.published : chance.below(std::uint64_t{like.published} + 1);
  tokens.resize(
      std::min<std::uint64_t>(tokens.size(), pages * context.shape.tokens + chance.below(context.shape.tokens)));
  for (std::uint64_t more = chance.below(3 * std::uint64_t{context.shape.tokens}); more > 0; --more)
    tokens.push_back(static_cast<std::uint32_t>(chance.next()));
  return begin_with(context, new_sequence(context, {like.request, false, 0}, tokens));
}

std::vector<MixSequencePtr> prepare_batch(const MixContext& context, const std::vector<MixJob>& jobs) {
  drive_clock(context, jobs.front().request);
  BatchArrays batch = batch_of(context, jobs);
  const kvtrie_allocate_options options = draw_wait(context);
  const bool waits = options.wait_ms > 0 && (options.flags & KVTRIE_NO_WAIT) == 0;
  const kvtrie_code code =
      context.calls.make<MixCall::prepare_batch>(Codes{KVTRIE_OK, KVTRIE_E_NOT_NOW}
                                                     .add(KVTRIE_E_TIMEOUT, waits)
                                                     .add(KVTRIE_E_NEVER, batch.pages_needed > context.geometry.pages),
                                                 context.worker, batch.items.data(), batch.items.size(), &options);
  for (const kvtrie_batch_item& item : batch.items) {
    context.calls.require((item.sequence.id != 0) == (code == KVTRIE_OK), MixCall::prepare_batch,
                          "not all items or none have a sequence");
  }
  if (code != KVTRIE_OK) return {};
  context.mix.add(MixEvent::kBatches);
  const bool current = std::ranges::all_of(
      batch.sequences, [&](const MixSequencePtr& sequence) { return weights_are_current(context, *sequence); });
  if (!current) {
    context.mix.add(MixEvent::kBesideFlush);
    for (const kvtrie_batch_item& item : batch.items)
      context.calls.make<MixCall::release>({KVTRIE_OK}, item.sequence);
    return {};
  }
  for (std::uint32_t i = 0; i < batch.items.size(); ++i) {
    batch.sequences[i]->in_batch = true;
    take_item(context, batch, i, options.flags);
  }
  for (const MixSequencePtr& sequence : batch.sequences)
    check(context, *sequence, "prepare_batch");
  return std::move(batch.sequences);
}

MixSequencePtr fork_sequence(const MixContext& context, MixSequence& parent) {
  constexpr MixCall kCall = MixCall::fork_sequence;
  const MixCalls& calls = context.calls;
  kvtrie_fork_options options{};
  options.size = sizeof options;
  const kvtrie_allocate_options waiting = draw_wait(context);
  options.flags = waiting.flags;
  options.wait_ms = waiting.wait_ms;
  options.request_tag = parent.request;
  const bool waits = options.wait_ms > 0 && (options.flags & KVTRIE_NO_WAIT) == 0;
  auto child = std::make_unique<MixSequence>(context.shape, parent.name_space, parent.weights);
  const kvtrie_code code = calls.make<MixCall::fork_sequence>(
      Codes{KVTRIE_OK}.add(waits ? KVTRIE_E_TIMEOUT : KVTRIE_E_NOT_NOW), parent.handle, &options, &child->handle);
  calls.require((child->handle.id != 0) == (code == KVTRIE_OK), kCall, "handle {:#x}", child->handle.id);
  if (code != KVTRIE_OK) return nullptr;
  child->request = parent.request;
  child->target_tokens = parent.target_tokens;
  child->flags = parent.flags;
  child->content = parent.content;
  child->salted = parent.salted;
  child->flushed = parent.flushed;
  child->cached = child->published = parent.published;
  // Of a batch, another may have published pages of the parent, which has not been told yet: the child begins behind
  // them.
  if (parent.in_batch) {
    std::uint32_t count = 0;
    std::uint32_t own = 0;
    kvtrie_own_page first{};
    calls.make<MixCall::page_count>({KVTRIE_OK}, child->handle, &count);
    calls.make<MixCall::own_pages>({KVTRIE_OK}, child->handle, &first, 1U, &own);
    std::uint32_t begins = own == 0 ? count : first.position;
    for (std::uint32_t page = 0; begins > parent.published; --begins) {  // behind a position without a page
      calls.make<MixCall::get_pages>({KVTRIE_OK}, child->handle, begins - 1, 1U, &page);
      if (page != KVTRIE_NO_PAGE) break;
    }
    calls.require(begins >= parent.published, kCall, "{} of {} published pages are shared", begins, parent.published);
    child->cached = child->published = begins;
  }
  look(context, *child);
  const auto end = static_cast<std::uint32_t>(std::max<std::uint64_t>(
      child->cached, std::min<std::uint64_t>(parent.positions(), context.pages_for(parent.known()))));
  calls.require(child->positions() == end, kCall, "{} pages where {} are due", child->positions(), end);
  for (std::uint32_t position = 0; position < end; ++position) {
    const HeldPage& mine = parent.held[position];
    HeldPage& its = child->held[position];
    if (position < child->cached) {
      // Another's page is canonical where the parent, or who computes it for the parent, has a copy.
      const bool copy = mine.writable() || mine.state == KVTRIE_PAGE_BORROWED;
      calls.require(its.page == mine.page || copy, kCall, "position {}: page {}, the parent has {}", position, its.page,
                    mine.page);
      context.mix.add(MixEvent::kForkShared);
      continue;
    }
    calls.require((its.page == KVTRIE_NO_PAGE) == (mine.page == KVTRIE_NO_PAGE), kCall, "position {} without a page",
                  position);
    if (!its.note) continue;
    context.mix.add(MixEvent::kForkCopied);
    if ((options.flags & KVTRIE_NO_COPY) != 0) {
      use_own_copy(context, *child, mine.page, position, mine.note->computed);
    } else {
      its.note->computed = mine.note->computed;
    }
  }
  check(context, *child, "fork");
  check(context, parent, "fork, of the parent");
  return child;
}

}  // namespace kvtrie::replay
