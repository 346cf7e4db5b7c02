// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/replay/mix_sequence.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

namespace kvtrie::replay {
namespace {

constexpr std::uint64_t kWrongPagesShown = 5;  // by each worker

// The plugin's list of own pages, asked for as an engine may: how many there are, then so many, or all in one go.
std::vector<kvtrie_own_page> own_pages(const MixContext& context, const MixSequence& sequence) {
  const MixCalls& calls = context.calls;
  std::vector<kvtrie_own_page> own(context.chance.below(2) == 0 ? sequence.held.size() + 1 : 0);
  std::uint32_t count = 0;
  calls.make<MixCall::own_pages>({KVTRIE_OK}, sequence.handle, own.data(), static_cast<std::uint32_t>(own.size()),
                                 &count);
  if (count > own.size()) {
    const std::uint32_t before = count;
    own.resize(count);
    calls.make<MixCall::own_pages>({KVTRIE_OK}, sequence.handle, own.data(), count, &count);
    calls.require(count == before, MixCall::own_pages, "{} pages, then {}", before, count);
  }
  own.resize(count);
  return own;
}

// States of positions from the list, which must be in order and name the pages that get_pages names.
std::vector<HeldPage> held_now(const MixContext& context, const MixSequence& sequence) {
  const MixCalls& calls = context.calls;
  std::uint32_t count = 0;
  calls.make<MixCall::page_count>({KVTRIE_OK}, sequence.handle, &count);
  std::vector<std::uint32_t> pages(count);
  if (count > 0) calls.make<MixCall::get_pages>({KVTRIE_OK}, sequence.handle, 0U, count, pages.data());
  std::vector<HeldPage> held(count);
  const std::uint64_t stamp = context.pages.next_stamp();
  for (std::uint32_t position = 0; position < count; ++position) {
    const std::uint32_t page = held[position].page = pages[position];
    if (page == KVTRIE_NO_PAGE) continue;
    calls.require(page < context.geometry.pages, MixCall::get_pages, "page {} of {}", page, context.geometry.pages);
    calls.require(context.pages.mark(page, stamp), MixCall::get_pages, "page {} stands at two positions", page);
  }
  std::uint32_t least = sequence.cached;
  for (const kvtrie_own_page& own : own_pages(context, sequence)) {
    calls.require(own.position >= least && own.position < count && own.page == pages[own.position], MixCall::own_pages,
                  "position {} with page {}", own.position, own.page);
    held[own.position].state = own.state;
    least = own.position + 1;
  }
  for (std::uint32_t position = sequence.cached; position < count; ++position) {
    calls.require(held[position].state.has_value() == (pages[position] != KVTRIE_NO_PAGE), MixCall::own_pages,
                  "position {} with page {:#x} is listed or missing", position, pages[position]);
  }
  return held;
}

std::shared_ptr<PageNote> note_of_new(const MixContext& context, const HeldPage& now, bool hit) {
  if (hit) return note_hit(context, now.page, context.shape.tokens);
  if (now.state == KVTRIE_PAGE_BORROWED) {
    std::shared_ptr<PageNote> shared = context.pages.find(now.page);
    context.calls.require(shared != nullptr, MixCall::own_pages, "borrowed page {} is nobody's", now.page);
    return shared;
  }
  auto note = std::make_shared<PageNote>(context.pages, now.page, true, 0);
  context.pages.enter(note);
  return note;
}

void report_wrong(const MixContext& context, const MixSequence& sequence, std::uint32_t position, std::uint32_t plane,
                  std::uint32_t token, const char* when) {
  context.tally.add(Tally::kWrongPages);
  if (context.tally.get(Tally::kWrongPages) > kWrongPagesShown) return;
  const HeldPage* held = position < sequence.held.size() ? &sequence.held[position] : nullptr;
  const std::string line = fmt::format(
      "kvtrie-replay: wrong page {} after {}: request {}, position {} ({}), plane {}, first wrong token {}, flags "
      "{:#x}, "
      "weights {}\n",
      held == nullptr ? sequence.partial->page() : held->page, when, sequence.request, position,
      held == nullptr ? "partial"
      : !held->state  ? "hit"
                      : fmt::format("own, state {}", static_cast<int>(*held->state)),
      plane, token, sequence.flags, sequence.weights);
  // One write, so that lines of several workers stay whole.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

// `page` at `position` of the sequence, of which `tokens` are there.
void check_page(const MixContext& context, const MixSequence& sequence, std::uint32_t page, std::uint32_t position,
                std::uint32_t tokens, const char* when) {
  context.tally.add(Tally::kPagesChecked);
  for (std::uint32_t plane = 0; plane < context.geometry.planes; ++plane) {
    const std::uint32_t wrong = sequence.content.first_wrong(context.address(page, plane), position, tokens, plane);
    if (wrong == tokens) continue;
    return report_wrong(context, sequence, position, plane, wrong, when);
  }
}

}  // namespace

PageNote::PageNote(PageRegistry& registry, std::uint32_t page, bool own, std::uint32_t computed_tokens)
    : computed(computed_tokens), registry_(registry), page_(page), own_(own) {
  const std::shared_ptr<PageNote> owner = registry.find(page);
  if (own && (owner || registry.hits_[page] > 0)) {
    throw PluginError(
        fmt::format("page {} was handed out while this process holds it{}", page, owner ? "" : " as a hit"));
  }
  if (!own && owner && !owner->published) {
    throw PluginError(fmt::format("page {} was a hit, and this process has not published it", page));
  }
  if (!own) ++registry.hits_[page];
}

PageNote::~PageNote() {
  if (!own_) --registry_.hits_[page_];
}

std::uint64_t* MixContext::address(std::uint32_t page, std::uint32_t plane) const {
  void* address = nullptr;
  calls.make<MixCall::page_address>({KVTRIE_OK}, worker, page, plane, &address);
  return static_cast<std::uint64_t*>(address);
}

std::shared_ptr<PageNote> note_hit(const MixContext& context, std::uint32_t page, std::uint32_t tokens) {
  return std::make_shared<PageNote>(context.pages, page, false, tokens);
}

void look(const MixContext& context, MixSequence& sequence, Fresh fresh) {
  std::vector<HeldPage> now = held_now(context, sequence);
  const auto known = sequence.positions();
  // What goes away goes before what is new is noted: one page may be both.
  for (std::uint32_t position = 0; position < known; ++position) {
    HeldPage& before = sequence.held[position];
    const bool gone = position >= now.size() || now[position].page != before.page;
    if (!gone) {
      now[position].note = std::move(before.note);
      continue;
    }
    // Positions at the end that have no page go with the last page before them.
    const bool may =
        (position >= fresh.first && position < fresh.end) || (position >= now.size() && before.page == KVTRIE_NO_PAGE);
    context.calls.require(
        may, MixCall::get_pages,
        "position {} had page {:#x} (state {}, {} tokens computed), and has {:#x}; {} hits, {} published, "
        "{} positions, {} now, {} tokens, flags {:#x}{}{}",
        position, before.page, before.state ? static_cast<int>(*before.state) : -1,
        before.note ? before.note->computed : 0, position < now.size() ? now[position].page : KVTRIE_NO_PAGE,
        sequence.cached, sequence.published, known, now.size(), sequence.known(), sequence.flags,
        sequence.in_batch ? ", of a batch" : "", sequence.flushed ? ", flushed" : "");
    before.note.reset();
  }
  for (std::uint32_t position = 0; position < now.size(); ++position) {
    HeldPage& held = now[position];
    if (held.page == KVTRIE_NO_PAGE) continue;
    const bool hit = position < sequence.cached || (fresh.hits && position >= fresh.first && position < fresh.end);
    if (!held.note) held.note = note_of_new(context, held, hit);
    if (held.state == KVTRIE_PAGE_PUBLISHED || held.state == KVTRIE_PAGE_INCOMPLETE) held.note->published = true;
    const bool was_borrowed = position < known && sequence.held[position].state == KVTRIE_PAGE_BORROWED;
    if (was_borrowed && held.state != KVTRIE_PAGE_BORROWED) context.mix.add(MixEvent::kBatchHandedOver);
    // The sequence that computed a borrowed page may have published it.
    if (held.state == KVTRIE_PAGE_BORROWED && position < sequence.published) held.note->published = true;
  }
  sequence.held = std::move(now);
  if (sequence.has_own() || !sequence.salted) return;
  sequence.salted = false;  // what it matches from here on is others'
  sequence.content.salt_from(~std::uint64_t{0}, 0);
}

void check(const MixContext& context, const MixSequence& sequence, const char* when) {
  context.mix.add(MixEvent::kChecks);
  const double percent = context.plan.settings().check_percent;
  for (std::uint32_t position = 0; position < sequence.positions(); ++position) {
    const HeldPage& held = sequence.held[position];
    if (!held.note || held.note->computed == 0) continue;
    if (percent < 100 && static_cast<double>(context.chance.below(10'000)) >= percent * 100) continue;
    const auto known = static_cast<std::uint32_t>(std::min<std::uint64_t>(
        held.note->computed,
        sequence.known() - std::min(sequence.known(), std::uint64_t{position} * context.shape.tokens)));
    check_page(context, sequence, held.page, position, known, when);
  }
  if (sequence.partial) {
    check_page(context, sequence, sequence.partial->page(), sequence.cached, sequence.partial->computed, when);
  }
}

std::uint64_t computed_tokens(const MixContext& context, const MixSequence& sequence) {
  std::uint64_t tokens = 0;
  for (const HeldPage& held : sequence.held) {
    if (!held.note) break;
    tokens += held.note->computed;
    if (held.note->computed < context.shape.tokens) break;
  }
  return std::min(tokens, sequence.known());
}

}  // namespace kvtrie::replay
