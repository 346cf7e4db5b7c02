// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors

#include "tests/llama/other_llama.h"

namespace {
float number;
}

const char* llama_version() { return "99.0.0"; }

std::int32_t llama_decode(llama_context*, OtherBatch batch) {
  const std::int64_t added = batch.added + static_cast<std::int64_t>(batch.added_too);
  return batch.n_tokens + *batch.token + static_cast<std::int32_t>(added);
}

float* llama_get_logits_ith(llama_context*, std::int32_t a, long b, long c, long d, long e, long f, long g, double h) {
  number = static_cast<float>(a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7) + static_cast<float>(h);
  return &number;
}
