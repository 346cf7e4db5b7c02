// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A llama_context of a program that knows nothing of the cache: what its calls did to each of its sequences, and its
// batches, of which llama_decode sees what is not cached.
//
// A batch whose tokens were partly brought in from the cache is passed on without them, so places in it are others than
// the program's: place() translates. A token whose output is asked for is always computed, and never alone where it was
// not (kDecodedAtLeast).
#pragma once

#include <llama.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "worker_plugin/llama/kvtrie_llama.h"
#include "worker_plugin/llama/kvtrie_dump.h"
#include "worker_plugin/llama/preload/real.h"
#include "worker_plugin/llama/preload/saved_states.h"

namespace kvtrie::llama {

struct BatchCounters {
  std::uint64_t batches = 0;         // calls of llama_decode
  std::uint64_t batches_passed = 0;  // ... that nothing was looked up for
  std::uint64_t batches_spared = 0;  // ... that computed nothing, since all was there
  std::uint64_t batches_ahead = 0;   // parts of batches that were computed before the rest, for those who wait
  std::uint64_t tokens_given = 0;    // by the program
  std::uint64_t tokens_seen = 0;     // by llama_decode
  std::uint64_t states_restored = 0;  // of sequences, that the program had taken out itself
};

class TrackedContext {
 public:
  TrackedContext(const Real& real, const Calls& calls, llama_context* context, Say say)
      : real_(real), calls_(calls), context_(context), memory_(calls.llama_get_memory(context)), say_(say) {}

  // Held by whoever is inside a call of this: the program in one thread, the report in any.
  std::mutex mutex;
  // The last one that could be made; under the process's lock.
  std::string last_report;

  // From now on; or not, and why.
  void share(std::unique_ptr<SharedContext> shared) { shared_ = std::move(shared); }
  void stop(std::string_view reason) noexcept;
  [[nodiscard]] const std::string& reason() const { return reason_; }
  [[nodiscard]] const SharedContext* shared() const { return shared_.get(); }
  [[nodiscard]] const BatchCounters& batch_counters() const { return counters_; }
  [[nodiscard]] llama_memory_t memory() const { return memory_; }

  // Sequence ids that the program asked for; it must not see the one more. 0: as many as there are.
  std::uint32_t sequences_asked = 0;
  // Whether the program asked for a unified KV cache, in which llama.cpp takes ids beyond n_seq_max, too.
  bool unified_asked = true;

  // Throws nothing: what fails here is computed by llama.cpp as the program gave it.
  std::int32_t decode(const llama_batch& batch) noexcept;
  // The outputs of llama_decode are gone.
  void forget_places() { place_.clear(); }
  // Of an index in the last batch, for the *_ith functions: negative ones count from the end and stay.
  [[nodiscard]] std::int32_t place(std::int32_t index) const;

  bool remove(llama_seq_id sequence, llama_pos from, llama_pos to);
  void copy(llama_seq_id from_sequence, llama_seq_id to_sequence, llama_pos from, llama_pos to);
  void keep(llama_seq_id sequence);
  void clear();
  void shifted(llama_seq_id sequence, llama_pos from, llama_pos delta);
  // Its KV came from elsewhere. -1: of all sequences.
  void loaded(llama_seq_id sequence);
  // The program took the sequence's state out: these bytes. They are known again in restored(), of the same bytes.
  void saved(llama_seq_id sequence, std::span<const std::uint8_t> state);
  // After loaded(): the sequence has what these bytes say, if there are any.
  void restored(llama_seq_id sequence, std::span<const std::uint8_t> state);
  void embeddings(bool on) { embeddings_ = on; }
  // Every expert of a model computes meanwhile: KV of then is of nobody's use.
  void warm_up(bool on) { warming_up_ = on; }

 private:
  // A sequence's part of a batch.
  struct Part {
    llama_seq_id id = 0;
    SharedSequence* sequence = nullptr;
    std::vector<std::int32_t> places;  // in the program's batch
    std::vector<llama_token> tokens;
    std::size_t leading = 0;  // tokens before the first whose output is asked for
    std::size_t imported = 0;  // or computed ahead: not in the batch that is left
    std::size_t ahead = 0;     // computed ahead
    std::size_t size_before = 0;
    bool followed = false;  // its KV is of size_before known tokens, and of nothing else
  };
  // Whether a call names an id that the program did not ask for: then nothing is shared from now on.
  bool beyond(llama_seq_id id);
  bool beyond(const llama_batch& batch);
  std::int32_t decode_any(const llama_batch& batch) noexcept;
  void decode_shared(const llama_batch& batch, std::vector<Part>& parts, std::optional<std::int32_t>& code);
  void give_up(std::vector<Part>& parts, std::optional<std::int32_t> code, std::string_view why) noexcept;
  SharedSequence& sequence(llama_seq_id id);
  bool sort_out(const llama_batch& batch, std::vector<Part>& parts);
  void diverge_all(const llama_batch& batch);
  void import(std::vector<Part>& parts, std::int32_t tokens);
  void leave_one_more(std::vector<Part>& parts);
  std::int32_t compute(const llama_batch& batch);
  std::int32_t decode_ahead(Part& part);
  std::int32_t decode_rest(const llama_batch& batch, std::vector<Part>& parts, std::size_t imported);
  void settle(std::vector<Part>& parts, std::int32_t code);
  // Of what is left of the parts, when somebody wants it.
  void dump(std::span<const Part> parts, std::optional<DecodeDump>& dump) const;

  const Real& real_;
  const Calls& calls_;
  llama_context* const context_;
  const llama_memory_t memory_;
  std::unique_ptr<SharedContext> shared_;
  std::map<llama_seq_id, std::unique_ptr<SharedSequence>> sequences_;
  SavedStates saved_;
  const Say say_;
  std::string reason_;
  bool embeddings_ = false;
  bool warming_up_ = false;
  bool cells_shared_ = false;  // some cells of the KV cache belong to several sequences
  bool stopped_ = false;
  BatchCounters counters_;
  std::vector<std::int32_t> place_;  // by place in the program's batch; empty: the same
};

}  // namespace kvtrie::llama
