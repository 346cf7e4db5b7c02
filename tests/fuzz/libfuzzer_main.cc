// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// One target for libFuzzer: KVTRIE_FUZZ_TARGET is its function.

#include "tests/fuzz/fuzz_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kvtrie::fuzz::KVTRIE_FUZZ_TARGET(data, size);
  return 0;
}
