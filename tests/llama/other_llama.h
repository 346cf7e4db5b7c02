// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A libllama of another version, as far as a test needs one: its batch has two members more, and one of its functions
// more arguments than there are registers.
#pragma once

#include <cstdint>

struct llama_context;

struct OtherBatch {
  std::int32_t n_tokens;
  std::int32_t* token;
  void* more[5];
  std::int64_t added;
  double added_too;
};

extern "C" {
__attribute__((visibility("default"))) const char* llama_version();
__attribute__((visibility("default"))) std::int32_t llama_decode(llama_context* context, OtherBatch batch);
__attribute__((visibility("default"))) float* llama_get_logits_ith(llama_context* context, std::int32_t a, long b,
                                                                   long c, long d, long e, long f, long g, double h);
}
