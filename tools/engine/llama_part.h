// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What the program needs of its second engine, llama.cpp. llama_part.cc is of kvtrie-engine-llama,
// which belongs to the build tree as its llama.cpp does; no_llama.cc is of kvtrie-engine, which is
// installed and starts the other one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tools/engine/board.h"
#include "tools/engine/engine.h"
#include "tools/engine/llama_result.h"
#include "tools/engine/options.h"
#include "tools/engine/reference.h"

namespace kvtrie::engine {

struct EngineInNamespace {
  std::unique_ptr<Engine> engine;
  std::vector<std::pair<std::string, std::string>> fields;  // all that its KV depends on
};

// ... with nothing of a run: steps of any length into memory of its caller.
struct AloneInNamespace : EngineInNamespace {
  // Whether a full page holds what `right` does, but for what a batch of other requests changes.
  std::function<bool(std::span<const std::byte> page, std::span<const std::byte> right)> is_right;
};

[[nodiscard]] bool has_llama();

// All throw std::runtime_error: the model or the back end cannot be loaded, or cannot share.
// Of a page of this model.
[[nodiscard]] std::uint64_t llama_page_bytes(const RunSettings& settings, std::uint32_t tokens_per_page);
// A worker's; it writes its schedule into settings.schedules.
[[nodiscard]] EngineInNamespace make_llama_engine(const RunSettings& settings, const PageShape& shape);
[[nodiscard]] AloneInNamespace make_alone_llama(const RunSettings& settings, const PageShape& shape,
                                                double page_bound);
// Runs the schedules of all workers again without a cache, and compares each page that was handed
// in and each token that was chosen; and some answers with those of the request alone. Also throws when it is asked to
// end.
[[nodiscard]] LlamaResult compare_llama(const Board& board, const EngineOptions& options,
                                        const std::function<bool()>& asked_to_end);

}  // namespace kvtrie::engine
