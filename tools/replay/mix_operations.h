// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a mix does with the plugin, an operation a function. Each asks which pages the sequence holds afterwards and
// compares their bytes (mix_sequence.h). All throw PluginError when a call answers what it must not.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "tools/replay/mix_sequence.h"

namespace kvtrie::replay {

// A prompt of the trace to be begun with.
struct MixJob {
  std::uint32_t request = 0;
  bool owns_request = false;
  std::uint32_t tries = 0;
};

using MixSequencePtr = std::unique_ptr<MixSequence>;

// mix_begin.cc: operations that start sequences. Null or empty: there was no room, or a flush was under way.
MixSequencePtr begin_sequence(const MixContext& context, const MixJob& job);
// With the tokens of `like` up to some token of a page that it has published, or just behind, and then others: so that
// it matches inside that page.
MixSequencePtr begin_beside(const MixContext& context, const MixSequence& like);
std::vector<MixSequencePtr> prepare_batch(const MixContext& context, const std::vector<MixJob>& jobs);
MixSequencePtr fork_sequence(const MixContext& context, MixSequence& parent);

// mix_write.cc: operations that move a sequence on. False: there was no room.
bool allocate_pages(const MixContext& context, MixSequence& sequence);
void append_tokens(const MixContext& context, MixSequence& sequence);
void compute_pages(const MixContext& context, MixSequence& sequence);
void publish_pages(const MixContext& context, MixSequence& sequence, bool incomplete);
void wait_for_pending(const MixContext& context, MixSequence& sequence);
void give_pages_back(const MixContext& context, MixSequence& sequence);
void copy_out_and_compare(const MixContext& context, MixSequence& sequence);
void release_sequence(const MixContext& context, MixSequence& sequence);
// There is something that it could still allocate or compute.
[[nodiscard]] bool has_work(const MixContext& context, const MixSequence& sequence);
[[nodiscard]] bool can_compute(const MixContext& context, const MixSequence& sequence);

// mix_look.cc: operations beside sequences.
void probe_prefix(const MixContext& context, const MixSequence& sequence);
void probe_by_hashes(const MixContext& context, const MixSequence& sequence);
// What get_counters said last, and what of the tally was there before this attachment.
struct CounterMemory {
  kvtrie_counters last{};
  std::uint64_t forks = 0;
  std::uint64_t batches = 0;
};
CounterMemory remember_counters(const MixContext& context);
void compare_counters(const MixContext& context, CounterMemory& memory);
void evict_some(const MixContext& context);
// False: another worker flushes this namespace just now.
bool flush_namespace(const MixContext& context, std::uint32_t name_space);
// Of this worker's predecessor, which died in the middle of one.
void finish_flushes(const MixContext& context);
void visit_beside(const MixContext& context);
void use_device_calls(const MixContext& context);
void misuse(const MixContext& context, MixSequence& sequence);

// Shared by them.
void use_own_copy(const MixContext& context, MixSequence& sequence, std::uint32_t from, std::uint32_t position,
                  std::uint32_t tokens);
void salt_private_pages(const MixContext& context, MixSequence& sequence, std::uint32_t copied_tokens);
// No flush was asked for since: what the sequence matches and publishes is of its weights for sure.
[[nodiscard]] bool weights_are_current(const MixContext& context, const MixSequence& sequence);

}  // namespace kvtrie::replay
