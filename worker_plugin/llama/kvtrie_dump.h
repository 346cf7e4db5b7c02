// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Debug dumps (docs/dumps.md) of what a llama_decode computes, with the pages that its sequences have.
//
//   context.set_dumps(&dumper, say)
//   ...
//   done = sequence.import(...)
//   std::optional<DecodeDump> dump;
//   if (context.dumps()) dump.emplace(context, batch)       "before", when one of its requests is wanted
//   llama_decode
//   sequence.decoded(...)                                   of each sequence
//   if (dump) dump->after()                                 "after", when that is wanted, too
//
// Pages are read while they are held: by the sequence, or, where it holds nothing between its batches, by a lease for
// the dump alone. With "after" to come, sequences keep what they hold until then.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "worker_plugin/llama/kvtrie_llama.h"

namespace kvtrie::llama {

// A sequence's part of a llama_decode: `tokens` behind size(), and so behind what import() brought in. None: all of it
// was brought in.
struct ComputedTokens {
  SharedSequence* sequence = nullptr;
  std::span<const llama_token> tokens{};
};

// Neither context nor sequences go away before it does.
class DecodeDump {
 public:
  DecodeDump(SharedContext& context, std::span<const ComputedTokens> batch) noexcept;
  ~DecodeDump();
  DecodeDump(const DecodeDump&) = delete;
  DecodeDump& operator=(const DecodeDump&) = delete;

  void after() noexcept;

 private:
  struct Request {
    SharedSequence* sequence = nullptr;
    std::vector<std::uint32_t> tokens;  // what is computed now included
    std::string kind;
    std::uint64_t first = 0, count = 0;
  };
  struct Held;

  void add(const ComputedTokens& part);
  Held pages_of(const SharedSequence& sequence) const;
  void write(const char* moment) noexcept;
  void write_or_throw(const char* moment);
  void failed(const std::string& why) noexcept;

  SharedContext& context_;
  std::vector<Request> batch_;  // empty: not wanted
};

}  // namespace kvtrie::llama
