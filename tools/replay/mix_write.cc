// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include <algorithm>
#include <cstring>
#include <span>

#include "tools/replay/mix_operations.h"

namespace kvtrie::replay {
namespace {

constexpr std::uint32_t kWaitMaxMs = 8;
constexpr std::uint32_t kPendingWaitMaxMs = 6;
constexpr std::uint64_t kCopyOutPagesMax = 8;

// Tokens [first, end) of the page at `position`.
struct Piece {
  std::uint32_t position;
  std::uint32_t first;
  std::uint32_t end;
};

// What is known of the page at `position`, in tokens.
std::uint32_t known_in(const MixContext& context, const MixSequence& sequence, std::uint32_t position) {
  const std::uint64_t before = std::uint64_t{position} * context.shape.tokens;
  if (sequence.known() <= before) return 0;
  return static_cast<std::uint32_t>(std::min<std::uint64_t>(sequence.known() - before, context.shape.tokens));
}

std::vector<Piece> pieces_to_compute(const MixContext& context, const MixSequence& sequence) {
  std::vector<Piece> pieces;
  for (std::uint32_t position = sequence.cached; position < sequence.positions(); ++position) {
    const HeldPage& held = sequence.held[position];
    const std::uint32_t end = known_in(context, sequence, position);
    if (held.note && held.writable() && held.note->computed < end)
      pieces.push_back({position, held.note->computed, end});
  }
  return pieces;
}

// As an engine writes that works in the pool.
void write_in_place(const MixContext& context, const MixSequence& sequence, std::span<const Piece> pieces) {
  for (const Piece& piece : pieces) {
    for (std::uint32_t plane = 0; plane < context.geometry.planes; ++plane) {
      sequence.content.write(context.address(sequence.held[piece.position].page, plane), piece.position, piece.first,
                             piece.end, plane);
    }
  }
}

// As one writes that has its own memory: pieces that follow each other by one call, whole pages as they are in the pool
// or tokens by their layout.
void copy_run_in(const MixContext& context, const MixSequence& sequence, std::span<const Piece> run) {
  const std::uint64_t page_tokens = context.shape.tokens;
  const std::uint64_t first = run.front().position * page_tokens + run.front().first;
  const std::uint64_t count = run.back().position * page_tokens + run.back().end - first;
  const bool whole = first % page_tokens == 0 && count % page_tokens == 0 && context.chance.percent(50);
  const std::size_t page_words = context.geometry.page_bytes / sizeof(std::uint64_t);
  for (std::uint32_t plane = 0; plane < context.geometry.planes; ++plane) {
    if (whole) {
      std::vector<std::uint64_t> pages(run.size() * page_words);
      for (std::size_t i = 0; i < run.size(); ++i)
        sequence.content.write(&pages[i * page_words], run[i].position, 0, context.shape.tokens, plane);
      context.calls.make<MixCall::copy_in>({KVTRIE_OK}, sequence.handle, first, count, plane,
                                           static_cast<const kvtrie_layout*>(nullptr), pages.data());
      continue;
    }
    EngineMemory memory(context.shape, count, context.chance);
    std::vector<std::uint64_t> words(context.shape.token_words());
    for (std::uint64_t token = 0; token < count; ++token) {
      sequence.content.words_of(first + token, plane, words);
      for (std::size_t word = 0; word < words.size(); ++word)
        memory.at(token, word) = words[word];
    }
    context.calls.make<MixCall::copy_in>({KVTRIE_OK}, sequence.handle, first, count, plane, &memory.layout(),
                                         memory.base());
  }
  context.mix.add(MixEvent::kTokensIn, count);
}

void copy_in(const MixContext& context, const MixSequence& sequence, std::span<const Piece> pieces) {
  for (std::size_t begin = 0; begin < pieces.size();) {
    std::size_t end = begin + 1;
    while (end < pieces.size() && pieces[end].first == 0 && pieces[end].position == pieces[end - 1].position + 1 &&
           pieces[end - 1].end == context.shape.tokens) {
      ++end;
    }
    copy_run_in(context, sequence, pieces.subspan(begin, end - begin));
    begin = end;
  }
}

[[noreturn]] void fail_copy_out(const MixContext& context, std::uint64_t token) {
  context.tally.add(Tally::kWrongPages);
  throw PluginError(fmt::format("copy_out: wrong bytes of token {}", token));
}

// A dead predecessor's flush may come at any time.
bool may_be_flushed(const MixContext& context, const MixSequence& sequence) {
  return !weights_are_current(context, sequence) || context.board.weights(sequence.name_space).uncertain.load() != 0;
}

bool is_flushed(const MixContext& context, const MixSequence& sequence) {
  return context.board.weights(sequence.name_space).done.load() != sequence.weights;
}

// True: the call went through. After a flush that was over before the call it must not.
bool take_flush_answer(const MixContext& context, MixCall call, MixSequence& sequence, kvtrie_code code,
                       bool was_flushed) {
  if (code == KVTRIE_E_FLUSHED) {
    context.calls.require(may_be_flushed(context, sequence), call, "answered flushed, and nobody flushed");
    context.mix.add(MixEvent::kFlushRefused);
    sequence.flushed = true;
    return false;
  }
  context.calls.require(!was_flushed, call, "went through on a sequence of a flushed namespace");
  return true;
}

// What a wait matched before the flush that ended it stays, to read.
void take_matched_before_flush(const MixContext& context, MixSequence& sequence) {
  std::uint32_t count = 0;
  context.calls.make<MixCall::page_count>({KVTRIE_OK}, sequence.handle, &count);
  context.calls.require(count >= sequence.cached, MixCall::page_count, "{} pages, {} were hits", count,
                        sequence.cached);
  if (count > sequence.cached) sequence.partial.reset();
  sequence.cached = sequence.published = count;
}

void note_published(const MixContext& context, MixSequence& sequence, const kvtrie_publish_result& result,
                    std::uint64_t asked) {
  const MixCalls& calls = context.calls;
  const std::uint32_t page_tokens = context.shape.tokens;
  const std::uint32_t before = sequence.published;
  calls.require(result.published_tokens % page_tokens == 0 &&
                    result.published_tokens >= std::uint64_t{before} * page_tokens &&
                    result.published_tokens <= sequence.known(),
                MixCall::publish, "{} of {} tokens are published, {} were", result.published_tokens, sequence.known(),
                std::uint64_t{before} * page_tokens);
  sequence.published = static_cast<std::uint32_t>(result.published_tokens / page_tokens);
  calls.require(!sequence.has(KVTRIE_NO_PUBLISH) || (result.pages_published == 0 && sequence.published == before),
                MixCall::publish, "published with KVTRIE_NO_PUBLISH");
  calls.require(result.pages_published <= context.pages_for(asked), MixCall::publish, "{} pages of {} tokens",
                result.pages_published, asked);
  context.tally.add(Tally::kPagesPublished, result.pages_published);
  context.tally.add(Tally::kPagesPrivate, result.pages_private);
  look(context, sequence);
  for (std::uint32_t position = before; position < sequence.published; ++position) {
    if (sequence.held[position].writable()) context.mix.add(MixEvent::kDuplicates);
  }
}

}  // namespace

void use_own_copy(const MixContext& context, MixSequence& sequence, std::uint32_t from, std::uint32_t position,
                  std::uint32_t tokens) {
  const HeldPage& held = sequence.held[position];
  for (std::uint32_t plane = 0; plane < context.geometry.planes; ++plane) {
    std::memcpy(context.address(held.page, plane), context.address(from, plane), context.geometry.page_bytes);
  }
  held.note->computed = tokens;
  context.mix.add(MixEvent::kCopiedByCaller);
}

void salt_private_pages(const MixContext& context, MixSequence& sequence, std::uint32_t copied_tokens) {
  if (!sequence.has(KVTRIE_NO_PUBLISH) || sequence.salted || !sequence.has_own()) return;
  sequence.salted = true;
  sequence.content.salt_from(std::uint64_t{sequence.cached} * context.shape.tokens + copied_tokens,
                             mix64(context.owner_salt + sequence.handle.id));
}

bool has_work(const MixContext& context, const MixSequence& sequence) {
  return !sequence.flushed &&
         (sequence.positions() < context.pages_for(sequence.known()) || can_compute(context, sequence));
}

bool can_compute(const MixContext& context, const MixSequence& sequence) {
  return !pieces_to_compute(context, sequence).empty();
}

bool allocate_pages(const MixContext& context, MixSequence& sequence) {
  Random& chance = context.chance;
  kvtrie_allocate_options options{};
  options.size = sizeof options;
  options.wait_ms = static_cast<std::uint32_t>(chance.below(2) * chance.below(kWaitMaxMs));
  options.flags = context.drawn(KVTRIE_NO_WAIT, 10) | context.drawn(KVTRIE_NO_COPY, 25);
  std::uint64_t total = std::max(sequence.known(), sequence.target_tokens);
  if (chance.percent(40)) total = sequence.known();
  if (chance.percent(15)) total = chance.below(total + 1);
  const bool waits = options.wait_ms > 0 && (options.flags & KVTRIE_NO_WAIT) == 0;
  const std::uint64_t needed = context.pages_for(total);
  const bool never = needed > context.geometry.pages;
  const kvtrie_code code = context.calls.make<MixCall::allocate>(
      never ? Codes{KVTRIE_E_NEVER} : Codes{KVTRIE_OK, waits ? KVTRIE_E_TIMEOUT : KVTRIE_E_NOT_NOW}, sequence.handle,
      total, &options);
  if (code != KVTRIE_OK) {
    look(context, sequence);  // nothing was taken
    check(context, sequence, "an allocate without room");
    return false;
  }
  const std::uint32_t before = sequence.positions();
  const std::uint32_t last = sequence.published;
  std::shared_ptr<PageNote> left;  // the incomplete page that it goes on from
  if (last < before && sequence.held[last].state == KVTRIE_PAGE_INCOMPLETE &&
      total > std::uint64_t{last} * context.shape.tokens + sequence.held[last].note->incomplete) {
    left = sequence.held[last].note;
  }
  look(context, sequence, left ? Fresh{last, last + 1} : Fresh{});
  context.calls.require(sequence.positions() == std::max<std::uint64_t>(before, needed), MixCall::allocate,
                        "{} pages, {} before, {} asked for", sequence.positions(), before, needed);
  const bool copies = (options.flags & KVTRIE_NO_COPY) == 0;
  std::uint32_t copied = 0;
  if (left) {
    context.mix.add(MixEvent::kIncompleteLeft);
    context.calls.require(sequence.held[last].page != left->page(), MixCall::allocate, "goes on in a published page");
    if (copies) sequence.held[last].note->computed = left->incomplete;
    if (!copies) use_own_copy(context, sequence, left->page(), last, left->incomplete);
  } else if (sequence.partial && sequence.has_own()) {
    copied = sequence.partial->computed;
    if (copies) {
      sequence.held[sequence.cached].note->computed = copied;
      context.mix.add(MixEvent::kPartialCopied);
    } else {
      use_own_copy(context, sequence, sequence.partial->page(), sequence.cached, copied);
    }
    sequence.partial.reset();
  }
  salt_private_pages(context, sequence, copied);
  check(context, sequence, "allocate");
  return true;
}

void append_tokens(const MixContext& context, MixSequence& sequence) {
  Random& chance = context.chance;
  std::vector<std::uint32_t> tokens(chance.between(1, 3 * std::uint64_t{context.shape.tokens}));
  // Often the same answer to the same prompt, so that several sequences compute the same pages.
  if (chance.percent(50)) {
    tokens_of_output(sequence.request + sequence.known(), tokens);
  } else {
    for (std::uint32_t& token : tokens)
      token = static_cast<std::uint32_t>(chance.next());
  }
  context.calls.make<MixCall::append>({KVTRIE_OK}, sequence.handle, tokens.data(), tokens.size());
  sequence.content.learn(tokens);
  look(context, sequence);
  check(context, sequence, "append");
}

void compute_pages(const MixContext& context, MixSequence& sequence) {
  std::vector<Piece> pieces = pieces_to_compute(context, sequence);
  if (pieces.empty()) return;
  if (context.chance.percent(35)) {
    pieces.resize(context.chance.between(1, pieces.size()));
    Piece& last = pieces.back();
    last.end = static_cast<std::uint32_t>(context.chance.between(last.first + 1, last.end));
  }
  if (context.chance.percent(50)) {
    write_in_place(context, sequence, pieces);
  } else {
    copy_in(context, sequence, pieces);
  }
  for (const Piece& piece : pieces)
    sequence.held[piece.position].note->computed = piece.end;
  context.tally.add(Tally::kPagesWritten, pieces.size());
  look(context, sequence);
  check(context, sequence, "computing");
}

void publish_pages(const MixContext& context, MixSequence& sequence, bool incomplete) {
  std::uint64_t tokens = computed_tokens(context, sequence);
  if (context.chance.percent(incomplete ? 10 : 25)) tokens = context.chance.below(tokens + 1);
  const bool was_flushed = is_flushed(context, sequence);
  kvtrie_publish_result result{};
  result.size = sizeof result;
  constexpr Codes kAllowed{KVTRIE_OK, KVTRIE_E_FLUSHED};
  const kvtrie_code code =
      incomplete ? context.calls.make<MixCall::publish_incomplete>(kAllowed, sequence.handle, tokens, &result)
                 : context.calls.make<MixCall::publish>(kAllowed, sequence.handle, tokens, &result);
  if (take_flush_answer(context, MixCall::publish, sequence, code, was_flushed)) {
    note_published(context, sequence, result, tokens);
    const auto rest = static_cast<std::uint32_t>(tokens % context.shape.tokens);
    const std::uint32_t last = sequence.published;
    const bool stands = last < sequence.positions() && sequence.held[last].state == KVTRIE_PAGE_INCOMPLETE;
    if (stands && sequence.held[last].note->incomplete == 0) {
      context.calls.require(incomplete && result.incomplete_tokens == rest && rest > 0, MixCall::publish_incomplete,
                            "{} incomplete tokens of {}", result.incomplete_tokens, rest);
      sequence.held[last].note->incomplete = rest;
      context.mix.add(MixEvent::kIncompletePublished);
    }
  }
  look(context, sequence);
  check(context, sequence, incomplete ? "publish_incomplete" : "publish");
}

void wait_for_pending(const MixContext& context, MixSequence& sequence) {
  const auto time_ms = static_cast<std::uint32_t>(context.chance.below(kPendingWaitMaxMs));
  const bool was_flushed = is_flushed(context, sequence) && !sequence.has(KVTRIE_NO_READ);
  kvtrie_begin_result result{};
  result.size = sizeof result;
  const kvtrie_code code = context.calls.make<MixCall::wait_pending>({KVTRIE_OK, KVTRIE_E_TIMEOUT, KVTRIE_E_FLUSHED},
                                                                     sequence.handle, time_ms, &result);
  if (take_flush_answer(context, MixCall::wait_pending, sequence, code, was_flushed)) {
    const std::uint32_t before = sequence.cached;
    context.calls.require(result.cached_pages >= before &&
                              result.cached_pages * std::uint64_t{context.shape.tokens} <= sequence.known() &&
                              (code == KVTRIE_OK) == (result.pending_pages == 0),
                          MixCall::wait_pending, "{} cached, {} before; {} pending", result.cached_pages, before,
                          result.pending_pages);
    sequence.partial.reset();
    if (result.partial_tokens > 0) sequence.partial = note_hit(context, result.partial_page, result.partial_tokens);
    context.tally.add(Tally::kPagesHit, result.cached_pages - before);
    context.mix.add(MixEvent::kWaitMatched, result.cached_pages - before);
    if (code == KVTRIE_E_TIMEOUT) context.mix.add(MixEvent::kWaitTimedOut);
    sequence.cached = sequence.published = result.cached_pages;
  } else {
    take_matched_before_flush(context, sequence);
  }
  look(context, sequence);
  check(context, sequence, "wait_pending");
}

void give_pages_back(const MixContext& context, MixSequence& sequence) {
  std::vector<std::uint32_t> writable;
  for (std::uint32_t position = sequence.cached; position < sequence.positions(); ++position) {
    if (sequence.held[position].writable()) writable.push_back(position);
  }
  if (writable.empty()) return;
  const std::uint32_t first = writable[context.chance.below(writable.size())];
  std::uint32_t end = first + 1;
  if (context.chance.percent(70)) end = sequence.positions();
  // To the end of what is its own alone it must be possible.
  bool sure = end == sequence.positions() && !sequence.in_batch;
  for (std::uint32_t position = first; position < end; ++position)
    sure = sure && sequence.held[position].writable();
  const kvtrie_code code = context.calls.make<MixCall::give_back>(Codes{KVTRIE_OK}.add(KVTRIE_E_INVALID, !sure),
                                                                  sequence.handle, first, end - first);
  if (code == KVTRIE_OK) {
    context.mix.add(MixEvent::kGivenBack, end - first);
    look(context, sequence, {first, end, true});
    for (std::uint32_t position = first; position < std::min(end, sequence.positions()); ++position) {
      if (sequence.held[position].note) context.mix.add(MixEvent::kGaveWay);
    }
  } else {
    look(context, sequence);
  }
  check(context, sequence, "give_back");
}

void copy_out_and_compare(const MixContext& context, MixSequence& sequence) {
  Random& chance = context.chance;
  const std::uint64_t page_tokens = context.shape.tokens;
  const std::uint64_t there = computed_tokens(context, sequence);
  if (there == 0) return;
  std::uint64_t first = chance.below(there);
  std::uint64_t count = chance.between(1, std::min(there - first, kCopyOutPagesMax * page_tokens));
  const auto plane = static_cast<std::uint32_t>(chance.below(context.geometry.planes));
  if (there >= page_tokens && chance.percent(30)) {  // whole pages as they are
    first = std::min(first, there - page_tokens) / page_tokens * page_tokens;
    count = chance.between(1, std::min((there - first) / page_tokens, kCopyOutPagesMax)) * page_tokens;
    const std::size_t page_words = context.geometry.page_bytes / sizeof(std::uint64_t);
    std::vector<std::uint64_t> pages(count / page_tokens * page_words);
    context.calls.make<MixCall::copy_out>({KVTRIE_OK}, sequence.handle, first, count, plane,
                                          static_cast<const kvtrie_layout*>(nullptr), pages.data());
    for (std::uint64_t page = 0; page < count / page_tokens; ++page) {
      const std::uint32_t wrong = sequence.content.first_wrong(&pages[page * page_words],
                                                               static_cast<std::uint32_t>(first / page_tokens + page),
                                                               context.shape.tokens, plane);
      if (wrong < page_tokens) fail_copy_out(context, first + page * page_tokens + wrong);
    }
  } else {
    EngineMemory memory(context.shape, count, chance);
    context.calls.make<MixCall::copy_out>({KVTRIE_OK}, sequence.handle, first, count, plane, &memory.layout(),
                                          memory.base());
    std::vector<std::uint64_t> words(context.shape.token_words());
    for (std::uint64_t token = 0; token < count; ++token) {
      sequence.content.words_of(first + token, plane, words);
      for (std::size_t word = 0; word < words.size(); ++word) {
        if (memory.at(token, word) != words[word]) fail_copy_out(context, first + token);
      }
    }
  }
  context.mix.add(MixEvent::kTokensOut, count);
  look(context, sequence);
  check(context, sequence, "copy_out");
}

void release_sequence(const MixContext& context, MixSequence& sequence) {
  look(context, sequence);
  check(context, sequence, "all, before release");
  context.calls.make<MixCall::release>({KVTRIE_OK}, sequence.handle);
  sequence.held.clear();
  sequence.partial.reset();
  if (!context.chance.percent(20)) return;
  std::uint32_t count = 0;
  context.calls.make<MixCall::page_count>({KVTRIE_E_STALE}, sequence.handle, &count);
  context.mix.add(MixEvent::kRefusals);
}

}  // namespace kvtrie::replay
