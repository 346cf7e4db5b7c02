// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tools/engine/llama_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace kvtrie::engine {
namespace {

constexpr std::uint64_t kIdleSteps = 6;  // then a slot is emptied: its sequence has ended, most likely
constexpr double kCostUnit = 4096;

}  // namespace

std::vector<ChosenToken> best_of(std::span<const float> logits, std::uint32_t wanted) {
  std::vector<ChosenToken> best;
  for (std::uint32_t token = 0; token < logits.size(); ++token) {
    if (best.size() == wanted && !(logits[token] > best.back().logit)) continue;
    if (best.size() == wanted) best.pop_back();
    const auto place = std::ranges::find_if(best, [&](const ChosenToken& c) { return c.logit < logits[token]; });
    best.insert(place, {token, logits[token]});
  }
  return best;
}

LlamaEngine::LlamaEngine(const LlamaModel& model, const RunSettings& settings, const PageShape& shape,
                         std::unique_ptr<ScheduleWriter> schedule)
    : session_(model, settings),
      shape_(shape),
      sabotage_(settings.sabotage),
      start_ns_(settings.start_ns),
      schedule_(std::move(schedule)),
      slots_(LlamaSession::slots(settings)) {
  if (session_.shape().bytes(shape.tokens_per_page) > shape.page_bytes)
    throw std::runtime_error("the pages are too small for this model");
}

void LlamaEngine::empty(std::uint32_t slot, std::uint64_t first) {
  if (slots_[slot].held <= first) return;
  session_.remove(slot, static_cast<std::uint32_t>(first));
  if (schedule_) schedule_->remove(slot, static_cast<std::uint32_t>(first));
  slots_[slot].held = first;
}

// One for each sequence of the batch: its own, or an empty one.
std::vector<std::uint32_t> LlamaEngine::find_slots(std::span<const Work> batch) {
  constexpr std::uint32_t kNone = UINT32_MAX;
  std::vector<std::uint32_t> found(batch.size(), kNone);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].sequence == 0) continue;
    const auto slot = std::ranges::find(slots_, batch[i].sequence, &Slot::sequence);
    if (slot == slots_.end()) continue;
    slot->used = steps_;
    found[i] = static_cast<std::uint32_t>(slot - slots_.begin());
  }
  for (std::uint32_t slot = 0; slot < slots_.size(); ++slot) {
    Slot& idle = slots_[slot];
    if (idle.used + (idle.sequence == 0 ? 0 : kIdleSteps) >= steps_) continue;
    empty(slot, 0);
    idle.sequence = 0;
  }
  for (std::size_t i = 0; i < batch.size(); ++i) {
    if (found[i] != kNone) continue;
    auto slot = std::ranges::find_if(slots_, [this](const Slot& s) { return s.used < steps_ && s.held == 0; });
    if (slot == slots_.end()) slot = std::ranges::min_element(slots_, {}, &Slot::used);
    if (slot->used == steps_) throw std::logic_error("more sequences in a batch than slots");
    found[i] = static_cast<std::uint32_t>(slot - slots_.begin());
    empty(found[i], 0);
    *slot = {batch[i].sequence, 0, steps_};
  }
  return found;
}

