// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// An engine whose model is a hash. The KV of a token is a function of the token and of the bytes of all KV before it,
// as attention reads it; and the next token is a function of all KV bytes, read anew from the pages in each step. So
// one byte of one page that is wrong, half written, stale or another sequence's changes the text, and all that
// follows.
//
//   KV(t) = expand(hash(bytes of KV(0 .. t-1)), token t)      page_bytes / tokens_per_page bytes of a page
//   candidates after t = expand(hash(bytes of KV(0 .. t)))
//
// A step costs one pass over the sequence's KV. A prefill may be given a duration, as of a slower device.
#pragma once

#include "tools/engine/engine.h"

namespace kvtrie::engine {

struct HashModel {
  std::uint64_t seed = 1;
  std::uint32_t tokens_per_page = 16;
  std::uint64_t page_bytes = 512;  // a multiple of 8 * tokens_per_page
  double prefill_token_us = 0;     // slept for each token of chunks of two and more
};

class HashEngine final : public Engine {
 public:
  explicit HashEngine(const HashModel& model) : model_(model) {}
  void step(std::span<Work> batch) override;

 private:
  void compute(Work& work) const;
  HashModel model_;
};

}  // namespace kvtrie::engine
