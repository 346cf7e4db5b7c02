// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A program on a llama.cpp of another version.
#include <cstdio>

#include "tests/llama/other_llama.h"

int main() {
  std::int32_t token = 30;
  std::printf("%d\n", llama_decode(nullptr, {4, &token, {}, 500, 6000}));
  std::printf("%g\n", static_cast<double>(*llama_get_logits_ith(nullptr, 1, 2, 3, 4, 5, 6, 7, 0.5)));
  return 0;
}
