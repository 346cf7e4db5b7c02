// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "worker_plugin/llama/preload/tracked_context.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <span>

namespace kvtrie::llama {
namespace {

constexpr llama_pos kEnd = std::numeric_limits<llama_pos>::max();
constexpr std::int32_t kSpeedOf = 32;  // tokens of a batch whose time says how fast prompts are computed
constexpr std::int32_t kNotComputed = std::numeric_limits<std::int32_t>::max();  // no place: llama.cpp answers NULL

std::size_t tokens_before(llama_pos position) { return static_cast<std::size_t>(std::max(position, 0)); }

// llama_decode's codes after which the KV cache is as before the call.
bool left_as_before(std::int32_t code) { return code == 1 || code == -1; }

bool output_asked(const llama_batch& batch, std::int32_t i) {
  return batch.logits == nullptr ? i == batch.n_tokens - 1 : batch.logits[i] != 0;
}

}  // namespace

void TrackedContext::stop(std::string_view reason) noexcept {
  stopped_ = true;
  saved_.clear();
  for (auto& [id, sequence] : sequences_)
    sequence->diverged_at(0);
  try {
    if (reason_.empty()) reason_ = reason;
    say_(std::string(reason));
  } catch (...) {  // no memory for the words
  }
}

bool TrackedContext::beyond(llama_seq_id id) {
  if (!shared_ || sequences_asked == 0 || id < static_cast<llama_seq_id>(sequences_asked)) return false;
  if (!stopped_) stop("a sequence id is used that is not below the n_seq_max that was asked for");
  return true;
}

bool TrackedContext::beyond(const llama_batch& batch) {
  bool any = false;
  for (std::int32_t i = 0; batch.seq_id != nullptr && i < batch.n_tokens; ++i) {
    for (std::int32_t s = 0; s < (batch.n_seq_id == nullptr ? 1 : batch.n_seq_id[i]); ++s)
      any = beyond(batch.seq_id[i][s]) || any;
  }
  return any;
}

SharedSequence& TrackedContext::sequence(llama_seq_id id) {
  std::unique_ptr<SharedSequence>& found = sequences_[id];
  if (!found) found = std::make_unique<SharedSequence>(*shared_, id);
  return *found;
}

std::int32_t TrackedContext::place(std::int32_t index) const {
  if (index < 0 || place_.empty() || static_cast<std::size_t>(index) >= place_.size()) return index;
  return place_[static_cast<std::size_t>(index)];
}

void TrackedContext::diverge_all(const llama_batch& batch) {
  cells_shared_ = true;  // perhaps
  if (!warming_up_) {
    say_("a batch is of something else than tokens, each of one sequence and behind those that it has: "
         "not shared until that is removed");
  }
  if (batch.seq_id == nullptr) sequence(0).diverged_at(kEnd);
  for (std::int32_t i = 0; batch.seq_id != nullptr && i < batch.n_tokens; ++i) {
    const std::int32_t count = batch.n_seq_id == nullptr ? 1 : batch.n_seq_id[i];
    for (std::int32_t s = 0; s < count; ++s)
      sequence(batch.seq_id[i][s]).diverged_at(kEnd);
  }
}

// The batch by sequences. False: some of it is nothing that could be looked up; then its sequences have diverged.
bool TrackedContext::sort_out(const llama_batch& batch, std::vector<Part>& parts) {
  if (batch.token == nullptr || batch.embd != nullptr) return false;
  const auto sequences_max = static_cast<llama_seq_id>(calls_.llama_n_seq_max(context_)) - 1;
  for (std::int32_t i = 0; i < batch.n_tokens; ++i) {
    if (batch.seq_id != nullptr && batch.n_seq_id != nullptr && batch.n_seq_id[i] != 1) return false;
    const llama_seq_id id = batch.seq_id == nullptr ? 0 : batch.seq_id[i][0];
    if (id < 0 || id >= sequences_max) return false;
    auto part = std::ranges::find(parts, id, &Part::id);
    if (part == parts.end()) {
      parts.emplace_back().id = id;
      part = std::prev(parts.end());
      part->sequence = &sequence(id);
      // What it has should be what was seen; else something changed it in a way that is not known here.
      const std::size_t there = tokens_before(calls_.llama_memory_seq_pos_max(memory_, id) + 1);
      if (there > part->sequence->size()) part->sequence->diverged_at(there);
      if (there <= part->sequence->size()) part->sequence->truncated(there);
      part->size_before = part->sequence->size();
      part->followed = !part->sequence->diverged();
    }
    const std::size_t position = part->size_before + part->tokens.size();
    if (batch.pos != nullptr && !part->sequence->diverged() && tokens_before(batch.pos[i]) != position) return false;
    if (part->leading == part->tokens.size() && !embeddings_ && !output_asked(batch, i)) ++part->leading;
    part->places.push_back(i);
    part->tokens.push_back(batch.token[i]);
  }
  return true;
}

void TrackedContext::leave_one_more(std::vector<Part>& parts) {
  // Rather the one whose token is left.
  auto part = std::ranges::find_if(parts, [](const Part& p) { return p.imported > 0 && p.imported < p.tokens.size(); });
  if (part == parts.end()) part = std::ranges::find_if(parts, [](const Part& p) { return p.imported > 0; });
  if (part == parts.end()) return;
  --part->imported;
  const auto size = static_cast<llama_pos>(part->size_before + part->imported);
  (void)real_.llama_memory_seq_rm(memory_, part->id, size, -1);
  part->sequence->undo_import(1);
}

void TrackedContext::import(std::vector<Part>& parts, std::int32_t tokens) {
  std::size_t left = static_cast<std::size_t>(tokens);
  for (Part& part : parts) {
    // Not while a batch has other sequences: those would wait, too.
    part.imported = part.sequence->import(part.tokens, part.leading, parts.size() == 1);
    left -= part.imported;
  }
  // Neither alone nor, behind whole parts of n_ubatch, as the only one of the last part, where it was not.
  const std::size_t part_max = calls_.llama_n_ubatch(context_);
  const bool last_alone = left % part_max == 1 && static_cast<std::size_t>(tokens) % part_max != 1;
  if (tokens > 1 && (left == 1 || last_alone)) leave_one_more(parts);
}

std::int32_t TrackedContext::compute(const llama_batch& batch) {
  counters_.tokens_seen += static_cast<std::uint64_t>(batch.n_tokens);
  if (!shared_->waits() || batch.n_tokens < kSpeedOf) return real_.llama_decode(context_, batch);
  const auto start = std::chrono::steady_clock::now();
  const std::int32_t code = real_.llama_decode(context_, batch);
  if (code != 0) return code;
  calls_.llama_synchronize(context_);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  shared_->computed(static_cast<std::size_t>(batch.n_tokens), took.count());
  return code;
}

// The program's batch in the parts that llama.cpp would make of it, so that others who wait get pages as they fill.
// Only tokens without outputs, since a call of llama_decode forgets the outputs of the one before.
std::int32_t TrackedContext::decode_ahead(Part& part) {
  const std::size_t step = calls_.llama_n_ubatch(context_);
  std::vector<llama_token> tokens(part.tokens.begin(), part.tokens.begin() + static_cast<std::ptrdiff_t>(part.leading));
  std::vector<llama_pos> positions(step);
  std::vector<std::int32_t> counts(step, 1);
  std::vector<llama_seq_id*> ids(step, &part.id);
  std::vector<std::int8_t> outputs(step, 0);
  while (part.imported + step <= part.leading && part.imported + step < part.tokens.size()) {
    for (std::size_t i = 0; i < step; ++i)
      positions[i] = static_cast<llama_pos>(part.size_before + part.imported + i);
    std::optional<DecodeDump> dump;
    if (shared_->dumps()) {
      const ComputedTokens next{part.sequence, std::span(part.tokens).subspan(part.imported, step)};
      dump.emplace(*shared_, std::span(&next, 1));
    }
    const std::int32_t code = compute({static_cast<std::int32_t>(step), tokens.data() + part.imported, nullptr,
                                       positions.data(), counts.data(), ids.data(), outputs.data()});
    if (code != 0) return code;
    part.sequence->decoded(std::span(part.tokens).subspan(part.imported, step));
    if (dump) dump->after();
    part.imported += step;
    part.ahead += step;
    ++counters_.batches_ahead;
  }
  return 0;
}

std::int32_t TrackedContext::decode_rest(const llama_batch& batch, std::vector<Part>& parts, std::size_t imported) {
  if (imported == 0) return compute(batch);
  place_.assign(static_cast<std::size_t>(batch.n_tokens), 0);
  for (const Part& part : parts) {
    for (std::size_t i = 0; i < part.imported; ++i)
      place_[static_cast<std::size_t>(part.places[i])] = kNotComputed;
  }
  std::vector<llama_token> tokens;
  std::vector<llama_pos> positions;
  std::vector<std::int32_t> counts;
  std::vector<llama_seq_id> ids;
  std::vector<std::int8_t> outputs;
  std::map<llama_seq_id, llama_pos> next;
  for (const Part& part : parts) next[part.id] = calls_.llama_memory_seq_pos_max(memory_, part.id) + 1;
  for (std::int32_t i = 0; i < batch.n_tokens; ++i) {
    std::int32_t& place = place_[static_cast<std::size_t>(i)];
    if (place == kNotComputed) continue;
    place = static_cast<std::int32_t>(tokens.size());
    ids.push_back(batch.seq_id == nullptr ? 0 : batch.seq_id[i][0]);
    llama_pos& position = next[ids.back()];
    positions.push_back(batch.pos == nullptr ? position : batch.pos[i]);
    ++position;
    tokens.push_back(batch.token[i]);
    counts.push_back(1);
    outputs.push_back(output_asked(batch, i) ? 1 : 0);
  }
  if (tokens.empty()) {
    ++counters_.batches_spared;
    return 0;
  }
  std::vector<llama_seq_id*> id_at;
  for (llama_seq_id& id : ids)
    id_at.push_back(&id);
  return compute({static_cast<std::int32_t>(tokens.size()), tokens.data(), nullptr, positions.data(), counts.data(),
                  id_at.data(), outputs.data()});
}

void TrackedContext::settle(std::vector<Part>& parts, std::int32_t code) {
  for (Part& part : parts) {
    const std::size_t size = part.size_before + part.imported;
    std::size_t computed = part.tokens.size() - part.imported;
    if (left_as_before(code)) {
      // As before the program's call, which had nothing imported.
      if (part.imported > 0) {
        (void)real_.llama_memory_seq_rm(memory_, part.id, static_cast<llama_pos>(part.size_before), -1);
        part.sequence->undo_import(part.imported - part.ahead);
      }
      if (part.followed) part.sequence->truncated(part.size_before);
      continue;
    }
    if (code != 0) {  // aborted: what was computed stays
      const std::size_t there = tokens_before(calls_.llama_memory_seq_pos_max(memory_, part.id) + 1);
      computed = there < size ? 0 : std::min(computed, there - size);
    }
    part.sequence->decoded(std::span(part.tokens).subspan(part.imported, computed));
  }
}

void TrackedContext::decode_shared(const llama_batch& batch, std::vector<Part>& parts,
                                   std::optional<std::int32_t>& code) {
  import(parts, batch.n_tokens);
  std::int32_t ahead = 0;
  if (parts.size() == 1 && shared_->waits() && !parts[0].sequence->diverged()) ahead = decode_ahead(parts[0]);
  std::size_t imported = 0;
  for (const Part& part : parts)
    imported += part.imported;
  std::optional<DecodeDump> dump;
  if (shared_->dumps() && ahead == 0) this->dump(parts, dump);
  code = ahead == 0 ? decode_rest(batch, parts, imported) : ahead;
  settle(parts, *code);
  if (dump) dump->after();
}

void TrackedContext::dump(std::span<const Part> parts, std::optional<DecodeDump>& dump) const {
  std::vector<ComputedTokens> batch;
  for (const Part& part : parts) batch.push_back({part.sequence, std::span(part.tokens).subspan(part.imported)});
  dump.emplace(*shared_, batch);
}

// The KV cache is as before the program's call, or, where that was answered, as llama.cpp left it.
void TrackedContext::give_up(std::vector<Part>& parts, std::optional<std::int32_t> code,
                             std::string_view why) noexcept {
  if (!code || left_as_before(*code)) {
    for (const Part& part : parts) {
      if (part.followed) {
        (void)real_.llama_memory_seq_rm(memory_, part.id, static_cast<llama_pos>(part.size_before), -1);
      }
    }
    place_.clear();
  }
  (void)real_.llama_memory_seq_rm(memory_, static_cast<llama_seq_id>(calls_.llama_n_seq_max(context_)) - 1, -1, -1);
  stop(why);
}

std::int32_t TrackedContext::decode(const llama_batch& batch) noexcept {
  // Of a batch that llama.cpp refuses nothing is computed, and the outputs of the one before are still there.
  std::vector<std::int32_t> before;
  before.swap(place_);
  const std::uint64_t ahead = counters_.batches_ahead;
  const std::int32_t code = decode_any(batch);
  if (left_as_before(code)) place_.clear();
  if (left_as_before(code) && counters_.batches_ahead == ahead) place_.swap(before);
  return code;
}

std::int32_t TrackedContext::decode_any(const llama_batch& batch) noexcept {
  ++counters_.batches;
  counters_.tokens_given += static_cast<std::uint64_t>(std::max(batch.n_tokens, 0));
  if (beyond(batch) && !unified_asked) return -1;  // llama.cpp's answer without the id more
  std::vector<Part> parts;
  std::optional<std::int32_t> code;
  if (shared_ && !stopped_ && batch.n_tokens > 0) {
    try {
      if (!warming_up_ && sort_out(batch, parts)) {
        decode_shared(batch, parts, code);
      } else {
        diverge_all(batch);
      }
    } catch (const std::exception& error) {
      give_up(parts, code, error.what());
    } catch (...) {
      give_up(parts, code, "an exception");
    }
  }
  if (code) return *code;
  ++counters_.batches_passed;
  counters_.tokens_seen += static_cast<std::uint64_t>(std::max(batch.n_tokens, 0));
  return real_.llama_decode(context_, batch);
}

bool TrackedContext::remove(llama_seq_id id, llama_pos from, llama_pos to) {
  if (!shared_ || beyond(id)) return real_.llama_memory_seq_rm(memory_, id, from, to);
  from = std::max(from, 0);
  if (to < 0) to = kEnd;
  std::vector<std::pair<SharedSequence*, llama_pos>> touched;
  for (auto& [known, sequence] : sequences_) {
    if (id < 0 || known == id) touched.emplace_back(sequence.get(), calls_.llama_memory_seq_pos_max(memory_, known));
  }
  if (!real_.llama_memory_seq_rm(memory_, id, from, to)) return false;
  for (auto& [sequence, last] : touched) {
    if (from > last || from >= to) continue;
    if (to > last) {
      sequence->truncated(tokens_before(from));
    } else if (tokens_before(from) < sequence->size()) {
      sequence->diverged_at(tokens_before(from));
    }
  }
  return true;
}

void TrackedContext::copy(llama_seq_id from_id, llama_seq_id to_id, llama_pos from, llama_pos to) {
  const bool both_known = !beyond(from_id) && !beyond(to_id);
  if (shared_ && both_known && from_id != to_id && from_id >= 0 && to_id >= 0) {
    cells_shared_ = true;
    SharedSequence& target = sequence(to_id);
    const bool empty = calls_.llama_memory_seq_pos_max(memory_, to_id) < 0;
    if (empty && from <= 0) {
      target.copied_from(sequence(from_id), to < 0 ? SIZE_MAX : tokens_before(to));
    } else {
      target.diverged_at(empty ? 0 : std::min(target.size(), tokens_before(from)));
    }
  }
  real_.llama_memory_seq_cp(memory_, from_id, to_id, from, to);
}

void TrackedContext::keep(llama_seq_id id) {
  (void)beyond(id);
  real_.llama_memory_seq_keep(memory_, id);
  for (auto& [known, sequence] : sequences_) {
    if (known != id) sequence->truncated(0);
  }
}

void TrackedContext::clear() {
  cells_shared_ = false;
  for (auto& [known, sequence] : sequences_)
    sequence->truncated(0);
}

void TrackedContext::shifted(llama_seq_id id, llama_pos from, llama_pos delta) {
  if (!shared_ || beyond(id)) return;
  for (auto& [known, sequence] : sequences_) {
    const std::size_t first = tokens_before(std::min(std::max(from, 0), std::max(from, 0) + delta));
    // llama.cpp moves cells, whoever else has them.
    if ((id < 0 || known == id || cells_shared_) && first < sequence->size()) sequence->diverged_at(first);
  }
}

void TrackedContext::loaded(llama_seq_id id) {
  if (!shared_ || beyond(id)) return;
  if (id >= 0) {
    sequence(id).diverged_at(0);
    return;
  }
  const auto count = static_cast<llama_seq_id>(calls_.llama_n_seq_max(context_)) - 1;
  for (llama_seq_id any = 0; any < count; ++any)
    sequence(any).diverged_at(0);
}

void TrackedContext::saved(llama_seq_id id, std::span<const std::uint8_t> state) {
  if (!shared_ || stopped_ || state.empty() || beyond(id)) return;
  const SharedSequence& from = sequence(id);
  const std::size_t there = tokens_before(calls_.llama_memory_seq_pos_max(memory_, id) + 1);
  if (!from.diverged() && from.size() == there && there > 0) saved_.put(*shared_, from, state);
}

void TrackedContext::restored(llama_seq_id id, std::span<const std::uint8_t> state) {
  if (!shared_ || stopped_ || state.empty() || beyond(id)) return;
  const SharedSequence* const known = saved_.find(state);
  if (known == nullptr) return;
  sequence(id).copied_from(*known, known->size());
  ++counters_.states_restored;
}

}  // namespace kvtrie::llama