// KV of the tokens before `first`.
void LlamaEngine::bring_in(std::uint32_t slot, const Work& work) {
  empty(slot, work.first);
  std::uint64_t& held = slots_[slot].held;
  if (held % shape_.tokens_per_page != 0 && held < work.first) empty(slot, 0);
  if (held == work.first) return;
  ScheduledImport import;
  import.request = work.request;
  import.time_us = static_cast<std::uint32_t>((now_ns() - start_ns_) / 1000);
  import.slot = slot;
  import.first = static_cast<std::uint32_t>(held);
  std::vector<std::byte> state;
  while (held < work.first) {
    const std::size_t position = held / shape_.tokens_per_page;
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(shape_.tokens_per_page, work.first - held));
    const std::uint32_t page = position < work.page_ids.size() ? work.page_ids[position] : 0;
    state.assign(work.pages[position], work.pages[position] + session_.shape().bytes(count));
    if (sabotage_ == Sabotage::kWrongPage && position > 0 && count == shape_.tokens_per_page)
      sabotage(state, work.pages[position - 1]);
    if (!session_.shape().fits(state, static_cast<std::int32_t>(held), count)) {
      throw std::runtime_error(fmt::format("request {}: page {} is not KV of positions {} to {}", work.request, page,
                                           held, held + count - 1));
    }
    session_.import(slot, count, state);
    import.pages.push_back({page, sample_of(state, count)});
    held += count;
  }
  const auto tokens = work.tokens.subspan(import.first, held - import.first);
  import.tokens.assign(tokens.begin(), tokens.end());
  if (schedule_) schedule_->import_pages(import);
}

// Once a worker: not the page but the one before, as if it stood there, with the right positions in
// its head. So nothing but the comparison sees it.
void LlamaEngine::sabotage(std::span<std::byte> state, const std::byte* other) {
  if (std::exchange(sabotaged_, true)) return;
  const std::size_t head = state_head_bytes(shape_.tokens_per_page);
  std::memcpy(state.data() + head, other + head, state.size() - head);
}

void LlamaEngine::write_pages(std::uint32_t slot, const Work& work) {
  const std::uint64_t tokens = shape_.tokens_per_page;
  for (std::uint64_t first = work.first / tokens * tokens; first < work.end; first += tokens) {
    const std::uint64_t count = std::min(tokens, work.end - first);
    session_.export_to(slot, static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(count),
                       work.pages[first / tokens]);
  }
}

void LlamaEngine::choose(std::uint32_t slot, std::size_t index, Work& work) {
  work.candidates.clear();
  if (work.wanted == 0) return;
  const std::span<const float> logits = session_.logits(index);
  const std::vector<ChosenToken> best = best_of(logits, work.wanted);
  // Costs of several texts are compared: -log of the probabilities. Of a single one nobody needs
  // them.
  double all = 0;
  if (work.wanted > 1) {
    for (const float logit : logits)
      all += std::exp(static_cast<double>(logit - best[0].logit));
  }
  for (const ChosenToken& chosen : best) {
    const double cost = work.wanted > 1 ? std::log(all) + static_cast<double>(best[0].logit - chosen.logit) : 0;
    work.candidates.push_back({chosen.token, static_cast<std::uint32_t>(std::lround(cost * kCostUnit))});
  }
  if (schedule_) {
    schedule_->choice(
        {work.request, slot, static_cast<std::uint32_t>(work.end), static_cast<std::uint32_t>(index), best});
  }
}

void LlamaEngine::step(std::span<Work> batch) {
  ++steps_;
  const std::vector<std::uint32_t> slots = find_slots(batch);
  for (std::size_t i = 0; i < batch.size(); ++i)
    bring_in(slots[i], batch[i]);
  std::vector<BatchToken> tokens;
  std::vector<std::size_t> last(batch.size());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const Work& work = batch[i];
    for (std::uint64_t at = work.first; at < work.end; ++at)
      tokens.push_back({slots[i], static_cast<std::uint32_t>(at), work.tokens[at], false});
    last[i] = tokens.size() - 1;
    tokens.back().wanted = work.wanted > 0;
  }
  if (tokens.size() > session_.batch_tokens()) throw std::logic_error("a batch is too large");
  session_.decode(tokens);
  if (schedule_) schedule_->batch(tokens);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    slots_[slots[i]].held = batch[i].end;
    write_pages(slots[i], batch[i]);
    choose(slots[i], last[i], batch[i]);
    if (batch[i].sequence == 0) empty(slots[i], 0);
  }
  if (schedule_) schedule_->end_step();
}

}  // namespace kvtrie::engine
