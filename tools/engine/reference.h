// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a request's answer must be: computed alone, in plain memory, without any cache, the whole prompt at once.
#pragma once

#include <cstdint>
#include <vector>

#include "tools/engine/engine.h"
#include "tools/engine/workload.h"

namespace kvtrie::engine {

struct PageShape {
  std::uint32_t tokens_per_page = 16;
  std::uint64_t page_bytes = 512;
};

// All beams' generated tokens, the best beam first, each spec.output long.
[[nodiscard]] std::vector<std::uint32_t> reference_answer(Engine& engine, const PageShape& shape,
                                                          const RequestSpec& spec);

}  // namespace kvtrie::engine
