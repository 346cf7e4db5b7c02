// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// Linked into the kvtried and the plugin that mutants_test.cc has the tests run with: takes the protection out that
// KVTRIE_TEST_MUTANT names (shm/mutant.h), before anything of them runs.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>

#include "shm/mutant.h"

namespace {

[[gnu::constructor]] void take_out() {
  const char* const name = std::getenv("KVTRIE_TEST_MUTANT");
  if (name == nullptr) return;
  const auto found = std::ranges::find(kvtrie::kMutantNames, name);
  if (found == std::end(kvtrie::kMutantNames)) {
    std::fprintf(stderr, "there is no mutant %s\n", name);
    std::abort();
  }
  kvtrie::active_mutant.store(static_cast<kvtrie::Mutant>(found - std::begin(kvtrie::kMutantNames)));
}

}  // namespace
