// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// What a run that is wrong leaves behind: the cache's segment and pool, llama.cpp's schedules, and dumps of the first
// request that has a wrong page in the cache: its pages as they are cached, and the same computed alone.
//
//   DIRECTORY/kvtrie-engine-XXXXXX/   *.schedule, kvtrie.CACHE.*, shared/, alone/
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "tools/engine/board.h"
#include "tools/engine/options.h"

namespace kvtrie::engine {

// A folder that is removed again unless it is kept.
class Leftovers {
 public:
  // Below `directory`, which is made when it is not there; empty: where temporary files go. Throws std::system_error.
  explicit Leftovers(const std::string& directory);
  Leftovers(const Leftovers&) = delete;
  Leftovers& operator=(const Leftovers&) = delete;
  ~Leftovers();

  [[nodiscard]] const std::string& path() const { return path_; }
  // Segment and pools as they are, so that `kvtrie` can look at them later.
  void copy_cache(const std::string& cache) const;
  std::string keep();

 private:
  std::string path_;
};

// Looks for the text of each of `requests` in the cache, in this order, and computes the KV of what is there alone. Of
// the first one with a page that is another: dumps of both below `folder`, and what `kvtrie diff-dumps` says of them. Else
// says that, or why it cannot be known.
[[nodiscard]] std::string dump_first_wrong_page(const Board& board, const EngineOptions& options,
                                                std::span<const std::uint32_t> requests, const std::string& folder);

}  // namespace kvtrie::engine
